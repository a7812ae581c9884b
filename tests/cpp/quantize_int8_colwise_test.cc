#include <gtest/gtest.h>

#include <algorithm>

#include "qbits/error.h"
#include "qbits/runtime.h"
#include "refusal.h"
#include "rows_int8.h"

namespace qbits {
namespace {

using test::Buffer;
using test::kFloats;
using test::view_of;
using test::workspace_of;

struct QuantizedColumns {
  std::vector<int8_t> codes;
  std::vector<float> scales;

  QuantizedColumns(Buffer& x, int64_t rows, int64_t cols, float threshold)
      : codes(static_cast<size_t>(rows * cols), 99), scales(static_cast<size_t>(cols), -7.0F) {
    // At any address: the op finds its own aligned start.
    std::vector<uint8_t> bytes(static_cast<size_t>(quantize_int8_colwise_workspace(rows, cols, {})) + 1, 0xCD);
    quantize_int8_colwise(view_of(x, {rows, cols}), threshold, view_of(codes, DType::Int8, {rows, cols}),
                          view_of(scales, DType::Float32, {cols}),
                          TensorView::contiguous(bytes.data() + 1, DType::UInt8, {std::ssize(bytes) - 1}));
  }
};

// By the definition of int8.h; as for rows, the float64 quotient rounded to float32 is the float32 one, and 127 times
// it exact in float64.
void expect_defined(Buffer& x, int64_t rows, int64_t cols, float threshold) {
  const QuantizedColumns q(x, rows, cols, threshold);
  const std::string where = std::string(name(x.dtype)) + " [" + std::to_string(rows) + ", " + std::to_string(cols) +
                            "] threshold " + std::to_string(threshold);
  for (int64_t k = 0; k < cols; ++k) {
    float scale = 0.0F;
    const auto is_outlier = [&](float v) { return threshold > 0 && std::fabs(v) >= threshold; };
    for (int64_t m = 0; m < rows; ++m) {
      const float v = x.get(m * cols + k);
      if (std::isnan(v) || (std::isinf(v) && threshold == 0)) scale = NAN;
      if (!is_outlier(v) && std::fabs(v) > scale) scale = std::fabs(v);
    }
    ASSERT_EQ(std::isnan(q.scales[k]), std::isnan(scale)) << where << " column " << k;
    if (!std::isnan(scale)) {
      ASSERT_EQ(q.scales[k], scale) << where << " column " << k;
    }
    for (int64_t m = 0; m < rows; ++m) {
      const float v = x.get(m * cols + k);
      double code = 0;
      if (scale > 0 && !is_outlier(v)) {
        code = std::nearbyint(127.0 * static_cast<double>(static_cast<float>(static_cast<double>(v) / scale)));
      }
      ASSERT_EQ(q.codes[m * cols + k], code) << where << " at " << m << ", " << k;
    }
  }
}

TEST(QuantizeInt8Colwise, EveryDtypeAndShape) {
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1},
                            {5, 1},
                            {1, 17},
                            {3, 5},
                            {7, 31},
                            {64, 64},
                            {127, 33},
                            {128, 100},
                            {129, 257},
                            {1000, 3},
                            {5000, 2},
                            {4, 2047},
                            {3, 2048},
                            {6, 2049},
                            {2, 5000}}) {
    for (DType dtype : kFloats) {
      Buffer x = test::random_buffer(dtype, rows * cols, static_cast<uint32_t>(rows + cols));
      for (float threshold : {0.0F, 2.5F, 0.3F, 100.0F}) expect_defined(x, rows, cols, threshold);
    }
  }
}

TEST(QuantizeInt8Colwise, AnOutlierIsLeftOutAlone) {
  Buffer x(DType::Float32, 3 * 2);
  const float values[] = {5.0F, 1.0F, -6.0F, 0.5F, 2.5F, -8.0F};
  for (int64_t i = 0; i < 6; ++i) x.set(i, values[i]);
  const QuantizedColumns q(x, 3, 2, 6.0F);
  EXPECT_EQ(q.scales, (std::vector<float>{5.0F, 1.0F}));
  EXPECT_EQ(q.codes, (std::vector<int8_t>{127, 127, 0, 64, 64, 0}));  // 63.5 to even
}

TEST(QuantizeInt8Colwise, ZerosSubnormalsAndLargest) {
  constexpr int64_t kRows = 150, kCols = 6;
  Buffer x = test::random_buffer(DType::Float32, kRows * kCols, 3);
  for (int64_t m = 0; m < kRows; ++m) {
    x.set(m * kCols, m % 2 ? 0.0F : -0.0F);
    x.set(m * kCols + 1, std::ldexp(static_cast<float>(m - 70), -149));
    x.set(m * kCols + 2, m == 40 ? -0x1p-149F : 0.0F);
    x.set(m * kCols + 3, x.get(m * kCols + 3) * 0x1p-127F);
    x.set(m * kCols + 4, m % 3 ? 0x1.fffffep127F : -0x1.fffffep126F);
  }
  for (float threshold : {0.0F, 6.0F, 0x1.fffffep127F, 0x1p-149F}) expect_defined(x, kRows, kCols, threshold);
}

// Every integer and a half, and the floats about it, over columns of several scales.
TEST(QuantizeInt8Colwise, NearTies) {
  constexpr int64_t kRows = 127 * 2 * 7 + 1;
  Buffer x(DType::Float32, kRows * 4);
  int64_t col = 0;
  for (float absmax : {1.0F, 3.0F, 0x1p-126F, 0x1p100F}) {
    int64_t m = 0;
    for (int k = 0; k < 127; ++k) {
      for (float sign : {1.0F, -1.0F}) {
        float v = static_cast<float>(k + 0.5) / 127.0F * absmax;
        for (int step = 0; step < 3; ++step) v = std::nextafter(v, 0.0F);
        for (int step = 0; step < 7; ++step, v = std::nextafter(v, INFINITY)) x.set(m++ * 4 + col, sign * v);
      }
    }
    x.set(m * 4 + col++, absmax);
  }
  expect_defined(x, kRows, 4, 0.0F);
}

TEST(QuantizeInt8Colwise, NonFiniteElementsStayInTheirColumns) {
  for (DType dtype : kFloats) {
    for (float threshold : {0.0F, 6.0F}) {
      Buffer x = test::random_buffer(dtype, 300 * 37, 4);
      x.set(5 * 37 + 1, NAN);
      x.set(299 * 37 + 2, INFINITY);
      x.set(150 * 37 + 36, -INFINITY);
      x.set(64 * 37 + 35, -NAN);
      x.set(65 * 37 + 35, INFINITY);
      expect_defined(x, 300, 37, threshold);
      const QuantizedColumns q(x, 300, 37, threshold);
      EXPECT_EQ(std::isnan(q.scales[2]), threshold == 0);
      EXPECT_EQ(std::count_if(q.scales.begin(), q.scales.end(), [](float s) { return std::isnan(s); }),
                threshold == 0 ? 4 : 2);
    }
  }
}

TEST(QuantizeInt8Colwise, SameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  Buffer x = test::random_buffer(DType::BFloat16, 301 * 3003, 2);
  set_num_threads(1);
  const QuantizedColumns one(x, 301, 3003, 3.5F);
  set_num_threads(3);
  const QuantizedColumns q(x, 301, 3003, 3.5F);
  EXPECT_EQ(q.codes, one.codes);
  EXPECT_EQ(q.scales, one.scales);
  set_num_threads(threads);
}

TEST(QuantizeInt8Colwise, NoRowsOrNoColumns) {
  Buffer x(DType::Float32, 0);
  EXPECT_EQ(QuantizedColumns(x, 0, 5, 6.0F).scales, std::vector<float>(5, 0.0F));
  EXPECT_TRUE(QuantizedColumns(x, 3, 0, 0.0F).scales.empty());
}

TEST(QuantizeInt8Colwise, RefusesBadArgumentsBeforeWriting) {
  Buffer x = test::random_buffer(DType::Float32, 6, 1);
  std::vector<int8_t> codes(6, 99);
  std::vector<float> scales(3, -7);
  std::vector<uint8_t> bytes(256, 0xCD);
  const TensorView v = view_of(x, {2, 3}), c = view_of(codes, DType::Int8, {2, 3});
  const TensorView s = view_of(scales, DType::Float32, {3}), w = workspace_of(bytes);
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_NE(message.find("quantize_int8_colwise"), std::string::npos) << message;
  };
  const auto invalid = ErrorCode::InvalidArgument, type = ErrorCode::InvalidType;
  for (float threshold : {-1.0F, NAN, INFINITY}) {
    refused(invalid, [&] { quantize_int8_colwise(v, threshold, c, s, w); });
  }
  refused(invalid, [&] { quantize_int8_colwise(view_of(x, {}), 0.0F, c, s, w); });
  refused(invalid, [&] { quantize_int8_colwise(v, 0.0F, view_of(codes, DType::Int8, {3, 2}), s, w); });
  refused(invalid, [&] { quantize_int8_colwise(v, 0.0F, c, view_of(scales, DType::Float32, {2}), w); });
  refused(invalid, [&] { quantize_int8_colwise(v, 0.0F, c, s, view_of(bytes, DType::UInt8, {8})); });
  refused(type, [&] { quantize_int8_colwise(v, 0.0F, view_of(codes, DType::UInt8, {2, 3}), s, w); });
  refused(type, [&] { quantize_int8_colwise(v, 0.0F, c, view_of(scales, DType::Int32, {3}), w); });
  refused(type, [&] { quantize_int8_colwise(c, 0.0F, c, s, w); });
  refused(invalid, [&] { quantize_int8_colwise_workspace(-1, 3, {}); });
  refused(invalid, [&] { quantize_int8_colwise_workspace(1, int64_t{1} << 31, {}); });
  EXPECT_EQ(codes, std::vector<int8_t>(6, 99));
  EXPECT_EQ(scales, std::vector<float>(3, -7));
  EXPECT_EQ(bytes, std::vector<uint8_t>(256, 0xCD));
}

}  // namespace
}  // namespace qbits
