#include <gtest/gtest.h>

#include "qbits/error.h"
#include "qbits/linear.h"
#include "qbits/runtime.h"
#include "refusal.h"
#include "weights_4bit.h"

namespace qbits {
namespace {

using test::Buffer;
using test::RandomWeight;
using test::Scales;
using test::view_of;

constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};
using Offsets = std::vector<int32_t>;

TensorView view_of_offsets(const Offsets& offsets) {
  return TensorView::contiguous(const_cast<int32_t*>(offsets.data()), DType::Int32, {std::ssize(offsets)});
}

Buffer multiply(Buffer& x, int64_t m, const Offsets& offsets, const RandomWeight& w, Buffer* bias) {
  const int64_t experts = std::ssize(offsets) - 1;
  const int64_t n = w.weight.rows / experts;
  Buffer out(x.dtype, m * n);
  const int64_t bytes = grouped_linear_4bit_workspace(w.weight, experts, m, x.dtype);
  std::vector<uint8_t> workspace(static_cast<size_t>(bytes), 0xCD);
  std::optional<TensorView> bias_view;
  if (bias != nullptr) bias_view = view_of(*bias, {experts, n});
  grouped_linear_4bit(view_of(x, {m, w.weight.cols}), view_of_offsets(offsets), w.weight, bias_view,
                      view_of(out, {m, n}), view_of(workspace));
  return out;
}

// Every row against the float64 product with its expert; rows of none keep what was there.
void expect_products(const RandomWeight& w, DType dtype, int64_t m, const Offsets& offsets, bool with_bias,
                     const std::string& where) {
  const int64_t experts = std::ssize(offsets) - 1;
  const int64_t n = w.weight.rows / experts;
  const int64_t k = w.weight.cols;
  Buffer x = test::random_buffer(dtype, m * k, static_cast<uint32_t>(m + 1));
  Buffer bias = test::random_buffer(dtype, experts * n, 5);
  const Buffer untouched(dtype, m * n);
  const Buffer out = multiply(x, m, offsets, w, with_bias ? &bias : nullptr);
  const size_t row_bytes = out.bytes.size() / static_cast<size_t>(m);
  for (int64_t t = 0; t < m; ++t) {
    int64_t e = 0;
    while (e < experts && !(offsets[e] <= t && t < offsets[e + 1])) ++e;
    if (e == experts) {
      for (size_t i = t * row_bytes; i < (t + 1) * row_bytes; ++i) ASSERT_EQ(out.bytes[i], untouched.bytes[i]) << where;
      continue;
    }
    for (int64_t j = 0; j < n; ++j) {
      double exact = with_bias ? bias.get(e * n + j) : 0.0;
      double magnitude = std::fabs(exact);
      for (int64_t i = 0; i < k; ++i) {
        const double product = static_cast<double>(x.get(t * k + i)) * w.at(e * n + j, i);
        exact += product;
        magnitude += std::fabs(product);
      }
      ASSERT_NEAR(out.get(t * n + j), exact, test::sum_bound(k, magnitude, exact, dtype))
          << where << " dtype " << name(dtype) << " M " << m << " row " << t << " expert " << e << " column " << j;
    }
  }
}

TEST(GroupedLinear4bit, EveryFormatDtypeAndShape) {
  struct Shape {
    int64_t n, k, block_size;
  };
  // Odd N * K: experts begin inside a byte; blocks straddle experts.
  const Shape shapes[] = {{1, 1, 16}, {3, 5, 16}, {7, 64, 64}, {5, 80, 64}, {33, 129, 32}, {9, 576, 128}};
  const Offsets offsets = {0, 1, 1, 4, 13, 13};  // with experts that have no row
  for (const Shape& s : shapes) {
    test::for_each_weight(5 * s.n, s.k, s.block_size, [&](const RandomWeight& w, const std::string& where) {
      for (DType dtype : kFloats) expect_products(w, dtype, 13, offsets, dtype != DType::BFloat16, where);
    });
  }
}

TEST(GroupedLinear4bit, AnyOffsets) {
  const RandomWeight w("nf4", Scales::Nested, 4 * 35, 96, 64, 3);
  const Offsets cases[] = {{0, 0, 0, 0, 9}, {0, 9, 9, 9, 9}, {0, 0, 9, 9, 9}, {0, 2, 4, 6, 9},
                           {0, 1, 2, 3, 4}, {2, 4, 5, 6, 8}, {0, 0, 0, 0, 0}, {9, 9, 9, 9, 9}};
  for (const Offsets& offsets : cases) expect_products(w, DType::Float32, 9, offsets, true, "offsets");
}

TEST(GroupedLinear4bit, OneExpertIsLinear4bit) {
  for (int64_t m : {1, 6, 70}) {
    const RandomWeight w("fp4", Scales::Plain, 67, 160, 64, 3);
    Buffer x = test::random_buffer(DType::BFloat16, m * 160, 1);
    Buffer out(DType::BFloat16, m * 67);
    std::vector<uint8_t> workspace(static_cast<size_t>(linear_4bit_workspace(w.weight, m, x.dtype)));
    linear_4bit(view_of(x, {m, 160}), w.weight, std::nullopt, view_of(out, {m, 67}), view_of(workspace));
    EXPECT_EQ(multiply(x, m, {0, static_cast<int32_t>(m)}, w, nullptr).bytes, out.bytes) << m;
  }
}

TEST(GroupedLinear4bit, SameBitsForEveryNumberOfThreads) {
  const int threads = num_threads();
  const RandomWeight w("int4", Scales::AffineBFloat16, 3 * 256, 512, 64, 3);
  Buffer x = test::random_buffer(DType::Float32, 60 * 512, 1);
  const Offsets offsets = {0, 3, 50, 60};
  set_num_threads(1);
  const Buffer one = multiply(x, 60, offsets, w, nullptr);
  for (int count : {2, 3, 8}) {
    set_num_threads(count);
    EXPECT_EQ(multiply(x, 60, offsets, w, nullptr).bytes, one.bytes) << count << " threads";
  }
  set_num_threads(threads);
}

TEST(GroupedLinear4bit, NothingToDo) {
  const RandomWeight w("nf4", Scales::Plain, 8, 5, 64, 1);
  Buffer x = test::random_buffer(DType::Float32, 10, 1);
  multiply(x, 0, {0, 0, 0}, w, nullptr);
  multiply(x, 2, {0, 1, 2}, RandomWeight("nf4", Scales::Plain, 0, 5, 64, 1), nullptr);
  Buffer none(DType::Float32, 0);
  const Buffer zeros = multiply(none, 2, {0, 1, 2}, RandomWeight("nf4", Scales::Plain, 4, 0, 64, 1), nullptr);
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(zeros.get(i), 0.0F);
}

TEST(GroupedLinear4bit, RefusesBadArgumentsBeforeWriting) {
  const RandomWeight w("nf4", Scales::Plain, 8, 64, 64, 1);
  Buffer x = test::random_buffer(DType::Float32, 192, 1);
  Buffer half = test::random_buffer(DType::Float16, 192, 1);
  Buffer out(DType::Float32, 12);
  std::vector<uint8_t> workspace(static_cast<size_t>(grouped_linear_4bit_workspace(w.weight, 2, 3, DType::Float32)));
  const auto refused = [&](ErrorCode code, const std::string& says, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_TRUE(message.starts_with("[grouped_linear_4bit] " + says)) << message;
  };
  const TensorView xv = view_of(x, {3, 64});
  const TensorView ov = view_of(out, {3, 4});
  const TensorView wv = view_of(workspace);
  const Offsets good = {0, 1, 3};
  const auto none = std::nullopt;
  const auto offsets_refused = [&](ErrorCode code, const std::string& says, const Offsets& offsets) {
    refused(code, says, [&] { grouped_linear_4bit(xv, view_of_offsets(offsets), w.weight, none, ov, wv); });
  };
  offsets_refused(ErrorCode::InvalidArgument, "offsets: got -1 at index 0, want ascending numbers from 0 to 3",
                  {-1, 1, 3});
  offsets_refused(ErrorCode::InvalidArgument, "offsets: got 1 at index 2", {0, 2, 1});
  offsets_refused(ErrorCode::InvalidArgument, "offsets: got 4 at index 2", {0, 2, 4});
  offsets_refused(ErrorCode::InvalidArgument, "experts: got 3, want a divisor of the weight's 8 rows", {0, 1, 2, 3});
  offsets_refused(ErrorCode::InvalidArgument, "offsets: got int32[1]", {0});
  const TensorView ofs = view_of_offsets(good);
  refused(ErrorCode::InvalidType, "offsets", [&] { grouped_linear_4bit(xv, xv, w.weight, none, ov, wv); });
  refused(ErrorCode::InvalidArgument, "x",
          [&] { grouped_linear_4bit(view_of(x, {6, 32}), ofs, w.weight, none, ov, wv); });
  refused(ErrorCode::InvalidArgument, "out",
          [&] { grouped_linear_4bit(xv, ofs, w.weight, none, view_of(out, {1, 12}), wv); });
  refused(ErrorCode::InvalidType, "out",
          [&] { grouped_linear_4bit(view_of(half, {3, 64}), ofs, w.weight, none, ov, wv); });
  refused(ErrorCode::InvalidArgument, "bias", [&] { grouped_linear_4bit(xv, ofs, w.weight, view_of(x, {4}), ov, wv); });
  refused(ErrorCode::InvalidArgument, "workspace", [&] {
    grouped_linear_4bit(xv, ofs, w.weight, none, ov, TensorView::contiguous(workspace.data(), DType::UInt8, {16}));
  });
  refused(ErrorCode::InvalidArgument, "m", [&] { grouped_linear_4bit_workspace(w.weight, 2, -1, DType::Float32); });
  refused(ErrorCode::InvalidArgument, "m",
          [&] { grouped_linear_4bit_workspace(w.weight, 2, int64_t{1} << 31, DType::Float32); });
  refused(ErrorCode::InvalidArgument, "experts",
          [&] { grouped_linear_4bit_workspace(w.weight, 0, 1, DType::Float32); });
  for (uint8_t byte : out.bytes) ASSERT_EQ(byte, 0xAB);
}

}  // namespace
}  // namespace qbits
