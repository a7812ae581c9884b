#include <gtest/gtest.h>

#include <algorithm>

#include "float_bits.h"
#include "qbits/error.h"
#include "qbits/quantize.h"
#include "qbits/runtime.h"
#include "refusal.h"

namespace qbits {
namespace {

using test::Buffer;
using test::rounded;

constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};

TensorView view(Buffer& buffer, int64_t n) { return TensorView::contiguous(buffer.bytes.data(), buffer.dtype, {n}); }
TensorView view(Buffer& buffer, int64_t rows, int64_t cols) {
  return TensorView::contiguous(buffer.bytes.data(), buffer.dtype, {rows, cols});
}
TensorView view(std::vector<uint8_t>& values) {
  return TensorView::contiguous(values.data(), DType::UInt8, {std::ssize(values)});
}

struct Quantized {
  const Format& format;
  int64_t rows, cols, group_size;
  std::vector<uint8_t> codes;
  Buffer scales, zeros;

  Quantized(const Format& f, int64_t r, int64_t c, int64_t size, DType scale_dtype)
      : format(f),
        rows(r),
        cols(c),
        group_size(size),
        codes(codes_size(f, r * c), 0xCD),
        scales(scale_dtype, groups()),
        zeros(scale_dtype, groups()) {}

  int64_t groups() const { return num_scales(format, rows, cols, group_size); }
  int64_t group(int64_t i) const {
    const int64_t size = group_size ? group_size : cols;
    return i / cols * ((cols - 1) / size + 1) + i % cols / size;
  }
  int code(int64_t i) const { return format.bits == 8 ? codes[i] : i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4; }
  void quantize(Buffer& x) {
    quantize_affine(view(x, rows, cols), format, group_size, view(codes), view(scales, groups()),
                    view(zeros, groups()));
  }
  void dequantize(Buffer& out) {
    dequantize_affine(view(codes), view(scales, groups()), view(zeros, groups()), format, group_size,
                      view(out, rows, cols));
  }
};

// Each group by the definition of quantize.h. A float32 operation is a float64 one rounded to float32: for the four
// basic operations that double rounding is exact.
void expect_defined(Quantized& q, const Buffer& x, const std::string& where) {
  const int levels = (1 << q.format.bits) - 1;
  const int64_t n = q.rows * q.cols;
  for (int64_t start = 0; start < n;) {
    int64_t end = start;
    double low = 0, high = 0;
    bool finite = true;
    for (; end < n && q.group(end) == q.group(start); ++end) {
      finite &= std::isfinite(x.get(end)) != 0;
      low = std::min<double>(low, x.get(end));
      high = std::max<double>(high, x.get(end));
    }
    const DType dtype = q.scales.dtype;
    const float unrounded = static_cast<float>(high / levels) - static_cast<float>(low / levels);
    const float scale = rounded(unrounded, dtype);
    const int64_t g = q.group(start);
    if (!finite || std::isinf(scale)) {
      ASSERT_TRUE(std::isnan(q.scales.get(g))) << where;
      ASSERT_EQ(q.zeros.get(g), 0.0F) << where;
      for (int64_t i = start; i < end; ++i) ASSERT_EQ(q.code(i), 0) << where;
    } else {
      ASSERT_EQ(q.scales.get(g), scale) << where << " group " << g << " of " << low << ".." << high;
      const double zero = scale == 0 ? 0.0 : std::min<double>(std::nearbyint(static_cast<float>(-low / scale)), levels);
      ASSERT_EQ(q.zeros.get(g), zero) << where << " group " << g;
      ASSERT_FALSE(std::signbit(q.zeros.get(g))) << where;
      for (int64_t i = start; i < end; ++i) {
        const double steps =
            scale == 0 ? 0.0 : std::nearbyint(static_cast<float>(static_cast<double>(x.get(i)) / scale));
        ASSERT_EQ(q.code(i), static_cast<int>(std::clamp<double>(steps + zero, 0, levels))) << where << " i " << i;
      }
    }
    start = end;
  }
}

void expect_round_trip(Quantized& q, DType out_dtype, const std::string& where) {
  const int64_t n = q.rows * q.cols;
  Buffer out(out_dtype, n);
  q.dequantize(out);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t g = q.group(i);
    const float difference = static_cast<float>(q.code(i)) - q.zeros.get(g);
    const float product = difference * q.scales.get(g);
    ASSERT_EQ(out.get(i), rounded(product, out_dtype)) << where << " i " << i;
  }
}

TEST(QuantizeAffine, ByDefinitionForEveryShape) {
  constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 1},  {2, 15}, {3, 16},  {5, 17},   {4, 63},  {7, 33},
                                                     {2, 64}, {3, 65}, {5, 129}, {1, 1001}, {3, 4097}};
  for (std::string_view name : {"int4", "int8_affine"}) {
    const Format& f = format(name);
    std::vector<int64_t> sizes(f.block_sizes.begin(), f.block_sizes.end());
    sizes.push_back(0);
    for (int64_t size : sizes) {
      for (const auto& [rows, cols] : kShapes) {
        for (DType dtype : kFloats) {
          const std::string where = std::string(name) + " " + std::to_string(rows) + "x" + std::to_string(cols) +
                                    " group " + std::to_string(size) + " " + std::string(qbits::name(dtype));
          Buffer x = test::random_buffer(dtype, rows * cols, static_cast<uint32_t>(rows * cols + size), 0.02F);
          for (DType scale_dtype : f.scale_dtypes) {
            Quantized q(f, rows, cols, size, scale_dtype);
            q.quantize(x);
            expect_defined(q, x, where);
            expect_round_trip(q, dtype, where);
          }
          if (rows * cols % 2 && f.is_4bit()) {
            Quantized q(f, rows, cols, size, dtype);
            q.quantize(x);
            ASSERT_EQ(q.codes.back() & 15, 0) << where;
          }
        }
      }
    }
  }
}

TEST(QuantizeAffine, RangesOnOneSideKeepZeroExact) {
  for (std::string_view name : {"int4", "int8_affine"}) {
    for (DType scale_dtype : kFloats) {
      for (float shift : {-5.0F, -1.01F, 1.01F, 5.0F, 300.0F}) {
        Buffer x = test::random_buffer(DType::Float32, 64 * 50, 9, 0.3F);
        for (int64_t i = 0; i < 64 * 50; ++i) x.set(i, i % 64 == 13 ? 0.0F : x.get(i) + shift);
        Quantized q(format(name), 50, 64, 64, scale_dtype);
        q.quantize(x);
        expect_defined(q, x, std::string(name));
        Buffer out(DType::Float32, 64 * 50);
        q.dequantize(out);
        for (int64_t i = 13; i < 64 * 50; i += 64) ASSERT_EQ(out.get(i), 0.0F) << name << " " << i;
      }
    }
  }
}

TEST(QuantizeAffine, ZerosSubnormalsLargeAndNonFinite) {
  for (std::string_view name : {"int4", "int8_affine"}) {
    for (DType scale_dtype : kFloats) {
      Buffer x = test::random_buffer(DType::Float32, 16 * 9 * 3, 9);
      for (int64_t i = 0; i < 16; ++i) x.set(i, i % 2 ? 0.0F : -0.0F);
      for (int64_t i = 16; i < 32; ++i) x.set(i, std::ldexp(static_cast<float>(i - 24), -146));
      for (int64_t i = 32; i < 48; ++i) x.set(i, std::ldexp(static_cast<float>(i - 40), -24));
      for (int64_t i = 48; i < 64; ++i) x.set(i, std::ldexp(static_cast<float>(i - 56), 17));
      for (int64_t i = 64; i < 80; ++i) x.set(i, i % 2 ? 0x1.fffffep127F : -0x1.fffffep127F);
      x.set(85, NAN);
      x.set(100, INFINITY);
      x.set(127, -INFINITY);
      Quantized q(format(name), 3, 16 * 9, 16, scale_dtype);
      q.quantize(x);
      expect_defined(q, x, std::string(name));
      Buffer out(DType::BFloat16, 16 * 9 * 3);
      q.dequantize(out);
      for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(out.get(i), 0.0F);
      for (int64_t i = 80; i < 128; ++i) EXPECT_TRUE(std::isnan(out.get(i))) << i;
      for (int64_t g : {5, 6, 7}) {
        const uint32_t bits = std::bit_cast<uint32_t>(q.scales.get(g));
        EXPECT_EQ(bits, 0x7fc00000U) << g;
      }
    }
  }
}

TEST(QuantizeAffine, FractionalZeros) {
  Quantized q(format("int4"), 3, 37, 16, DType::Float32);
  for (size_t i = 0; i < q.codes.size(); ++i) q.codes[i] = static_cast<uint8_t>(i * 37);
  for (int64_t g = 0; g < q.groups(); ++g) {
    q.scales.set(g, 0.01F * static_cast<float>(g + 1));
    q.zeros.set(g, 7.3F + static_cast<float>(g));
  }
  for (DType dtype : kFloats) expect_round_trip(q, dtype, "fractional");
}

TEST(QuantizeAffine, SameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  for (std::string_view name : {"int4", "int8_affine"}) {
    for (int64_t cols : {4096, 4097, 301}) {
      Buffer x = test::random_buffer(DType::BFloat16, 301 * cols, 2);
      set_num_threads(1);
      Quantized one(format(name), 301, cols, 64, DType::BFloat16);
      one.quantize(x);
      set_num_threads(3);
      Quantized q(format(name), 301, cols, 64, DType::BFloat16);
      q.quantize(x);
      EXPECT_EQ(q.codes, one.codes) << name << cols;
      EXPECT_EQ(q.scales.bytes, one.scales.bytes) << name << cols;
      EXPECT_EQ(q.zeros.bytes, one.zeros.bytes) << name << cols;
    }
  }
  set_num_threads(threads);
}

TEST(QuantizeAffine, LargeOutputsAreStreamedCorrectly) {
  Quantized q(format("int4"), 2000, 4112, 64, DType::Float32);
  Buffer x = test::random_buffer(DType::BFloat16, 2000 * 4112, 11);
  q.quantize(x);
  for (DType dtype : kFloats) expect_round_trip(q, dtype, "streamed");
}

TEST(QuantizeAffine, RefusesBadArgumentsBeforeWriting) {
  const Format& f = format("int4");
  Buffer x = test::random_buffer(DType::Float32, 128, 1), scales(DType::Float32, 2), zeros(DType::Float32, 2);
  Buffer half(DType::Float16, 2);
  std::vector<uint8_t> codes(64, 0xCD);
  scales.set(0, -7);
  zeros.set(0, -7);
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_NE(message.find("quantize_affine] "), std::string::npos) << message;
  };
  const TensorView v = view(x, 2, 64), k = view(codes), s = view(scales, 2), z = view(zeros, 2);
  for (int64_t size : {-1, 1, 48, 8192}) {
    refused(ErrorCode::InvalidArgument, [&] { quantize_affine(v, f, size, k, s, z); });
    refused(ErrorCode::InvalidArgument, [&] { dequantize_affine(k, s, z, f, size, v); });
  }
  refused(ErrorCode::InvalidArgument, [&] { quantize_affine(v, format("nf4"), 64, k, s, z); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_affine(v, format("int8"), 0, k, s, z); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_affine(v, format("int8_affine"), 64, k, s, z); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_affine(v, f, 32, k, s, z); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_affine(v, f, 64, k, s, view(zeros, 1)); });
  refused(ErrorCode::InvalidType, [&] { quantize_affine(v, f, 64, k, s, view(half, 2)); });
  refused(ErrorCode::InvalidType, [&] { quantize_affine(v, f, 64, k, k, k); });
  refused(ErrorCode::InvalidType, [&] { quantize_affine(k, f, 64, k, s, z); });
  refused(ErrorCode::InvalidType, [&] { dequantize_affine(k, s, z, f, 64, k); });
  refused(ErrorCode::InvalidArgument, [&] { dequantize_affine(k, s, z, f, 64, view(x, 2, 63)); });
  EXPECT_EQ(codes[0], 0xCD);
  EXPECT_EQ(scales.get(0), -7);
  EXPECT_EQ(zeros.get(0), -7);
}

TEST(QuantizeAffine, EmptyDoesNothing) {
  const TensorView codes = TensorView::contiguous(nullptr, DType::UInt8, {0});
  const TensorView none = TensorView::contiguous(nullptr, DType::Float32, {0});
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{0, 5}, {5, 0}}) {
    const TensorView empty = TensorView::contiguous(nullptr, DType::Float32, {rows, cols});
    quantize_affine(empty, format("int4"), 0, codes, none, none);
    dequantize_affine(codes, none, none, format("int4"), 64, empty);
  }
}

}  // namespace
}  // namespace qbits
