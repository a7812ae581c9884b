#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>

#include "cuda_bench.h"
#include "qbits/runtime.h"

namespace qbits::bench {
namespace {

constexpr int64_t kCopyBytes = int64_t{2} << 30;
constexpr int kRepetitions = 21;
constexpr double kGraphSeconds = 0.004;  // work in one graph, so that its launch does not count

__device__ uint64_t mix(uint64_t x) {  // splitmix64, Steele et al., OOPSLA 2014
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}

// Box and Muller's transform of two uniform halves of the seed's bits.
__device__ float normal(uint64_t seed) {
  const uint64_t bits = mix(seed);
  const float u = (static_cast<float>(bits >> 40) + 0.5F) * 0x1p-24F;
  const float v = static_cast<float>(bits & 0xffffff) * 0x1p-24F;
  return sqrtf(-2.0F * logf(u)) * cospif(2.0F * v);
}

template <class T>
__global__ void fill(T* out, int64_t n, uint64_t seed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const uint64_t own = seed + static_cast<uint64_t>(i);
    if constexpr (sizeof(T) == 1) {
      out[i] = static_cast<T>(mix(own));
    } else {
      out[i] = T(normal(own) * 0.02F);
    }
  }
}

template <class T>
void fill_random(void* data, int64_t n, uint64_t seed) {
  fill<<<2048, 256>>>(static_cast<T*>(data), n, seed);
  check(cudaGetLastError());
}

void fill_random(DType dtype, void* data, int64_t n, uint64_t seed) {
  switch (dtype) {
    case DType::Float32:
      return fill_random<float>(data, n, seed);
    case DType::BFloat16:
      return fill_random<__nv_bfloat16>(data, n, seed);
    case DType::Float16:
      return fill_random<__half>(data, n, seed);
    default:
      return fill_random<uint8_t>(data, n * itemsize(dtype), seed);
  }
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <class... Args>
std::string print(const char* format, Args... args) {
  std::string text(static_cast<size_t>(std::snprintf(nullptr, 0, format, args...)) + 1, '\0');
  std::snprintf(text.data(), text.size(), format, args...);
  text.pop_back();
  return text;
}

}  // namespace

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(status));
  std::exit(1);
}

Memory::Memory(DType dtype, std::vector<int64_t> shape) {
  static uint64_t seed = 1;
  view_ = TensorView::contiguous(nullptr, dtype, shape, {DeviceType::Cuda, 0});
  const int64_t n = view_.numel();
  check(cudaMalloc(&view_.data, static_cast<size_t>(n * itemsize(dtype))));
  data_ = std::shared_ptr<void>(view_.data, [](void* p) { static_cast<void>(cudaFree(p)); });
  seed += static_cast<uint64_t>(n) + 977;
  fill_random(dtype, view_.data, n, seed);
}

Memory Memory::floats(const std::vector<float>& values) {
  Memory memory(DType::Float32, {std::ssize(values)});
  check(cudaMemcpy(memory.view().data, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));
  return memory;
}

Runner::Runner(std::string filter) : filter_(std::move(filter)) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, 0));
  l2_bytes_ = bytes;
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  const Memory from(DType::UInt8, {kCopyBytes});
  const Memory to(DType::UInt8, {kCopyBytes});
  const double seconds = measure({[&](Stream stream) {
    check(cudaMemcpyAsync(to.view().data, from.view().data, kCopyBytes, cudaMemcpyDeviceToDevice,
                          static_cast<cudaStream_t>(stream.handle)));
  }});
  copy_bandwidth_ = 2.0 * static_cast<double>(kCopyBytes) / seconds;
  std::printf("device copy: %.0f GB/s\n", copy_bandwidth_ / 1e9);
}

// Seconds a call takes: the median over replays of a graph that holds all calls several times.
double Runner::measure(const std::vector<Call>& calls) {
  check(cudaDeviceSynchronize());
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  const double in_round = static_cast<double>(calls.size());
  auto time = [&](int rounds, int repetitions) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    for (int round = 0; round < rounds; ++round) {
      for (const Call& call : calls) call({stream_});
    }
    check(cudaStreamEndCapture(stream_, &graph));
    check(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<double> seconds;
    for (int i = 0; i <= repetitions; ++i) {
      check(cudaEventRecord(begin, stream_));
      check(cudaGraphLaunch(executable, stream_));
      check(cudaEventRecord(end, stream_));
      check(cudaEventSynchronize(end));
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end));
      if (i > 0) seconds.push_back(ms / 1e3 / (rounds * in_round));  // the first replay warms up
    }
    check(cudaGraphExecDestroy(executable));
    check(cudaGraphDestroy(graph));
    return median(seconds);
  };
  const double once = time(1, 3);
  const double seconds =
      time(static_cast<int>(std::clamp(kGraphSeconds / (once * in_round), 1.0, 400.0)), kRepetitions);
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  return seconds;
}

void Runner::run(const Case& c) {
  if ((c.op + " " + c.what).find(filter_) == std::string::npos) return;
  std::vector<Call> calls;
  const int64_t copies = std::clamp<int64_t>((3 * l2_bytes_ + c.bytes - 1) / c.bytes, 1, 256);
  for (int64_t i = 0; i < copies; ++i) calls.push_back(c.operands());
  const double seconds = measure(calls);
  const double bandwidth = static_cast<double>(c.bytes) / seconds;
  const double share = bandwidth / copy_bandwidth_;
  std::printf("%-22s %-42s %10.2f us %7.0f GB/s %6.1f %% of copy", c.op.c_str(), c.what.c_str(), seconds * 1e6,
              bandwidth / 1e9, share * 100);
  if (c.target_share > 0) std::printf(" (target %.0f)", c.target_share * 100);
  if (c.flops > 0) std::printf(" %7.1f TFLOP/s", c.flops / seconds / 1e12);
  std::printf("\n");
  std::fflush(stdout);
  rows_.push_back(
      print("{\"op\": \"%s\", \"case\": \"%s\", \"us\": %.3f, \"bytes\": %lld, \"gb_per_s\": %.1f, "
            "\"copy_share\": %.4f, \"tflops\": %.2f, \"target_share\": %.2f}",
            c.op.c_str(), c.what.c_str(), seconds * 1e6, static_cast<long long>(c.bytes), bandwidth / 1e9, share,
            c.flops / seconds / 1e12, c.target_share));
}

std::string Runner::json() const {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  std::string text = print("{\"gpu\": \"%s\", \"driver\": %d, \"runtime\": %d, \"copy_gb_per_s\": %.1f, \"rows\": [\n",
                           properties.name, cuda_driver_version(), cuda_runtime_version(), copy_bandwidth_ / 1e9);
  for (size_t i = 0; i < rows_.size(); ++i) text += "  " + rows_[i] + (i + 1 < rows_.size() ? ",\n" : "\n");
  return text + "]}\n";
}

}  // namespace qbits::bench

// qbits_cuda_bench [--filter TEXT] [--json PATH]: runs the cases whose name holds TEXT; the report goes to PATH.
int main(int argc, char** argv) {
  std::string filter, path;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--filter") == 0) filter = argv[i + 1];
    if (std::strcmp(argv[i], "--json") == 0) path = argv[i + 1];
  }
  if (const std::string reason = qbits::cuda_unavailable_reason(); !reason.empty()) {
    std::fprintf(stderr, "%s\n", reason.c_str());
    return 1;
  }
  qbits::bench::Runner runner(filter);
  qbits::bench::quantize_rows(runner);
  qbits::bench::linear_4bit_rows(runner);
  if (!path.empty()) std::ofstream(path) << runner.json();
  return 0;
}
