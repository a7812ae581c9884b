#include "device.h"
#include "qbits/quantize.h"

namespace qbits::test {
namespace {

struct Shape {
  int64_t rows;
  int64_t cols;
};

void check(const Format& f, HostTensor x, int64_t group_size, DType scale_dtype, DType out_dtype, Run run) {
  const int64_t rows = x.shape[0];
  const int64_t cols = x.shape[1];
  const int64_t groups = group_size == 0 ? 1 : (cols + group_size - 1) / group_size;
  const std::string what = std::string(f.name) + " [" + std::to_string(rows) + ", " + std::to_string(cols) + "] " +
                           std::string(name(x.dtype)) + " group " + std::to_string(group_size) + " scales " +
                           std::string(name(scale_dtype)) + " offset " + std::to_string(run.offset);
  std::vector<HostTensor> in = {std::move(x)};
  std::vector<HostTensor> out = {HostTensor(DType::UInt8, {codes_size(f, rows * cols)}),
                                 HostTensor(scale_dtype, {rows, groups}), HostTensor(scale_dtype, {rows, groups})};
  expect_same_bits(
      what, in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        quantize_affine(i[0], f, group_size, o[0], o[1], o[2], stream);
      },
      run);
  std::vector<HostTensor> back = {HostTensor(out_dtype, {rows, cols})};
  expect_same_bits(
      what + " back", out, back,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        dequantize_affine(i[0], i[1], i[2], f, group_size, o[0], stream);
      },
      run);
}

TEST(CudaQuantizeAffine, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  constexpr Shape kShapes[] = {{1, 1}, {3, 5}, {2, 64}, {7, 129}, {5, 1000}, {2, 4096}, {3, 8192}, {4, 4112}};
  for (std::string_view name : {"int4", "int8_affine"}) {
    const Format& f = format(name);
    for (const Shape& shape : kShapes) {
      for (int64_t group_size : {0, 16, 64, 256, 4096}) {
        for (DType dtype : kFloats) {
          const HostTensor x = test_data(dtype, {shape.rows, shape.cols}, 3, shape.rows % 2 == 0);
          for (DType scale_dtype : f.scale_dtypes) check(f, x, group_size, scale_dtype, dtype, {});
          check(f, x, group_size, f.scale_dtypes[0], DType::BFloat16, {.offset = 1});
        }
      }
    }
  }
}

TEST(CudaQuantizeAffine, ExtremeRanges) {
  QBITS_NEEDS_GPU();
  for (std::string_view name : {"int4", "int8_affine"}) {
    const Format& f = format(name);
    for (float size : {0x1p-149F, 0x1.8p-140F, 0x1.3p-30F, 0x1.7p-20F, 1.0F, 70000.0F, 0x1.fffffep127F}) {
      Buffer x(DType::Float32, 64);
      for (int64_t i = 0; i < 64; ++i) x.set(i, size * (static_cast<float>(i % 23) / 22.0F - (i < 32 ? 0.0F : 1.0F)));
      for (DType scale_dtype : f.scale_dtypes) {
        for (int64_t cols : {64, 32}) {
          check(f, HostTensor(x, {64 / cols, cols}), 32, scale_dtype, DType::Float32, {});
          check(f, HostTensor(x, {64 / cols, cols}), 0, scale_dtype, DType::Float16, {});
        }
      }
    }
  }
}

// More than all thread blocks that a GPU runs at once take in one go.
TEST(CudaQuantizeAffine, ManyTiles) {
  QBITS_NEEDS_GPU();
  const HostTensor x = test_data(DType::BFloat16, {367, 16384}, 6);
  for (std::string_view name : {"int4", "int8_affine"}) {
    for (int64_t group_size : {64, 4096, 0}) {
      check(format(name), x, group_size, DType::Float32, DType::BFloat16, {});
    }
  }
}

TEST(CudaQuantizeAffine, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (Launch how : {Launch::SideStream, Launch::Graph}) {
    for (int64_t cols : {256, 67}) {
      check(format("int4"), test_data(DType::BFloat16, {33, cols}, 4), 64, DType::BFloat16, DType::BFloat16,
            {.launch = how});
    }
  }
}

}  // namespace
}  // namespace qbits::test
