#include "cuda/early_reads.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "ops/ceil_div.h"

namespace qbits::cuda {
namespace {

// A place in a graph under capture: after `node` alone.
struct Place {
  unsigned long long capture = 0;  // its number, unique in the process
  cudaGraphNode_t node = nullptr;

  bool operator==(const Place&) const = default;
};

// Where the next kernel on the stream will come; no capture outside of one, no node where it follows on several.
Place place_of(Stream stream) {
  cudaStreamCaptureStatus status{};
  Place place;
  const cudaGraphNode_t* before = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t count = 0;
#if CUDART_VERSION >= 13000
  constexpr auto info = cudaStreamGetCaptureInfo;
#else
  constexpr auto info = cudaStreamGetCaptureInfo_v3;
#endif
  if (info(native(stream), &status, &place.capture, nullptr, &before, &edges, &count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // of the legacy stream while another is captured: the launch will say so
    return {};
  }
  if (status != cudaStreamCaptureStatusActive) return {};
  if (count == 1) place.node = before[0];
  return place;
}

// The kernel of this class that the thread launched last under capture.
struct Launched {
  Place place;
  std::array<MemoryRange, 2> written;
};
thread_local Launched last;

// Whether they have a line of a cache in common: what is read early brings all of its line.
bool overlap(const MemoryRange& a, const MemoryRange& b) {
  constexpr uintptr_t kLine = 128;
  const auto first_line = [](const MemoryRange& m) { return reinterpret_cast<uintptr_t>(m.begin) / kLine; };
  const auto last_line = [](const MemoryRange& m) {
    return (reinterpret_cast<uintptr_t>(m.begin) + m.bytes - 1) / kLine;
  };
  return a.bytes > 0 && b.bytes > 0 && first_line(a) <= last_line(b) && first_line(b) <= last_line(a);
}

// All that a kernel reads of a weight.
std::array<MemoryRange, 6> memory_of_weight(const Weight4bitArgs& weight) {
  const auto size = [](int64_t bytes) { return static_cast<size_t>(bytes); };
  const int64_t numel = weight.rows * weight.cols;
  const MemoryRange codes{weight.codes, size(codes_size(*weight.format, numel))};
  if (weight.is_affine()) {
    const int64_t groups = weight.rows * ceil_div(weight.cols, weight.block_size);
    const size_t bytes = size(groups * itemsize(weight.scale_dtype));
    return {codes, MemoryRange{weight.scales, bytes}, MemoryRange{weight.zeros, bytes}};
  }
  const AbsmaxArgs& absmax = weight.absmax;
  const int64_t scales = ceil_div(numel, weight.block_size);
  if (!absmax.is_nested()) return {codes, MemoryRange{absmax.values, size(scales) * sizeof(float)}};
  return {codes, MemoryRange{absmax.values, size(scales)},
          MemoryRange{absmax.nested_absmax, size(ceil_div(scales, kNestedBlockSize)) * sizeof(float)},
          MemoryRange{absmax.nested_code, 256 * sizeof(float)}, MemoryRange{absmax.offset, sizeof(float)}};
}

}  // namespace

MemoryRange memory_of(const void* matrix, int64_t rows, int64_t cols, DType dtype) {
  return {matrix, matrix == nullptr ? 0 : static_cast<size_t>(rows * cols * itemsize(dtype))};
}

EarlyReads::EarlyReads(Stream stream) : stream_(stream) {
  const Place place = place_of(stream);
  captured_ = place.capture != 0;
  follows_ = place.node != nullptr && place == last.place;
}

bool EarlyReads::allowed(const MemoryRange& memory) const {
  return follows_ && std::ranges::none_of(last.written, [&](const MemoryRange& w) { return overlap(memory, w); });
}

bool EarlyReads::allowed(const Weight4bitArgs& weight, std::initializer_list<MemoryRange> others) const {
  const auto each = [this](const MemoryRange& memory) { return allowed(memory); };
  return std::ranges::all_of(memory_of_weight(weight), each) && std::ranges::all_of(others, each);
}

void EarlyReads::launched(const std::array<MemoryRange, 2>& memory) const {
  if (captured_) last = {place_of(stream_), memory};
}

}  // namespace qbits::cuda
