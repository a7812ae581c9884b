#include <gtest/gtest.h>

#include <algorithm>

#include "float_bits.h"
#include "qbits/error.h"
#include "qbits/quantize.h"
#include "refusal.h"

namespace qbits {
namespace {

using test::Buffer;

constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};

TensorView view(Buffer& buffer, int64_t n) { return TensorView::contiguous(buffer.bytes.data(), buffer.dtype, {n}); }
TensorView view(std::vector<float>& values) {
  return TensorView::contiguous(values.data(), DType::Float32, {std::ssize(values)});
}
TensorView view(std::vector<uint8_t>& values) {
  return TensorView::contiguous(values.data(), DType::UInt8, {std::ssize(values)});
}

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

Quantized quantize(std::vector<float>& code, Buffer& x, int64_t n, int64_t block_size) {
  Quantized q{std::vector<uint8_t>(n, 0xCD), std::vector<float>((n + block_size - 1) / block_size, -7)};
  quantize_blockwise(view(x, n), view(code), block_size, view(q.codes), view(q.absmax));
  return q;
}

std::vector<float> codebook(const Format& f) { return {f.codebook.begin(), f.codebook.end()}; }

// By definition: no entry is nearer to the quotient; of two equally near neighbours the even index wins.
void expect_nearest(const std::vector<float>& code, float q, int got, const std::string& where) {
  const auto distance = [&](int i) {  // exact: two floats differ by a sum of two doubles
    return std::fabs(static_cast<long double>(code[i]) - static_cast<long double>(q));
  };
  const int above = static_cast<int>(std::lower_bound(code.begin(), code.end(), q) - code.begin());
  for (int other : {std::max(0, above - 1), std::min(255, above)}) {
    ASSERT_LE(distance(got), distance(other)) << where << " q " << q << " code " << got << " other " << other;
    if (distance(other) == distance(got) && code[other] != code[got]) {
      ASSERT_EQ(got % 2, 0) << where << " tie at q " << q << " code " << got << " other " << other;
    }
  }
}

std::vector<std::vector<float>> codes_to_test() {
  std::vector<std::vector<float>> all;
  for (const Format& f : formats()) {
    if (f.bits == 8 && f.codebook.size() == 256) all.push_back(codebook(f));
  }
  std::vector<float> uneven(256);  // as quantiles of data are: many entries in a small range, few elsewhere
  for (int i = 0; i < 256; ++i) uneven[i] = static_cast<float>(0.3 + 1e-4 * i + (i > 250 ? 0.1 * (i - 250) : 0.0));
  uneven[0] = -0.9F;
  all.push_back(uneven);
  std::vector<float> tiny(256);  // thresholds at and around zero, subnormals included
  for (int i = 0; i < 256; ++i) tiny[i] = std::ldexp(static_cast<float>(i - 128), -140);
  tiny[255] = 1.0F;
  all.push_back(tiny);
  return all;
}

TEST(QuantizeBlockwise, NearestCodeForEveryShape) {
  std::vector<std::vector<float>> codes = codes_to_test();
  for (std::vector<float>& code : codes) {
    for (DType dtype : kFloats) {
      for (int64_t block_size : {16, 32, 64, 256, 1024, 4096}) {
        for (int64_t n : {1, 7, 15, 16, 17, 63, 65, 1000, 4097, 9001}) {
          Buffer x = test::random_buffer(dtype, n, static_cast<uint32_t>(n + block_size), 0.02F);
          const Quantized q = quantize(code, x, n, block_size);
          for (int64_t start = 0; start < n; start += block_size) {
            const int64_t end = std::min(start + block_size, n);
            float absmax = 0;
            for (int64_t i = start; i < end; ++i) absmax = std::max(absmax, std::fabs(x.get(i)));
            const std::string where = "n " + std::to_string(n) + " bs " + std::to_string(block_size);
            ASSERT_EQ(q.absmax[start / block_size], absmax) << where;
            for (int64_t i = start; i < end; i += 3) {
              expect_nearest(code, x.get(i) / absmax, q.codes[i], where + " i " + std::to_string(i));
            }
          }
        }
      }
    }
  }
}

TEST(QuantizeBlockwise, EveryThresholdToTheLastBit) {
  std::vector<std::vector<float>> codes = codes_to_test();
  for (std::vector<float>& code : codes) {
    std::vector<float> points;
    for (int i = 0; i < 255; ++i) {
      float t = static_cast<float>((static_cast<double>(code[i]) + code[i + 1]) / 2);
      for (int step = 0; step < 3; ++step) t = std::nextafter(t, -2.0F);
      for (int step = 0; step < 7; ++step, t = std::nextafter(t, 2.0F)) points.push_back(std::clamp(t, -1.0F, 1.0F));
    }
    const auto n = static_cast<int64_t>((points.size() + 14) / 15 * 16);
    Buffer x(DType::Float32, n);
    for (int64_t i = 0, j = 0; i < n; ++i) {
      const bool unit = i % 16 == 0;  // each block of 16 has absmax 1
      x.set(i, unit ? 1.0F : points[std::min<size_t>(j, points.size() - 1)]);
      j += !unit;
    }
    const Quantized q = quantize(code, x, n, 16);
    for (int64_t i = 0; i < n; ++i) expect_nearest(code, x.get(i), q.codes[i], "threshold");
  }
}

TEST(QuantizeBlockwise, RepeatedEntriesDecodeToTheNearestValue) {
  std::vector<float> code(256);
  for (int i = 0; i < 256; ++i) code[i] = static_cast<float>(i / 7 - 18) / 18.0F;
  Buffer x = test::random_buffer(DType::Float32, 4096, 3);
  const Quantized q = quantize(code, x, 4096, 64);
  for (int64_t i = 0; i < 4096; ++i) {
    const float quotient = x.get(i) / q.absmax[i / 64];
    for (float other : code) ASSERT_LE(std::fabs(code[q.codes[i]] - quotient), std::fabs(other - quotient)) << i;
  }
}

TEST(QuantizeBlockwise, DequantizedByDefinition) {
  std::vector<float> code = codebook(format("dynamic"));
  for (DType dtype : kFloats) {
    for (int64_t n : {1, 17, 64, 1000, 4097, (8 << 20) + 5}) {
      Buffer x = test::random_buffer(DType::Float32, n, 5);
      Quantized q = quantize(code, x, n, 256);
      Buffer out(dtype, n);
      dequantize_blockwise(view(q.codes), view(q.absmax), view(code), 256, view(out, n));
      for (int64_t i = 0; i < n; i += n > 5000 ? 61 : 1) {
        const float product = code[q.codes[i]] * q.absmax[i / 256];
        ASSERT_EQ(out.get(i), test::rounded(product, dtype)) << n << " " << i;
      }
    }
  }
}

TEST(QuantizeBlockwise, ZerosSubnormalsAndNonFinite) {
  std::vector<float> code = codebook(format("dynamic"));
  Buffer x = test::random_buffer(DType::Float32, 160, 3);
  for (int64_t i = 0; i < 32; ++i) x.set(i, i % 2 ? 0.0F : -0.0F);
  for (int64_t i = 32; i < 64; ++i) x.set(i, i % 2 ? 0.0F : 0x1p-148F);
  x.set(70, NAN);
  x.set(97, INFINITY);
  x.set(131, -INFINITY);
  Quantized q = quantize(code, x, 160, 32);
  Buffer out(DType::Float32, 160);
  dequantize_blockwise(view(q.codes), view(q.absmax), view(code), 32, view(out, 160));
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(out.get(i), x.get(i)) << i;
  for (int64_t i = 64; i < 160; ++i) EXPECT_TRUE(std::isnan(out.get(i))) << i;
  for (int64_t b = 2; b < 5; ++b) EXPECT_EQ(std::bit_cast<uint32_t>(q.absmax[b]), 0x7fc00000U);
  for (int64_t i : {0, 31, 64, 95, 159}) EXPECT_EQ(q.codes[i], 127) << i;  // the code of zero
}

TEST(QuantizeBlockwise, RefusesBadArgumentsBeforeWriting) {
  std::vector<float> code = codebook(format("dynamic"));
  std::vector<float> absmax(1, -7), other(255);
  std::vector<uint8_t> codes(64, 0xCD);
  Buffer x = test::random_buffer(DType::Float32, 64, 1);
  auto refused = [&](ErrorCode error_code, auto call) {
    const std::string message = test::refusal(error_code, call);
    EXPECT_NE(message.find("quantize_blockwise] "), std::string::npos) << message;
  };
  const TensorView v = view(x, 64), c = view(code), k = view(codes), a = view(absmax);
  for (int64_t size : {-64, 0, 1, 8, 48, 8192}) {
    refused(ErrorCode::InvalidArgument, [&] { quantize_blockwise(v, c, size, k, a); });
    refused(ErrorCode::InvalidArgument, [&] { dequantize_blockwise(k, a, c, size, v); });
  }
  refused(ErrorCode::InvalidArgument, [&] { quantize_blockwise(v, view(other), 64, k, a); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_blockwise(v, c, 32, k, a); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_blockwise(view(x, 63), c, 64, k, a); });
  refused(ErrorCode::InvalidType, [&] { quantize_blockwise(k, c, 64, k, a); });
  refused(ErrorCode::InvalidType, [&] { quantize_blockwise(v, c, 64, v, a); });
  refused(ErrorCode::InvalidArgument, [&] { dequantize_blockwise(k, a, view(other), 64, v); });
  refused(ErrorCode::InvalidType, [&] { dequantize_blockwise(v, a, c, 64, v); });
  code[9] = NAN;
  refused(ErrorCode::InvalidArgument, [&] { quantize_blockwise(v, c, 64, k, a); });
  code[9] = 1.0F;
  refused(ErrorCode::InvalidArgument, [&] { quantize_blockwise(v, c, 64, k, a); });
  EXPECT_EQ(codes[0], 0xCD);
  EXPECT_EQ(absmax[0], -7);
}

TEST(QuantizeBlockwise, EmptyDoesNothing) {
  std::vector<float> code = codebook(format("dynamic"));
  const TensorView empty = TensorView::contiguous(nullptr, DType::Float32, {0, 5});
  const TensorView codes = TensorView::contiguous(nullptr, DType::UInt8, {0});
  quantize_blockwise(empty, view(code), 64, codes, empty);
  dequantize_blockwise(codes, empty, view(code), 64, empty);
}

}  // namespace
}  // namespace qbits
