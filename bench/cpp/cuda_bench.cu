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
constexpr int kCopyThreads = 256;
constexpr int kCopyVectors = 4;  // in flight in each thread
constexpr double kTflops = 780;  // bf16 cuBLAS on an H200, measured
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

// Every thread moves kCopyVectors vectors of 16 bytes, neighbours next to each other.
__global__ void copy(const uint4* in, uint4* out) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kCopyThreads * kCopyVectors) + threadIdx.x;
  uint4 values[kCopyVectors];
#pragma unroll
  for (int i = 0; i < kCopyVectors; ++i) values[i] = __ldcs(in + first + i * kCopyThreads);
#pragma unroll
  for (int i = 0; i < kCopyVectors; ++i) __stcs(out + first + i * kCopyThreads, values[i]);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Times what is put on a stream.
class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream) {
    check(cudaEventCreate(&begin_));
    check(cudaEventCreate(&end_));
  }
  ~Timer() {
    check(cudaEventDestroy(begin_));
    check(cudaEventDestroy(end_));
  }
  Timer(const Timer&) = delete;

  template <class Work>
  double seconds(const Work& work) const {
    check(cudaEventRecord(begin_, stream_));
    work();
    check(cudaEventRecord(end_, stream_));
    check(cudaEventSynchronize(end_));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin_, end_));
    return ms / 1e3;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

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

Runner::Runner(std::string filter, double tflops) : filter_(std::move(filter)), tflops_(tflops) {
  if (tflops_ <= 0) tflops_ = kTflops;
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, 0));
  l2_bytes_ = bytes;
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  measure_copy();
}

// The better of cudaMemcpyAsync and a kernel. Outside of a graph, where a memcpy node is given to the copy engine,
// which reaches two thirds of the memory's bandwidth on an H200.
void Runner::measure_copy() {
  const Memory from(DType::UInt8, {kCopyBytes});
  const Memory to(DType::UInt8, {kCopyBytes});
  auto bandwidth = [&](const Call& call) {
    const Timer timer(stream_);
    std::vector<double> seconds;
    for (int i = 0; i < kRepetitions; ++i) seconds.push_back(timer.seconds([&] { call({stream_}); }));
    return 2.0 * static_cast<double>(kCopyBytes) / median(seconds);
  };
  const double memcpy_bandwidth = bandwidth([&](Stream) {
    check(cudaMemcpyAsync(to.view().data, from.view().data, kCopyBytes, cudaMemcpyDeviceToDevice, stream_));
  });
  const double kernel_bandwidth = bandwidth([&](Stream) {
    constexpr int64_t kBlockBytes = int64_t{sizeof(uint4)} * kCopyThreads * kCopyVectors;
    copy<<<kCopyBytes / kBlockBytes, kCopyThreads, 0, stream_>>>(static_cast<const uint4*>(from.view().data),
                                                                 static_cast<uint4*>(to.view().data));
    check(cudaGetLastError());
  });
  copy_bandwidth_ = std::max(memcpy_bandwidth, kernel_bandwidth);
  std::printf("device copy, read + written: %.0f GB/s (memcpy %.0f, kernel %.0f)\n", copy_bandwidth_ / 1e9,
              memcpy_bandwidth / 1e9, kernel_bandwidth / 1e9);
}

// Seconds a call takes: the median over replays of a graph that holds all calls several times.
double Runner::measure(const std::vector<Call>& calls) {
  check(cudaDeviceSynchronize());
  const Timer timer(stream_);
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
      const double all = timer.seconds([&] { check(cudaGraphLaunch(executable, stream_)); });
      if (i > 0) seconds.push_back(all / (rounds * in_round));  // the first replay warms up
    }
    check(cudaGraphExecDestroy(executable));
    check(cudaGraphDestroy(graph));
    return median(seconds);
  };
  const double once = time(1, 3);
  return time(static_cast<int>(std::clamp(kGraphSeconds / (once * in_round), 1.0, 400.0)), kRepetitions);
}

void Runner::run(const Case& c) {
  if ((c.op + " " + c.what).find(filter_) == std::string::npos) return;
  std::vector<Call> calls;
  const int64_t copies = std::clamp<int64_t>((3 * l2_bytes_ + c.bytes - 1) / c.bytes, 1, 256);
  for (int64_t i = 0; i < copies; ++i) calls.push_back(c.operands());
  const double seconds = measure(calls);
  const double bandwidth = static_cast<double>(c.bytes) / seconds;
  const double share = bandwidth / copy_bandwidth_;
  const double limit = std::max(static_cast<double>(c.bytes) / copy_bandwidth_, c.flops / (tflops_ * 1e12));
  std::printf("%-22s %-42s %10.2f us %7.0f GB/s %6.1f %% of copy", c.op.c_str(), c.what.c_str(), seconds * 1e6,
              bandwidth / 1e9, share * 100);
  if (c.target_share > 0) std::printf(" (target %.0f)", c.target_share * 100);
  if (c.flops > 0) std::printf(" %7.1f TFLOP/s, limit %8.2f us", c.flops / seconds / 1e12, limit * 1e6);
  std::printf("\n");
  std::fflush(stdout);
  rows_.push_back(
      print("{\"op\": \"%s\", \"case\": \"%s\", \"us\": %.3f, \"bytes\": %lld, \"gb_per_s\": %.1f, "
            "\"copy_share\": %.4f, \"tflops\": %.2f, \"limit_us\": %.3f, \"target_share\": %.2f}",
            c.op.c_str(), c.what.c_str(), seconds * 1e6, static_cast<long long>(c.bytes), bandwidth / 1e9, share,
            c.flops / seconds / 1e12, limit * 1e6, c.target_share));
}

std::string Runner::json() const {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  std::string text = print(
      "{\"gpu\": \"%s\", \"driver\": %d, \"runtime\": %d, \"copy_gb_per_s\": %.1f, \"limit_tflops\": %.1f, "
      "\"limit_tflops_source\": \"%s\", \"rows\": [\n",
      properties.name, cuda_driver_version(), cuda_runtime_version(), copy_bandwidth_ / 1e9, tflops_,
      tflops_ == kTflops ? "bf16 cuBLAS on an H200, measured" : "--tflops");
  for (size_t i = 0; i < rows_.size(); ++i) text += "  " + rows_[i] + (i + 1 < rows_.size() ? ",\n" : "\n");
  return text + "]}\n";
}

}  // namespace qbits::bench

// qbits_cuda_bench [--filter TEXT] [--json PATH] [--tflops RATE]: runs the cases whose name holds TEXT; the report goes
// to PATH. A row's limit is the time its bytes take at the copy's bandwidth or its flops at RATE, whichever is longer.
int main(int argc, char** argv) {
  std::string filter, path;
  double tflops = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--filter") == 0) filter = argv[i + 1];
    if (std::strcmp(argv[i], "--json") == 0) path = argv[i + 1];
    if (std::strcmp(argv[i], "--tflops") == 0) tflops = std::atof(argv[i + 1]);
  }
  if (const std::string reason = qbits::cuda_unavailable_reason(); !reason.empty()) {
    std::fprintf(stderr, "%s\n", reason.c_str());
    return 1;
  }
  qbits::bench::Runner runner(filter, tflops);
  qbits::bench::quantize_rows(runner);
  qbits::bench::linear_4bit_rows(runner);
  if (!path.empty()) std::ofstream(path) << runner.json();
  return 0;
}
