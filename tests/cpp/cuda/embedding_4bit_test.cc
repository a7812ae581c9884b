#include "device.h"
#include "qbits/linear.h"
#include "qbits/quantize.h"

namespace qbits::test {
namespace {

// codes, then absmax or scales and zeros, of a random matrix.
std::vector<HostTensor> quantized(const Format& f, int64_t rows, int64_t cols, int64_t block_size, DType scale_dtype) {
  HostTensor w = test_data(DType::Float32, {rows, cols}, 8, false);
  HostTensor codes(DType::UInt8, {codes_size(f, rows * cols)});
  if (f.coding == Coding::Codebook) {
    HostTensor absmax(DType::Float32, {num_scales(f, rows, cols, block_size)});
    quantize_4bit(w.view(), f, block_size, codes.view(), absmax.view());
    return {codes, absmax};
  }
  HostTensor scales(scale_dtype, {rows, num_scales(f, 1, cols, block_size)});
  HostTensor zeros = scales;
  quantize_affine(w.view(), f, block_size, codes.view(), scales.view(), zeros.view());
  return {codes, scales, zeros};
}

void check(std::string_view format_name, int64_t cols, int64_t block_size, DType scale_dtype, DType dtype,
           DType index_dtype, Run run) {
  const Format& f = format(format_name);
  constexpr int64_t kRows = 50;
  std::vector<HostTensor> in = quantized(f, kRows, cols, block_size, scale_dtype);
  HostTensor indices(index_dtype, {7});
  for (int64_t i = 0; i < 7; ++i) {
    const int64_t row = i == 6 ? kRows - 1 : i * 13 % kRows;
    if (index_dtype == DType::Int64) {
      reinterpret_cast<int64_t*>(indices.bytes.data())[i] = row;
    } else {
      reinterpret_cast<int32_t*>(indices.bytes.data())[i] = static_cast<int32_t>(row);
    }
  }
  in.push_back(indices);
  std::vector<HostTensor> out = {HostTensor(dtype, {7, cols})};
  const std::string what = std::string(format_name) + " cols " + std::to_string(cols) + " block " +
                           std::to_string(block_size) + " offset " + std::to_string(run.offset);
  expect_same_bits(
      what, in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        Weight4bit weight{.format = &f, .rows = kRows, .cols = cols, .block_size = block_size, .codes = i[0]};
        if (f.coding == Coding::Codebook) {
          weight.absmax = {.values = i[1]};
        } else {
          weight.scales = i[1];
          weight.zeros = i[2];
        }
        embedding_4bit(i.back(), weight, o[0], stream);
      },
      run);
}

TEST(CudaEmbedding4bit, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (int64_t cols : {1, 33, 64, 100, 768}) {
    for (DType dtype : kFloats) {
      for (int64_t offset : {0, 1}) {
        for (int64_t block_size : {32, 64, 4096}) {
          check("nf4", cols, block_size, DType::Float32, dtype, DType::Int64, {.offset = offset});
          check("fp4", cols, block_size, DType::Float32, dtype, DType::Int32, {.offset = offset});
        }
        for (int64_t group_size : {0, 64}) {
          for (DType scale_dtype : format("int4").scale_dtypes) {
            check("int4", cols, group_size, scale_dtype, dtype, DType::Int64, {.offset = offset});
          }
        }
      }
    }
  }
}

TEST(CudaEmbedding4bit, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (Launch how : {Launch::SideStream, Launch::Graph}) {
    check("nf4", 256, 64, DType::Float32, DType::BFloat16, DType::Int64, {.launch = how});
  }
}

TEST(CudaEmbedding4bit, RowsOutsideAreNan) {
  QBITS_NEEDS_GPU();
  const Format& f = format("nf4");
  for (int64_t cols : {64, 33}) {
    std::vector<HostTensor> parts = quantized(f, 50, cols, 64, DType::Float32);
    HostTensor indices(DType::Int64, {3});
    int64_t* rows = reinterpret_cast<int64_t*>(indices.bytes.data());
    rows[0] = 50;
    rows[1] = 3;
    rows[2] = -1;
    const DeviceTensor codes(parts[0], 0), absmax(parts[1], 0), index(indices, 0);
    const DeviceTensor out(HostTensor(DType::Float32, {3, cols}), 0);
    const Weight4bit weight{.format = &f,
                            .rows = 50,
                            .cols = cols,
                            .block_size = 64,
                            .codes = codes.view(),
                            .absmax = {.values = absmax.view()}};
    embedding_4bit(index.view(), weight, out.view());
    const std::vector<uint8_t> bytes = out.download();
    const float* values = reinterpret_cast<const float*>(bytes.data());
    for (int64_t i = 0; i < cols; ++i) {
      EXPECT_TRUE(std::isnan(values[i])) << i;
      EXPECT_TRUE(std::isnan(values[2 * cols + i])) << i;
    }
    EXPECT_FALSE(std::isnan(values[2 * cols - 1]));
  }
}

}  // namespace
}  // namespace qbits::test
