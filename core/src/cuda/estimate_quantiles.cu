#include "ops/estimate_quantiles.h"

#include <algorithm>

#include "cuda/float_types.cuh"
#include "cuda/launch.h"

// Counting by leading key bits, heavy buckets split twice, then ranks to values, as ops/estimate_quantiles.h
// defines. Nothing waits for the host: later passes read how many heavy buckets there are and may find none.

namespace qbits::cuda {
namespace {

inline constexpr int kBuckets = 1 << 16;       // by the leading 16 bits
inline constexpr int kParts = 256;             // a heavy bucket is split into
inline constexpr int kSlots = kQuantileHeavy;  // heavy buckets a level can have, at most one less
inline constexpr uint16_t kLight = 0xffff;
inline constexpr int kThreads = 1024;
inline constexpr int kScanned = kBuckets / kThreads;  // counters a thread of the scan takes
inline constexpr int kTile = 2 * 8 * kThreads;        // 2^14 elements
inline constexpr int kTilesBetweenMoves = 3;

using Count = unsigned long long;

struct Workspace {
  Count counts[kBuckets + 1];  // after the scan: elements in buckets below; the last entry is m
  Count parts[2][kSlots * kParts];
  uint16_t slots[kBuckets];
  uint16_t part_slots[kSlots * kParts];
  unsigned heavy[2];
  uint32_t max_key;
  uint32_t max_inverted_key;  // ~ of the smallest key
};

// The counter of a float32 at a level, -1 for none. The first level counts by the bits themselves, in the order of
// keys only when it leaves shared memory.
template <int kLevel>
__device__ int counter_of(const Workspace& w, float x) {
  if (isnan(x)) return -1;
  if constexpr (kLevel == 0) return static_cast<int>(__float_as_uint(x) >> 16);
  const uint32_t key = quantile_key(x);
  const uint16_t slot = w.slots[key >> 16];
  if (slot == kLight) return -1;
  const int part = slot * kParts + static_cast<int>(key >> 8 & 255);
  if constexpr (kLevel == 1) return part;
  const uint16_t part_slot = w.part_slots[part];
  return part_slot == kLight ? -1 : part_slot * kParts + static_cast<int>(key & 255);
}

template <int kLevel>
__device__ int position_of(int index) {
  return kLevel == 0 ? static_cast<int>(quantile_key16(static_cast<uint16_t>(index))) : index;
}

template <int kLevel>
__device__ Count* counters(Workspace& w) {
  return kLevel == 0 ? w.counts : w.parts[kLevel == 0 ? 0 : kLevel - 1];
}

// Counters in shared memory are 16 bits wide, two a word. Every kTilesBetweenMoves tiles those of 2^14 or more move to
// device memory, so that none overflows: 2^14 + 3 * 2^14 < 2^16.
struct SharedCounter {
  uint32_t* words;

  __device__ void add(int index, uint32_t amount) const { atomicAdd(&words[index / 2], amount << (index % 2 * 16)); }
};

// For devices with too little shared memory.
template <int kLevel>
struct GlobalCounter {
  Count* total;

  __device__ void add(int index, uint32_t amount) const {
    atomicAdd(&total[position_of<kLevel>(index)], Count{amount});
  }
};

template <int kLevel>
inline constexpr int kCounters = kLevel == 0 ? kBuckets : kSlots * kParts;

// What a thread knows of all its float32.
struct Extremes {
  uint32_t max_key = 0;
  uint32_t max_inverted_key = 0;

  __device__ void see(float x) {
    if (isnan(x)) return;
    max_key = max(max_key, quantile_key(x));
    max_inverted_key = max(max_inverted_key, ~quantile_key(x));
  }
};

// The first `valid` of eight float32, equal neighbours together.
template <int kLevel, class Counter>
__device__ void count_run(const Counter& counter, const Workspace& w, const Run<float, 8>& x, int valid,
                          Extremes& extremes) {
  int index[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    index[k] = k < valid ? counter_of<kLevel>(w, x[k]) : -1;
    if (kLevel == 0 && k < valid) extremes.see(x[k]);
  }
  uint32_t amount = 0;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    ++amount;
    if (k < 7 && index[k] == index[k < 7 ? k + 1 : k]) continue;
    if (index[k] >= 0) counter.add(index[k], amount);
    amount = 0;
  }
}

// The same of a 16-bit type, whose NaNs are counted, too.
template <int kLevel, class Counter, class T>
__device__ void count_run(const Counter& counter, const Workspace&, const Run<T, 8>& x, int valid, Extremes&) {
  const auto& pairs = x.words;
  const bool equal = pairs[0] == pairs[1] && pairs[0] == pairs[2] && pairs[0] == pairs[3];
  if (equal && pairs[0] >> 16 == (pairs[0] & 0xffffU) && valid >= 8) {
    counter.add(static_cast<int>(pairs[0] & 0xffffU), 8);
    return;
  }
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    if (k < valid) counter.add(static_cast<int>(pairs[k / 2] >> (k % 2 * 16) & 0xffffU), 1);
  }
}

// Adds counters to those in device memory and clears them: all, or groups of eight in which one has a bit of `mask`.
template <int kLevel>
__device__ void move_counts(uint32_t* words, Count* total, uint32_t mask) {
  __syncthreads();
  uint4* const vectors = reinterpret_cast<uint4*>(words);
  for (int i = static_cast<int>(threadIdx.x); i < kCounters<kLevel> / 8; i += kThreads) {
    const uint4 vector = vectors[i];
    if (((vector.x | vector.y | vector.z | vector.w) & mask) == 0) continue;
    const uint32_t own[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint32_t count = own[k / 2] >> (k % 2 * 16) & 0xffffU;
      if (count > 0) atomicAdd(&total[position_of<kLevel>(8 * i + k)], Count{count});
    }
    vectors[i] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
}

template <class T, int kLevel, bool kAligned, bool kShared>
__global__ void __launch_bounds__(kThreads, 1) count_keys(const T* x, int64_t n, Workspace* workspace) {
  extern __shared__ uint4 vectors[];
  uint32_t* const words = reinterpret_cast<uint32_t*>(vectors);
  Workspace& w = *workspace;
  if (kLevel > 0 && w.heavy[kLevel > 0 ? kLevel - 1 : 0] == 0) return;
  Count* const total = counters<kLevel>(w);
  const int thread = static_cast<int>(threadIdx.x);
  const auto counter = [&] {
    if constexpr (kShared) {
      return SharedCounter{words};
    } else {
      return GlobalCounter<kLevel>{total};
    }
  }();
  Run<T, 8> values[2];
  const auto load = [&](int64_t tile) {
    const int64_t i = tile + thread * 8;
    if (kAligned && tile + kTile <= n) {
#pragma unroll
      for (int u = 0; u < 2; ++u) values[u] = load_run<8>(x, i + u * kThreads * 8);
    } else {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int64_t first = i + u * kThreads * 8;
        values[u] = load_run<8>(x, first, static_cast<int>(min(n - first, int64_t{8})));
      }
    }
  };

  int64_t tile = static_cast<int64_t>(blockIdx.x) * kTile;
  load(tile);
  if constexpr (kShared) {
    for (int i = thread; i < kCounters<kLevel> / 8; i += kThreads) vectors[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
  }
  Extremes extremes;
  for (int tiles = 1;; ++tiles) {
    const Run<T, 8> now[2] = {values[0], values[1]};
    const int64_t first = tile + thread * 8;
    const bool whole = tile + kTile <= n;
    tile += static_cast<int64_t>(gridDim.x) * kTile;
    if (tile < n) load(tile);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      count_run<kLevel>(counter, w, now[u], whole ? 8 : static_cast<int>(min(n - first - u * kThreads * 8, int64_t{8})),
                        extremes);
    }
    if (tile >= n) break;
    if (kShared && tiles % kTilesBetweenMoves == 0) move_counts<kLevel>(words, total, 0xc000c000U);
  }
  if constexpr (kShared) move_counts<kLevel>(words, total, 0xffffffffU);

  if constexpr (kLevel == 0 && std::is_same_v<T, float>) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      extremes.max_key = max(extremes.max_key, __shfl_xor_sync(0xffffffffU, extremes.max_key, offset));
      extremes.max_inverted_key =
          max(extremes.max_inverted_key, __shfl_xor_sync(0xffffffffU, extremes.max_inverted_key, offset));
    }
    if (thread % 32 == 0) {
      atomicMax(&w.max_key, extremes.max_key);
      atomicMax(&w.max_inverted_key, extremes.max_inverted_key);
    }
  }
}

__device__ bool is_heavy(Count count, Count m) { return count * kQuantileHeavy > m; }

// The exclusive sum of a value over the threads of a block, and the total.
__device__ Count exclusive_sum(Count value, Count& total) {
  __shared__ Count warps[32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Count inclusive = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const Count other = __shfl_up_sync(0xffffffffU, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == 31) warps[warp] = inclusive;
  __syncthreads();
  Count before = 0;
  total = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / 32; ++i) {
    if (i < warp) before += warps[i];
    total += warps[i];
  }
  return before + inclusive - value;
}

// Counts to sums in place, and a slot for each heavy bucket; those of NaNs, whose bits exceed `infinity`, are left out.
// One thread block.
__global__ void __launch_bounds__(kThreads, 1) scan_buckets(Workspace* workspace, int infinity) {
  Workspace& w = *workspace;
  const auto count_of = [&](int bucket) {
    return bucket >= 0x7fff - infinity && bucket <= 0x8000 + infinity ? w.counts[bucket] : 0;
  };
  const int first = static_cast<int>(threadIdx.x) * kScanned;
  Count own = 0;
#pragma unroll 16
  for (int i = 0; i < kScanned; ++i) own += count_of(first + i);
  Count m = 0;
  Count below = exclusive_sum(own, m);
#pragma unroll 16
  for (int i = 0; i < kScanned; ++i) {
    const Count count = count_of(first + i);
    w.counts[first + i] = below;
    below += count;
    w.slots[first + i] = is_heavy(count, m) ? static_cast<uint16_t>(atomicAdd(&w.heavy[0], 1U)) : kLight;
  }
  if (threadIdx.x == kThreads - 1) w.counts[kBuckets] = m;
}

// A slot for each heavy part of a heavy bucket. Slots come in any order: values do not depend on it.
__global__ void __launch_bounds__(kThreads, 1) choose_parts(Workspace* workspace) {
  Workspace& w = *workspace;
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= kSlots * kParts) return;
  const bool heavy = w.heavy[0] > 0 && is_heavy(w.parts[0][i], w.counts[kBuckets]);
  w.part_slots[i] = heavy ? static_cast<uint16_t>(atomicAdd(&w.heavy[1], 1U)) : kLight;
}

// A range of keys and the elements in it.
struct Bucket {
  uint32_t low;
  Count first;
  Count count;
};

// Narrows a bucket to the part that holds element k. All lanes of a warp take part and agree.
__device__ int narrow(const Count* parts, Count k, int shift, Bucket& bucket) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Count own = 0;
  for (int i = 0; i < 8; ++i) own += parts[lane * 8 + i];
  Count inclusive = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const Count other = __shfl_up_sync(0xffffffffU, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  const unsigned reached = __ballot_sync(0xffffffffU, bucket.first + inclusive > k);
  const int holder = __ffs(static_cast<int>(reached)) - 1;
  bucket.first += __shfl_sync(0xffffffffU, inclusive - own, holder);
  int part = holder * 8;
  while (bucket.first + parts[part] <= k) bucket.first += parts[part++];
  bucket.count = parts[part];
  bucket.low |= static_cast<uint32_t>(part) << shift;
  return part;
}

template <bool kIsFloat32>
__device__ uint32_t key_of_rank(const Workspace& w, Count k) {
  int low = 0;  // the last bucket with counts[low] <= k
  for (int step = kBuckets / 2; step > 0; step /= 2) {
    if (w.counts[low + step] <= k) low += step;
  }
  if constexpr (!kIsFloat32) return static_cast<uint32_t>(low);
  Bucket bucket{static_cast<uint32_t>(low) << 16, w.counts[low], w.counts[low + 1] - w.counts[low]};
  Count width = 1U << 16;
  const uint16_t slot = w.slots[low];
  if (slot != kLight) {
    const int part = narrow(w.parts[0] + slot * kParts, k, 8, bucket);
    width = 1U << 8;
    const uint16_t part_slot = w.part_slots[slot * kParts + part];
    if (part_slot != kLight) {
      narrow(w.parts[1] + part_slot * kParts, k, 0, bucket);
      width = 1;
    }
  }
  const uint32_t key = bucket.low + static_cast<uint32_t>((k - bucket.first) * width / bucket.count);
  return min(max(key, ~w.max_inverted_key), w.max_key);
}

// A warp a quantile.
template <class T>
__global__ void __launch_bounds__(256)
    pick_quantiles(const Workspace* workspace, double offset, double step, int64_t num_quantiles, float* quantiles) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (i >= num_quantiles) return;
  const Workspace& w = *workspace;
  const int64_t m = static_cast<int64_t>(w.counts[kBuckets]);
  float value = quiet_nan();
  if (m > 0) {
    const Count k = static_cast<Count>(quantile_rank(offset, step, num_quantiles, i, m));
    const uint32_t key = key_of_rank<std::is_same_v<T, float>>(w, k);
    if constexpr (std::is_same_v<T, float>) {
      value = quantile_value(key);
    } else {
      const uint16_t bits = quantile_bits16(key);
      value = to_float(reinterpret_cast<const T&>(bits));
    }
  }
  if (threadIdx.x % 32 == 0) quantiles[i] = value;
}

inline constexpr std::string_view kOp = "estimate_quantiles";

template <class T, int kLevel, bool kAligned>
void launch_count(const T* x, int64_t n, Workspace* workspace, Stream stream) {
  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount, kOp);
  const int64_t blocks = std::min<int64_t>(ceil_div(n, kTile), multiprocessors);
  const size_t bytes = kCounters<kLevel> * sizeof(uint16_t);
  if (static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, kOp)) >= bytes) {
    auto* kernel = count_keys<T, kLevel, kAligned, true>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), kOp);
    launch(kOp, kernel, {.blocks = blocks, .threads = kThreads, .shared_bytes = bytes}, stream, x, n, workspace);
  } else {
    launch(kOp, count_keys<T, kLevel, kAligned, false>, {.blocks = blocks, .threads = kThreads}, stream, x, n,
           workspace);
  }
}

template <class T, bool kAligned>
void run(const EstimateQuantilesArgs& args, Workspace* workspace, Stream stream) {
  const T* x = static_cast<const T*>(args.x);
  check(cudaMemsetAsync(workspace, 0, sizeof(Workspace), native(stream)), kOp);
  launch_count<T, 0, kAligned>(x, args.n, workspace, stream);
  launch(kOp, scan_buckets, {.blocks = 1, .threads = kThreads}, stream, workspace,
         std::is_same_v<T, __half> ? 0x7c00 : 0x7f80);
  if constexpr (std::is_same_v<T, float>) {
    launch_count<T, 1, kAligned>(x, args.n, workspace, stream);
    launch(kOp, choose_parts, {.blocks = ceil_div(kSlots * kParts, kThreads), .threads = kThreads}, stream, workspace);
    launch_count<T, 2, kAligned>(x, args.n, workspace, stream);
  }
  launch(kOp, pick_quantiles<T>, {.blocks = ceil_div(args.num_quantiles, 8), .threads = 256}, stream, workspace,
         args.offset, quantile_step(args.offset, args.num_quantiles), args.num_quantiles, args.quantiles);
}

}  // namespace

int64_t estimate_quantiles_workspace(int64_t) { return sizeof(Workspace) + alignof(Workspace); }

void estimate_quantiles(const EstimateQuantilesArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  const uintptr_t address = reinterpret_cast<uintptr_t>(args.workspace);
  const uintptr_t rounded = (address + alignof(Workspace) - 1) / alignof(Workspace) * alignof(Workspace);
  Workspace* workspace = reinterpret_cast<Workspace*>(rounded);
  dispatch_float(args.x_dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(is_aligned(args.x, 16), [&](auto aligned) { run<T, aligned>(args, workspace, stream); });
  });
}

}  // namespace qbits::cuda
