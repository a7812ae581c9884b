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

Buffer multiply(Buffer& grad, int64_t m, const RandomWeight& w) {
  const int64_t k = w.weight.cols;
  Buffer out(grad.dtype, m * k);
  std::vector<uint8_t> workspace(static_cast<size_t>(linear_4bit_grad_x_workspace(w.weight, m, grad.dtype)), 0xCD);
  linear_4bit_grad_x(view_of(grad, {m, w.weight.rows}), w.weight, view_of(out, {m, k}), view_of(workspace));
  return out;
}

void expect_product(const RandomWeight& w, DType dtype, int64_t m, const std::string& where) {
  const int64_t n = w.weight.rows;
  const int64_t k = w.weight.cols;
  Buffer grad = test::random_buffer(dtype, m * n, static_cast<uint32_t>(m + 1));
  const Buffer out = multiply(grad, m, w);
  for (int64_t i = 0; i < k; ++i) {
    std::vector<float> column(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j) column[j] = w.at(j, i);
    for (int64_t r = 0; r < m; ++r) {
      double exact = 0.0;
      double magnitude = 0.0;
      for (int64_t j = 0; j < n; ++j) {
        const double product = static_cast<double>(grad.get(r * n + j)) * column[j];
        exact += product;
        magnitude += std::fabs(product);
      }
      ASSERT_NEAR(out.get(r * k + i), exact, test::sum_bound(n, magnitude, exact, dtype))
          << where << " dtype " << name(dtype) << " M " << m << " at " << r << ", " << i;
    }
  }
}

struct Shape {
  int64_t n, k, block_size;
};

TEST(Linear4bitGradX, EveryFormatDtypeAndShape) {
  const Shape shapes[] = {{1, 1, 16},    {5, 3, 16},     {64, 7, 64},   {80, 80, 64},
                          {129, 33, 32}, {300, 256, 64}, {37, 520, 16}, {9, 576, 4096}};
  for (const Shape& s : shapes) {
    test::for_each_weight(s.n, s.k, s.block_size, [&](const RandomWeight& w, const std::string& where) {
      for (DType dtype : kFloats) {
        for (int64_t m : {1, 5, 13}) expect_product(w, dtype, m, where);
      }
    });
  }
}

TEST(Linear4bitGradX, EveryNumberOfRows) {
  for (int64_t k : {96, 97}) {
    const RandomWeight w("nf4", Scales::Nested, 35, k, 64, 3);
    for (int64_t m = 1; m <= 70; ++m) expect_product(w, DType::BFloat16, m, "rows");
  }
}

TEST(Linear4bitGradX, SeveralTilesAndWholeRows) {
  expect_product(RandomWeight("nf4", Scales::Plain, 700, 301, 64, 3), DType::Float32, 200, "large");
  expect_product(RandomWeight("int4", Scales::AffineFloat16, 260, 301, 0, 3), DType::Float32, 7, "whole rows");
}

TEST(Linear4bitGradX, SameBitsForEveryNumberOfThreads) {
  const int threads = num_threads();
  const RandomWeight w("fp4", Scales::Plain, 515, 1000, 64, 3);
  Buffer grad = test::random_buffer(DType::Float32, 40 * 515, 1);
  set_num_threads(1);
  const Buffer one = multiply(grad, 40, w);
  for (int count : {2, 3, 8}) {
    set_num_threads(count);
    EXPECT_EQ(multiply(grad, 40, w).bytes, one.bytes) << count << " threads";
  }
  set_num_threads(threads);
}

TEST(Linear4bitGradX, NoRowsOfTheWeightGiveZeros) {
  for (std::string_view name : {"nf4", "int4"}) {
    const RandomWeight empty(name, name == "nf4" ? Scales::Plain : Scales::AffineFloat32, 0, 6, 64, 1);
    Buffer grad(DType::BFloat16, 0);
    const Buffer out = multiply(grad, 2, empty);
    for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(out.get(i), 0.0F);
  }
  Buffer grad = test::random_buffer(DType::Float32, 10, 1);
  multiply(grad, 2, RandomWeight("nf4", Scales::Plain, 5, 0, 64, 1));
  multiply(grad, 0, RandomWeight("nf4", Scales::Plain, 4, 5, 64, 1));
}

TEST(Linear4bitGradX, RefusesBadArgumentsBeforeWriting) {
  const RandomWeight w("nf4", Scales::Plain, 4, 64, 64, 1);
  Buffer grad = test::random_buffer(DType::Float32, 8, 1);
  Buffer out(DType::Float32, 128);
  std::vector<uint8_t> workspace(static_cast<size_t>(linear_4bit_grad_x_workspace(w.weight, 2, DType::Float32)));
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_TRUE(message.starts_with("[linear_4bit_grad_x")) << message;
  };
  const TensorView gv = view_of(grad, {2, 4});
  const TensorView ov = view_of(out, {2, 64});
  const TensorView wv = view_of(workspace);
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit_grad_x(view_of(grad, {4, 2}), w.weight, ov, wv); });
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit_grad_x(gv, w.weight, view_of(out, {1, 64}), wv); });
  refused(ErrorCode::InvalidType, [&] { linear_4bit_grad_x(wv, w.weight, ov, wv); });
  refused(ErrorCode::InvalidArgument,
          [&] { linear_4bit_grad_x(gv, w.weight, ov, TensorView::contiguous(workspace.data(), DType::UInt8, {16})); });
  refused(ErrorCode::InvalidArgument, [&] { linear_4bit_grad_x_workspace(w.weight, -1, DType::Float32); });
  for (uint8_t byte : out.bytes) ASSERT_EQ(byte, 0xAB);
}

}  // namespace
}  // namespace qbits
