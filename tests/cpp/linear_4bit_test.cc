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

Buffer multiply(Buffer& x, int64_t m, const RandomWeight& w, Buffer* bias) {
  const int64_t n = w.weight.rows;
  Buffer out(x.dtype, m * n);
  std::vector<uint8_t> workspace(static_cast<size_t>(linear_4bit_workspace(w.weight, m, x.dtype)), 0xCD);
  std::optional<TensorView> bias_view;
  if (bias != nullptr) bias_view = view_of(*bias, {n});
  linear_4bit(view_of(x, {m, w.weight.cols}), w.weight, bias_view, view_of(out, {m, n}), view_of(workspace));
  return out;
}

// Rows of x against the float64 product; `rows` holds those that are checked.
void expect_product(const RandomWeight& w, DType dtype, int64_t m, bool with_bias, const std::string& where) {
  const int64_t n = w.weight.rows;
  const int64_t k = w.weight.cols;
  Buffer x = test::random_buffer(dtype, m * k, static_cast<uint32_t>(m + 1));
  Buffer bias = test::random_buffer(dtype, n, 5);
  const Buffer out = multiply(x, m, w, with_bias ? &bias : nullptr);
  for (int64_t j = 0; j < n; ++j) {
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; ++i) row[i] = w.at(j, i);
    for (int64_t r = 0; r < m; ++r) {
      double exact = with_bias ? bias.get(j) : 0.0;
      double magnitude = std::fabs(exact);
      for (int64_t i = 0; i < k; ++i) {
        const double product = static_cast<double>(x.get(r * k + i)) * row[i];
        exact += product;
        magnitude += std::fabs(product);
      }
      ASSERT_NEAR(out.get(r * n + j), exact, test::sum_bound(k, magnitude, exact, dtype))
          << where << " dtype " << name(dtype) << " M " << m << " at " << r << ", " << j;
    }
  }
}

struct Shape {
  int64_t n, k, block_size;
};

TEST(Linear4bit, EveryFormatDtypeAndShape) {
  const Shape shapes[] = {{1, 1, 16},    {3, 5, 16},    {7, 64, 64},   {5, 80, 64},    {33, 129, 32},
                          {64, 256, 64}, {9, 576, 128}, {37, 520, 16}, {2, 1100, 4096}};
  for (const Shape& s : shapes) {
    test::for_each_weight(s.n, s.k, s.block_size, [&](const RandomWeight& w, const std::string& where) {
      for (DType dtype : kFloats) {
        for (int64_t m : {1, 2, 3, 4, 5, 8, 9}) expect_product(w, dtype, m, m % 2 == 1, where);
      }
    });
  }
}

TEST(Linear4bit, EveryNumberOfRows) {
  for (int64_t k : {96, 97}) {
    const RandomWeight w("nf4", Scales::Nested, 35, k, 64, 3);
    for (int64_t m = 1; m <= 70; ++m) expect_product(w, DType::BFloat16, m, true, "rows");
  }
}

TEST(Linear4bit, EveryLengthOfARow) {
  for (int64_t k = 1; k <= 280; ++k) {
    for (int64_t m : {1, 6}) {
      expect_product(RandomWeight("nf4", Scales::Plain, 6, k, 32, 3), DType::Float32, m, false,
                     "K " + std::to_string(k));
      expect_product(RandomWeight("int4", Scales::AffineFloat16, 6, k, 32, 3), DType::Float32, m, false,
                     "int4 K " + std::to_string(k));
    }
  }
}

TEST(Linear4bit, LargerProductsAndSeveralTiles) {
  for (int64_t m : {1, 4, 200}) {
    expect_product(RandomWeight("nf4", Scales::Plain, 130, 2304, 64, 3), DType::BFloat16, m, true, "large");
    expect_product(RandomWeight("int4", Scales::AffineBFloat16, 130, 1160, 128, 3), DType::Float32, m, true, "large");
    expect_product(RandomWeight("fp4", Scales::Nested, 67, 1157, 256, 3), DType::Float16, m, false, "large");
  }
}

TEST(Linear4bit, AffineWholeRowsAndShortLastGroup) {
  for (Scales kind : {Scales::AffineFloat32, Scales::AffineBFloat16, Scales::AffineFloat16}) {
    for (int64_t block_size : {0, 64}) {
      for (int64_t k : {8, 100, 104, 999}) {
        for (int64_t m : {1, 3, 20}) {
          expect_product(RandomWeight("int4", kind, 11, k, block_size, 3), DType::Float32, m, true, "int4");
        }
      }
    }
  }
}

TEST(Linear4bit, SameBitsForEveryNumberOfThreads) {
  const int threads = num_threads();
  for (int64_t m : {1, 4, 7, 64}) {
    const RandomWeight w("nf4", Scales::Plain, 515, 1024, 64, 3);
    Buffer x = test::random_buffer(DType::Float32, m * 1024, 1);
    set_num_threads(1);
    const Buffer one = multiply(x, m, w, nullptr);
    for (int count : {2, 3, 8}) {
      set_num_threads(count);
      EXPECT_EQ(multiply(x, m, w, nullptr).bytes, one.bytes) << m << " rows, " << count << " threads";
    }
    set_num_threads(threads);
  }
}

TEST(Linear4bit, ANanScaleReachesItsRowOnly) {
  for (int64_t m : {1, 3, 12}) {
    RandomWeight w("nf4", Scales::Plain, 5, 128, 64, 3);
    w.absmax[5] = NAN;
    Buffer x = test::random_buffer(DType::Float32, m * 128, 1);
    const Buffer out = multiply(x, m, w, nullptr);
    for (int64_t i = 0; i < m * 5; ++i) EXPECT_EQ(std::isnan(out.get(i)), i % 5 == 2) << i;
  }
}

TEST(Linear4bit, NoColumnsGiveTheBiasAndNoRowsNothing) {
  for (const auto& [name, block_size] : {std::pair{"nf4", 64}, {"int4", 64}, {"int4", 0}}) {
    const Scales kind = std::string_view(name) == "nf4" ? Scales::Plain : Scales::AffineFloat32;
    const RandomWeight empty(name, kind, 3, 0, block_size, 1);
    Buffer x(DType::Float16, 0);
    Buffer bias = test::random_buffer(DType::Float16, 3, 1);
    const Buffer out = multiply(x, 2, empty, &bias);
    const Buffer zeros = multiply(x, 2, empty, nullptr);
    for (int64_t i = 0; i < 6; ++i) {
      EXPECT_EQ(out.get(i), bias.get(i % 3));
      EXPECT_EQ(zeros.get(i), 0.0F);
    }
  }
  Buffer x = test::random_buffer(DType::Float32, 10, 1);
  multiply(x, 2, RandomWeight("nf4", Scales::Plain, 0, 5, 64, 1), nullptr);
  multiply(x, 0, RandomWeight("nf4", Scales::Plain, 4, 5, 64, 1), nullptr);
}

TEST(Linear4bit, RefusesBadArgumentsBeforeWriting) {
  const RandomWeight w("nf4", Scales::Plain, 4, 64, 64, 1);
  Buffer x = test::random_buffer(DType::Float32, 128, 1);
  Buffer half = test::random_buffer(DType::Float16, 128, 1);
  Buffer out(DType::Float32, 8);
  std::vector<uint8_t> workspace(static_cast<size_t>(linear_4bit_workspace(w.weight, 2, DType::Float32)));
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_TRUE(message.starts_with("[linear_4bit")) << message;
  };
  const TensorView xv = view_of(x, {2, 64});
  const TensorView ov = view_of(out, {2, 4});
  const TensorView wv = view_of(workspace);
  const auto none = std::nullopt;
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit(view_of(x, {4, 32}), w.weight, none, ov, wv); });
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit(xv, w.weight, none, view_of(out, {4, 2}), wv); });
  refused(ErrorCode::InvalidType, [&] { linear_4bit(view_of(half, {2, 64}), w.weight, none, ov, wv); });
  refused(ErrorCode::InvalidType, [&] { linear_4bit(xv, w.weight, view_of(half, {4}), ov, wv); });
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit(xv, w.weight, view_of(x, {5}), ov, wv); });
  refused(ErrorCode::InvalidArgument,
          [&] { linear_4bit(xv, w.weight, none, ov, TensorView::contiguous(workspace.data(), DType::UInt8, {16})); });
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit_workspace(w.weight, -1, DType::Float32); });
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit_workspace(w.weight, int64_t{1} << 58, DType::Float32); });
  refused(ErrorCode::InvalidType, [&] { linear_4bit_workspace(w.weight, 1, DType::Int8); });
  Weight4bit wrong = w.weight;
  wrong.block_size = 48;
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit(xv, wrong, none, ov, wv); });
  wrong.block_size = 32;
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit(xv, wrong, none, ov, wv); });
  wrong = w.weight;
  wrong.format = &format("int8");
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit(xv, wrong, none, ov, wv); });
  for (uint8_t byte : out.bytes) ASSERT_EQ(byte, 0xAB);
}

}  // namespace
}  // namespace qbits
