#include "qbits/quantize.h"

#include <gtest/gtest.h>

#include "float_bits.h"
#include "qbits/error.h"
#include "refusal.h"

namespace qbits {
namespace {

using test::Buffer;

constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};

TensorView view(Buffer& buffer, int64_t n) { return TensorView::contiguous(buffer.bytes.data(), buffer.dtype, {n}); }

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;

  Absmax scales() { return {.values = TensorView::contiguous(absmax.data(), DType::Float32, {std::ssize(absmax)})}; }
  TensorView code_view() { return TensorView::contiguous(codes.data(), DType::UInt8, {std::ssize(codes)}); }
  int code(int64_t i) const { return i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4; }
};

Quantized quantize(const Format& f, Buffer& x, int64_t n, int64_t block_size) {
  Quantized q{std::vector<uint8_t>(codes_size(f, n), 0xCD), std::vector<float>(num_scales(f, 1, n, block_size), -7)};
  quantize_4bit(view(x, n), f, block_size, q.code_view(), q.scales().values);
  return q;
}

// The definition, in float64: no other entry is nearer to the rounded quotient, and ties obey the format.
void expect_nearest(const Format& f, float x, float absmax, int code, const std::string& where) {
  const float q = x / absmax;
  const double distance = std::fabs(static_cast<double>(f.codebook[code]) - q);
  for (int other = 0; other < 16; ++other) {
    const double d = std::fabs(static_cast<double>(f.codebook[other]) - q);
    ASSERT_LE(distance, d) << where << " q " << q << " code " << code << " other " << other;
    if (d != distance || f.codebook[other] == f.codebook[code]) continue;
    const bool right = f.ties == Ties::Lower ? f.codebook[code] < f.codebook[other]
                                             : std::fabs(f.codebook[code]) < std::fabs(f.codebook[other]);
    ASSERT_TRUE(right) << where << " tie at q " << q << " code " << code << " other " << other;
  }
}

TEST(Quantize4bit, NearestCodeForEveryShape) {
  for (std::string_view name : {"nf4", "fp4"}) {
    const Format& f = format(name);
    for (DType dtype : kFloats) {
      for (int64_t block_size : f.block_sizes) {
        for (int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 1000, 4097, 12345}) {
          Buffer x = test::random_buffer(dtype, n, static_cast<uint32_t>(n + block_size), 0.02F);
          const Quantized q = quantize(f, x, n, block_size);
          const std::string where = std::string(name) + " n " + std::to_string(n) + " bs " + std::to_string(block_size);
          for (int64_t i = 0; i < n; ++i) {
            float absmax = 0;
            const int64_t start = i / block_size * block_size;
            if (i % 97 != 0) continue;  // every position class is still seen over the lengths above
            for (int64_t j = start; j < std::min(start + block_size, n); ++j)
              absmax = std::max(absmax, std::fabs(x.get(j)));
            ASSERT_EQ(q.absmax[i / block_size], absmax) << where;
            expect_nearest(f, x.get(i), absmax, q.code(i), where + " i " + std::to_string(i));
          }
          if (n % 2) {
            ASSERT_EQ(q.code(n), f.name == "nf4" ? 7 : 0) << where;
          }
        }
      }
    }
  }
}

TEST(Quantize4bit, EveryThresholdToTheLastBit) {
  for (std::string_view name : {"nf4", "fp4"}) {
    const Format& f = format(name);
    std::vector<float> points = {1.0F};
    for (float a : f.codebook) {
      for (float b : f.codebook) {
        float t = static_cast<float>((static_cast<double>(a) + b) / 2);
        for (int step = 0; step < 3; ++step) t = std::nextafter(t, -2.0F);
        for (int step = 0; step < 7; ++step, t = std::nextafter(t, 2.0F)) {
          if (std::fabs(t) <= 1.0F) points.push_back(t);
        }
      }
    }
    for (size_t i = 1; i < points.size(); i += 15) {
      Buffer x(DType::Float32, 16);
      x.set(0, 1.0F);
      for (size_t j = 1; j < 16; ++j) x.set(static_cast<int64_t>(j), points[std::min(i + j - 1, points.size() - 1)]);
      const Quantized q = quantize(f, x, 16, 16);
      for (int64_t j = 0; j < 16; ++j) expect_nearest(f, x.get(j), 1.0F, q.code(j), std::string(name));
    }
  }
}

TEST(Quantize4bit, RoundTripMatchesTheDefinition) {
  for (std::string_view name : {"nf4", "fp4"}) {
    const Format& f = format(name);
    for (DType dtype : kFloats) {
      for (DType out_dtype : kFloats) {
        for (int64_t n : {1, 17, 64, 1000, 4097}) {
          Buffer x = test::random_buffer(dtype, n, 7);
          Quantized q = quantize(f, x, n, 64);
          Buffer out(out_dtype, n);
          dequantize_4bit(q.code_view(), q.scales(), f, 64, view(out, n));
          for (int64_t i = 0; i < n; ++i) {
            const float product = f.codebook[q.code(i)] * q.absmax[i / 64];
            ASSERT_EQ(out.get(i), test::rounded(product, out_dtype)) << name << " n " << n << " i " << i;
          }
        }
      }
    }
  }
}

TEST(Quantize4bit, LargeOutputsAreStreamedCorrectly) {
  const Format& f = format("nf4");
  const int64_t n = (int64_t{8} << 20) + 33;
  Buffer x = test::random_buffer(DType::BFloat16, n, 11);
  Quantized q = quantize(f, x, n, 64);
  for (DType out_dtype : kFloats) {
    Buffer out(out_dtype, n);
    dequantize_4bit(q.code_view(), q.scales(), f, 64, view(out, n));
    for (int64_t i = 0; i < n; i += 13) {
      ASSERT_EQ(out.get(i), test::rounded(f.codebook[q.code(i)] * q.absmax[i / 64], out_dtype)) << i;
    }
  }
}

TEST(Quantize4bit, ZerosSubnormalsAndNonFinite) {
  for (std::string_view name : {"nf4", "fp4"}) {
    const Format& f = format(name);
    Buffer x = test::random_buffer(DType::Float32, 160, 3);
    for (int64_t i = 0; i < 32; ++i) x.set(i, i % 2 ? 0.0F : -0.0F);
    for (int64_t i = 32; i < 64; ++i) x.set(i, i % 2 ? 0x1p-149F : -0x1p-148F);
    x.set(70, NAN);
    x.set(97, INFINITY);
    x.set(131, -INFINITY);
    Quantized q = quantize(f, x, 160, 32);
    Buffer out(DType::Float32, 160);
    dequantize_4bit(q.code_view(), q.scales(), f, 32, view(out, 160));
    for (int64_t i = 0; i < 32; ++i) EXPECT_EQ(out.get(i), 0.0F) << i;
    for (int64_t i = 32; i < 64; i += 2) EXPECT_EQ(out.get(i), -0x1p-148F) << i;
    for (int64_t i = 64; i < 160; ++i) EXPECT_TRUE(std::isnan(out.get(i))) << i;
    for (int64_t b = 2; b < 5; ++b) EXPECT_EQ(std::bit_cast<uint32_t>(q.absmax[b]), 0x7fc00000U);
  }
}

TEST(Quantize4bit, DoubleQuantizedScales) {
  const Format& f = format("nf4");
  const int64_t n = 64 * 300;
  Buffer x = test::random_buffer(DType::Float32, n, 5);
  Quantized q = quantize(f, x, n, 64);
  std::vector<uint8_t> values(300);
  std::vector<float> nested(2, 0.5F), code(256);
  float offset = 2.5F;
  create_dynamic_map(true, 7, 8, code);
  for (int i = 0; i < 300; ++i) values[i] = static_cast<uint8_t>(i * 7);
  nested[1] = 0.3F;
  const Absmax scales{.values = TensorView::contiguous(values.data(), DType::UInt8, {300}),
                      .nested_absmax = TensorView::contiguous(nested.data(), DType::Float32, {2}),
                      .nested_code = TensorView::contiguous(code.data(), DType::Float32, {256}),
                      .offset = TensorView::contiguous(&offset, DType::Float32, {})};
  Buffer out(DType::Float32, n);
  dequantize_4bit(q.code_view(), scales, f, 64, view(out, n));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t block = i / 64;
    const float product = code[values[block]] * nested[block / 256];
    const float scale = product + offset;
    ASSERT_EQ(out.get(i), f.codebook[q.code(i)] * scale) << i;
  }
}

TEST(Quantize4bit, RefusesBadArgumentsBeforeWriting) {
  Buffer x = test::random_buffer(DType::Float32, 64, 1);
  std::vector<uint8_t> codes(32, 0xCD);
  std::vector<float> absmax(1, -7);
  const TensorView c = TensorView::contiguous(codes.data(), DType::UInt8, {32});
  const TensorView a = TensorView::contiguous(absmax.data(), DType::Float32, {1});
  const Format& f = format("nf4");
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_TRUE(message.starts_with("[quantize_4bit] ")) << message;
  };
  TensorView wrong = view(x, 64);
  refused(ErrorCode::InvalidArgument, [&] { quantize_4bit(view(x, 64), f, 48, c, a); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_4bit(view(x, 64), format("int8_affine"), 64, c, a); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_4bit(view(x, 63), f, 32, c, a); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_4bit(view(x, 50), f, 64, c, a); });
  refused(ErrorCode::InvalidType, [&] { quantize_4bit(c, f, 64, c, a); });
  refused(ErrorCode::InvalidType, [&] { quantize_4bit(view(x, 64), f, 64, a, a); });
  wrong.strides[0] = 2;
  refused(ErrorCode::InvalidArgument, [&] { quantize_4bit(wrong, f, 64, c, a); });
  wrong = view(x, 64);
  wrong.data = nullptr;
  refused(ErrorCode::InvalidArgument, [&] { quantize_4bit(wrong, f, 64, c, a); });
  wrong = view(x, 64);
  wrong.device = {DeviceType::Cuda, 0};
  refused(ErrorCode::InvalidArgument, [&] { quantize_4bit(wrong, f, 64, c, a); });
  EXPECT_EQ(codes[0], 0xCD);
  EXPECT_EQ(absmax[0], -7);
}

TEST(Quantize4bit, EmptyDoesNothing) {
  const TensorView empty = TensorView::contiguous(nullptr, DType::Float32, {0, 5});
  const TensorView codes = TensorView::contiguous(nullptr, DType::UInt8, {0});
  quantize_4bit(empty, format("nf4"), 64, codes, empty);
  dequantize_4bit(codes, {.values = empty}, format("nf4"), 64, empty);
}

}  // namespace
}  // namespace qbits
