#include <gtest/gtest.h>

#include "qbits/error.h"
#include "qbits/linear.h"
#include "refusal.h"
#include "weights_4bit.h"

namespace qbits {
namespace {

using test::Buffer;
using test::RandomWeight;
using test::Scales;
using test::view_of;

using Offsets = std::vector<int32_t>;

TensorView view_of_offsets(const Offsets& offsets) {
  return TensorView::contiguous(const_cast<int32_t*>(offsets.data()), DType::Int32, {std::ssize(offsets)});
}

Buffer multiply(Buffer& grad, int64_t m, const Offsets& offsets, const RandomWeight& w) {
  const int64_t experts = std::ssize(offsets) - 1;
  const int64_t k = w.weight.cols;
  Buffer out(grad.dtype, m * k);
  const int64_t bytes = grouped_linear_4bit_grad_x_workspace(w.weight, experts, m, grad.dtype);
  std::vector<uint8_t> workspace(static_cast<size_t>(bytes), 0xCD);
  grouped_linear_4bit_grad_x(view_of(grad, {m, w.weight.rows / experts}), view_of_offsets(offsets), w.weight,
                             view_of(out, {m, k}), view_of(workspace));
  return out;
}

void expect_products(const RandomWeight& w, DType dtype, int64_t m, const Offsets& offsets, const std::string& where) {
  const int64_t experts = std::ssize(offsets) - 1;
  const int64_t n = w.weight.rows / experts;
  const int64_t k = w.weight.cols;
  Buffer grad = test::random_buffer(dtype, m * n, static_cast<uint32_t>(m + 1));
  const Buffer untouched(dtype, m * k);
  const Buffer out = multiply(grad, m, offsets, w);
  for (int64_t t = 0; t < m; ++t) {
    int64_t e = 0;
    while (e < experts && !(offsets[e] <= t && t < offsets[e + 1])) ++e;
    for (int64_t i = 0; i < k; ++i) {
      if (e == experts) {
        ASSERT_EQ(out.get(t * k + i), untouched.get(t * k + i)) << where;
        continue;
      }
      double exact = 0.0;
      double magnitude = 0.0;
      for (int64_t j = 0; j < n; ++j) {
        const double product = static_cast<double>(grad.get(t * n + j)) * w.at(e * n + j, i);
        exact += product;
        magnitude += std::fabs(product);
      }
      ASSERT_NEAR(out.get(t * k + i), exact, test::sum_bound(n, magnitude, exact, dtype))
          << where << " dtype " << name(dtype) << " M " << m << " row " << t << " expert " << e << " column " << i;
    }
  }
}

TEST(GroupedLinear4bitGradX, EveryFormatDtypeAndShape) {
  struct Shape {
    int64_t n, k, block_size;
  };
  const Shape shapes[] = {{1, 1, 16}, {5, 3, 16}, {64, 7, 64}, {80, 80, 64}, {129, 33, 32}, {9, 576, 4096}};
  const Offsets offsets = {0, 1, 1, 4, 13, 13};
  for (const Shape& s : shapes) {
    test::for_each_weight(5 * s.n, s.k, s.block_size, [&](const RandomWeight& w, const std::string& where) {
      for (DType dtype : {DType::Float32, DType::BFloat16, DType::Float16}) {
        expect_products(w, dtype, 13, offsets, where);
      }
    });
  }
}

TEST(GroupedLinear4bitGradX, AnyOffsets) {
  const RandomWeight w("nf4", Scales::Nested, 4 * 35, 96, 64, 3);
  const Offsets cases[] = {{0, 0, 0, 0, 9}, {0, 9, 9, 9, 9}, {0, 2, 4, 6, 9}, {2, 4, 5, 6, 8}, {0, 0, 0, 0, 0}};
  for (const Offsets& offsets : cases) expect_products(w, DType::Float32, 9, offsets, "offsets");
}

TEST(GroupedLinear4bitGradX, NothingToDo) {
  Buffer grad = test::random_buffer(DType::Float32, 8, 1);
  multiply(grad, 0, {0, 0, 0}, RandomWeight("nf4", Scales::Plain, 8, 5, 64, 1));
  multiply(grad, 2, {0, 1, 2}, RandomWeight("nf4", Scales::Plain, 8, 0, 64, 1));
  Buffer none(DType::Float32, 0);
  const Buffer zeros = multiply(none, 2, {0, 1, 2}, RandomWeight("nf4", Scales::Plain, 0, 5, 64, 1));
  for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(zeros.get(i), 0.0F);
}

TEST(GroupedLinear4bitGradX, RefusesBadArgumentsBeforeWriting) {
  const RandomWeight w("nf4", Scales::Plain, 8, 64, 64, 1);
  Buffer grad = test::random_buffer(DType::Float32, 12, 1);
  Buffer out(DType::Float32, 192);
  std::vector<uint8_t> workspace(
      static_cast<size_t>(grouped_linear_4bit_grad_x_workspace(w.weight, 2, 3, DType::Float32)));
  const auto refused = [&](const std::string& says, const TensorView& g, const Offsets& offsets, const TensorView& o) {
    const std::string message = test::refusal(ErrorCode::InvalidArgument, [&] {
      grouped_linear_4bit_grad_x(g, view_of_offsets(offsets), w.weight, o, view_of(workspace));
    });
    EXPECT_TRUE(message.starts_with("[grouped_linear_4bit_grad_x] " + says)) << message;
  };
  const TensorView gv = view_of(grad, {3, 4});
  const TensorView ov = view_of(out, {3, 64});
  refused("grad", view_of(grad, {4, 3}), {0, 1, 3}, ov);
  refused("out", gv, {0, 1, 3}, view_of(out, {1, 192}));
  refused("offsets: got 4 at index 2", gv, {0, 1, 4}, ov);
  refused("experts", gv, {0, 1, 2, 3}, ov);
  for (uint8_t byte : out.bytes) ASSERT_EQ(byte, 0xAB);
}

}  // namespace
}  // namespace qbits
