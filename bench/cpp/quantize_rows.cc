#include "cuda_bench.h"
#include "qbits/linear.h"
#include "qbits/quantize.h"

namespace qbits::bench {
namespace {

constexpr int64_t kLarge = int64_t{1} << 28;
constexpr int64_t kLayer = 4096 * 4096;

std::string describe(const std::string& format, DType dtype, int64_t n) {
  return format + " " + std::string(name(dtype)) + " " + std::to_string(n >> 20) + "M";
}

std::vector<float> dynamic_map() {
  std::vector<float> code(256);
  create_dynamic_map(true, 7, 8, code);
  return code;
}

void rows_4bit(Runner& runner, const Format& f, int64_t block_size, DType dtype, int64_t n) {
  const int64_t blocks = num_scales(f, 1, n, block_size);
  const int64_t bytes = n * itemsize(dtype) + n / 2 + blocks * 4;
  const std::string what = describe(std::string(f.name) + " b" + std::to_string(block_size), dtype, n);
  runner.run({.op = "quantize_4bit", .what = what, .bytes = bytes, .target_share = 0.60, .operands = [&]() -> Call {
                const Memory x(dtype, {n}), codes(DType::UInt8, {n / 2}), absmax(DType::Float32, {blocks});
                return [=, &f](Stream s) { quantize_4bit(x.view(), f, block_size, codes.view(), absmax.view(), s); };
              }});
  runner.run({.op = "dequantize_4bit", .what = what, .bytes = bytes, .target_share = 0.85, .operands = [&]() -> Call {
                const Memory out(dtype, {n}), codes(DType::UInt8, {n / 2}), absmax(DType::Float32, {blocks});
                return [=, &f](Stream s) {
                  dequantize_4bit(codes.view(), {.values = absmax.view()}, f, block_size, out.view(), s);
                };
              }});
}

void rows_nested(Runner& runner, DType dtype, int64_t n) {
  const Format& f = format("nf4");
  const int64_t blocks = n / 64;
  const Memory code = Memory::floats(dynamic_map());
  runner.run({.op = "dequantize_4bit",
              .what = describe("nf4 b64 nested", dtype, n),
              .bytes = n * itemsize(dtype) + n / 2 + blocks + blocks / 64,
              .target_share = 0.85,
              .operands = [&]() -> Call {
                const Memory out(dtype, {n}), codes(DType::UInt8, {n / 2}), values(DType::UInt8, {blocks});
                const Memory nested(DType::Float32, {blocks / 256}), offset(DType::Float32, {1});
                return [=, &f](Stream s) {
                  const Absmax absmax{.values = values.view(),
                                      .nested_absmax = nested.view(),
                                      .nested_code = code.view(),
                                      .offset = offset.view()};
                  dequantize_4bit(codes.view(), absmax, f, 64, out.view(), s);
                };
              }});
}

void rows_absmax(Runner& runner, int64_t blocks) {
  const Memory code = Memory::floats(dynamic_map());
  runner.run({.op = "quantize_absmax",
              .what = describe("scales", DType::Float32, blocks),
              .bytes = blocks * 4 * 2 + blocks,
              .operands = [&]() -> Call {
                const Memory absmax(DType::Float32, {blocks}), values(DType::UInt8, {blocks});
                const Memory nested(DType::Float32, {blocks / 256}), offset(DType::Float32, {1});
                return [=](Stream s) {
                  quantize_absmax(absmax.view(), code.view(), values.view(), nested.view(), offset.view(), s);
                };
              }});
}

void rows_affine(Runner& runner, const Format& f, int64_t group_size, int64_t cols, DType dtype) {
  const int64_t rows = kLarge / cols;
  const int64_t n = rows * cols;
  const int64_t groups = group_size == 0 ? 1 : cols / group_size;
  const int64_t code_bytes = codes_size(f, n);
  const int64_t bytes = n * itemsize(dtype) + code_bytes + 2 * rows * groups * 4;
  const std::string what =
      describe(std::string(f.name) + " g" + std::to_string(group_size) + " K" + std::to_string(cols), dtype, n);
  runner.run({.op = "quantize_affine", .what = what, .bytes = bytes, .target_share = 0.60, .operands = [&]() -> Call {
                const Memory x(dtype, {rows, cols}), codes(DType::UInt8, {code_bytes});
                const Memory scales(DType::Float32, {rows, groups}), zeros(DType::Float32, {rows, groups});
                return [=, &f](Stream s) {
                  quantize_affine(x.view(), f, group_size, codes.view(), scales.view(), zeros.view(), s);
                };
              }});
  runner.run({.op = "dequantize_affine", .what = what, .bytes = bytes, .target_share = 0.85, .operands = [&]() -> Call {
                const Memory out(dtype, {rows, cols}), codes(DType::UInt8, {code_bytes});
                const Memory scales(DType::Float32, {rows, groups}), zeros(DType::Float32, {rows, groups});
                return [=, &f](Stream s) {
                  dequantize_affine(codes.view(), scales.view(), zeros.view(), f, group_size, out.view(), s);
                };
              }});
}

void rows_blockwise(Runner& runner, const std::vector<float>& map, const std::string& name, int64_t block_size,
                    DType dtype, int64_t n) {
  const int64_t blocks = n / block_size;
  const Memory code = Memory::floats(map);
  const std::string what = describe(name + " b" + std::to_string(block_size), dtype, n);
  const int64_t bytes = n * itemsize(dtype) + n + blocks * 4;
  runner.run(
      {.op = "quantize_blockwise", .what = what, .bytes = bytes, .target_share = 0.60, .operands = [&]() -> Call {
         const Memory x(dtype, {n}), codes(DType::UInt8, {n}), absmax(DType::Float32, {blocks});
         return
             [=](Stream s) { quantize_blockwise(x.view(), code.view(), block_size, codes.view(), absmax.view(), s); };
       }});
  runner.run(
      {.op = "dequantize_blockwise", .what = what, .bytes = bytes, .target_share = 0.85, .operands = [&]() -> Call {
         const Memory out(dtype, {n}), codes(DType::UInt8, {n}), absmax(DType::Float32, {blocks});
         return [=](Stream s) {
           dequantize_blockwise(codes.view(), absmax.view(), code.view(), block_size, out.view(), s);
         };
       }});
}

void rows_quantiles(Runner& runner, DType dtype) {
  runner.run({.op = "estimate_quantiles",
              .what = describe("256 quantiles", dtype, kLarge),
              .bytes = kLarge * itemsize(dtype),
              .target_share = 0.25,
              .operands = [&]() -> Call {
                const Memory x(dtype, {kLarge}), out(DType::Float32, {256});
                const Memory workspace(DType::UInt8, {estimate_quantiles_workspace(x.view())});
                return [=](Stream s) { estimate_quantiles(x.view(), 1.0 / 512, out.view(), workspace.view(), s); };
              }});
}

void rows_embedding(Runner& runner) {
  const Format& f = format("nf4");
  constexpr int64_t kRows = 128 * 1024, kCols = 4096, kCount = 16384;
  runner.run({.op = "embedding_4bit",
              .what = "nf4 b64 bfloat16 16384 of [131072, 4096]",
              .bytes = kCount * kCols * 2 + kCount * kCols / 2 + kCount * kCols / 16 + kCount * 4,
              .operands = [&]() -> Call {
                const Memory codes(DType::UInt8, {kRows * kCols / 2}), absmax(DType::Float32, {kRows * kCols / 64});
                const Memory out(DType::BFloat16, {kCount, kCols}), indices(DType::Int32, {kCount});
                std::vector<int32_t> host(kCount);
                for (int64_t i = 0; i < kCount; ++i) host[i] = static_cast<int32_t>(i * 7919 % kRows);
                check(cudaMemcpy(indices.view().data, host.data(), host.size() * 4, cudaMemcpyHostToDevice));
                return [=, &f](Stream s) {
                  const Weight4bit weight{.format = &f,
                                          .rows = kRows,
                                          .cols = kCols,
                                          .block_size = 64,
                                          .codes = codes.view(),
                                          .absmax = {.values = absmax.view()}};
                  embedding_4bit(indices.view(), weight, out.view(), s);
                };
              }});
}

}  // namespace

void quantize_rows(Runner& runner) {
  const Format& nf4 = format("nf4");
  const Format& fp4 = format("fp4");
  for (DType dtype : {DType::BFloat16, DType::Float16, DType::Float32}) rows_4bit(runner, nf4, 64, dtype, kLarge);
  for (DType dtype : {DType::BFloat16, DType::Float32}) rows_4bit(runner, fp4, 64, dtype, kLarge);
  for (int64_t block_size : {16, 32, 128, 256, 4096}) rows_4bit(runner, nf4, block_size, DType::BFloat16, kLarge);
  rows_4bit(runner, nf4, 64, DType::BFloat16, kLayer);
  for (DType dtype : {DType::BFloat16, DType::Float16, DType::Float32}) rows_nested(runner, dtype, kLarge);
  rows_nested(runner, DType::BFloat16, kLayer);
  for (int64_t n : {kLarge, kLayer}) rows_absmax(runner, n / 64);
  for (DType dtype : {DType::BFloat16, DType::Float32}) {
    rows_affine(runner, format("int4"), 64, 4096, dtype);
    rows_affine(runner, format("int8_affine"), 128, 4096, dtype);
    rows_affine(runner, format("int8_affine"), 0, 8192, dtype);
  }
  rows_affine(runner, format("int4"), 0, 11008, DType::BFloat16);
  for (DType dtype : {DType::BFloat16, DType::Float16, DType::Float32}) {
    rows_blockwise(runner, dynamic_map(), "dynamic", 256, dtype, kLarge);
  }
  for (int64_t block_size : {64, 4096}) {
    rows_blockwise(runner, dynamic_map(), "dynamic", block_size, DType::BFloat16, kLarge);
  }
  rows_blockwise(runner, dynamic_map(), "dynamic", 256, DType::Float32, kLayer);
  const auto map = [](std::string_view name) {
    const std::span<const float> values = format(name).codebook;
    return std::vector<float>(values.begin(), values.end());
  };
  for (std::string name : {"linear", "fp8_e5m2", "normal"}) {
    rows_blockwise(runner, map(name), name, 256, DType::BFloat16, kLarge);
  }
  for (DType dtype : {DType::BFloat16, DType::Float16, DType::Float32}) rows_quantiles(runner, dtype);
  rows_embedding(runner);
}

}  // namespace qbits::bench
