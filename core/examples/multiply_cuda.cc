// Quantizes a weight matrix to nf4, multiplies with it on a GPU and prints what that costs and how far off it is.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "problem.h"
#include "qbits/linear.h"
#include "qbits/quantize.h"

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// Memory on the GPU, seen as a tensor.
struct Buffer {
  Buffer(qbits::DType dtype, std::initializer_list<int64_t> shape)
      : view(qbits::TensorView::contiguous(nullptr, dtype, shape, {qbits::DeviceType::Cuda, 0})) {
    check(cudaMalloc(&view.data, bytes()));
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(view.data); }
  int64_t bytes() const { return view.numel() * qbits::itemsize(view.dtype); }
  qbits::TensorView view;
};

int main() try {
  using qbits::DType;
  std::vector<float> w = random_normal(kRows * kCols, 1), x = random_normal(kTokens * kCols, 2);
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  Buffer w_gpu(DType::Float32, {kRows, kCols}), x_gpu(DType::Float32, {kTokens, kCols});
  check(cudaMemcpyAsync(w_gpu.view.data, w.data(), w_gpu.bytes(), cudaMemcpyHostToDevice, stream));
  check(cudaMemcpyAsync(x_gpu.view.data, x.data(), x_gpu.bytes(), cudaMemcpyHostToDevice, stream));

  // The caller owns every tensor; qbits says how large they must be, and works on the caller's stream.
  const qbits::Format& nf4 = qbits::format("nf4");
  Buffer codes(DType::UInt8, {qbits::codes_size(nf4, kRows * kCols)});
  Buffer absmax(DType::Float32, {qbits::num_scales(nf4, kRows, kCols, kBlockSize)});

  qbits::Weight4bit weight;
  weight.format = &nf4;
  weight.rows = kRows;
  weight.cols = kCols;
  weight.block_size = kBlockSize;
  weight.codes = codes.view;
  weight.absmax.values = absmax.view;
  qbits::quantize_4bit(w_gpu.view, nf4, kBlockSize, weight.codes, weight.absmax.values, {stream});

  Buffer out_gpu(DType::Float32, {kTokens, kRows});
  Buffer workspace(DType::UInt8, {qbits::linear_4bit_workspace(weight, kTokens, DType::Float32)});
  qbits::linear_4bit(x_gpu.view, weight, std::nullopt, out_gpu.view, workspace.view, {stream});
  std::vector<float> out(kTokens * kRows);
  check(cudaMemcpyAsync(out.data(), out_gpu.view.data, out_gpu.bytes(), cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  check(cudaStreamDestroy(stream));

  double error = relative_error(x, w, out);
  std::printf("nf4 on a GPU: %.2f MB instead of %.2f MB, relative error of the product %.4f\n",
              (codes.bytes() + absmax.bytes()) / 1e6, w_gpu.bytes() / 1e6, error);
  return error < kExpectedError ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
