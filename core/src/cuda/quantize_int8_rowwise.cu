#include <algorithm>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_ptx.cuh"
#include "cuda/quantize_int8_rowwise.cuh"
#include "cuda/quantize_int8_rowwise.h"

// Without outliers, or of one row, one launch, a thread block for each row. With them two, for the columns to leave out
// depend on all rows: the first looks at strips of columns, each whole, so that no memory need be cleared before; the
// second encodes.

namespace qbits::cuda {
namespace {

using namespace rowwise;

constexpr int kMaxThreads = 256;
constexpr int kResident = 4;  // thread blocks of a multiprocessor
constexpr int kKept = 4;  // runs a thread keeps from the look for the absmax until they are encoded; others come anew
constexpr int kStrip = 32 * kRun;  // columns
constexpr int kMaxChunks = 16;     // of rows, which have flags of their own

// A warp looks at a strip's columns of a row. Grid: strips, then chunks of rows.
template <class T, bool kAligned>
__global__ void __launch_bounds__(256) find_outliers(const __grid_constant__ RowwiseArgs<T> args) {
  constexpr int kBatch = 16 / sizeof(T);  // loads in flight
  constexpr int kWarps = 8;
  __shared__ uint32_t shared[kWarps][32];
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t strip = blockIdx.x % args.strips;
  const int64_t chunk = blockIdx.x / args.strips;
  const int64_t i = strip * kStrip + lane * kRun;
  const int64_t end = min((chunk + 1) * args.chunk_rows, args.rows);
  uint32_t marks = 0;
  for (int64_t first = chunk * args.chunk_rows + warp; first < end; first += kBatch * kWarps) {
    Run<T, kRun> runs[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      runs[b] = {};
      const int64_t row = first + b * kWarps;
      if (row < end && i < args.cols) runs[b] = load_row<kAligned>(args, row, i);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t row = first + b * kWarps;
      const uint32_t largest = warp_max(mark_outliers(runs[b], args.threshold, marks));
      if (row < end && lane == 0) args.magnitudes[row * args.strips + strip] = largest;
    }
  }
  shared[warp][lane] = marks;
  __syncthreads();
  if (warp > 0) return;
  for (int other = 1; other < kWarps; ++other) marks |= shared[other][lane];
  *reinterpret_cast<uint2*>(args.flags + chunk * args.flag_pitch + i) = bytes_of(marks);
}

template <bool kAligned, class T>
__device__ void encode(const RowwiseArgs<T>& args, const Int8Encoder& encoder, const Run<T, kRun>& run, uint2 flags,
                       int64_t row, int64_t i) {
  int8_t* const codes = args.codes + row * args.pitch + i;
  uint2 packed = encoder(run);
  packed.x &= ~(flags.x * 0xff);
  packed.y &= ~(flags.y * 0xff);
  if constexpr (kAligned) {
    *reinterpret_cast<uint2*>(codes) = packed;
  } else {
    const int valid = static_cast<int>(min(args.cols - i, int64_t{kRun}));
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      if (k < valid) codes[k] = static_cast<int8_t>((k < 4 ? packed.x : packed.y) >> k % 4 * 8);
    }
  }
}

enum class Outliers : uint8_t {
  None,
  Own,    // of one row, which its block finds by itself
  Found,  // by find_outliers
};

// A row after the other. After find_outliers, x itself, older than that, is read before it has ended.
template <class T, bool kAligned, Outliers kOutliers>
__global__ void __launch_bounds__(kMaxThreads, kResident) quantize_rows(const __grid_constant__ RowwiseArgs<T> args) {
  static_assert(kKept == 4);
  constexpr bool kLists = kOutliers != Outliers::None;
  __shared__ uint64_t shared[kMaxThreads / 32];
  if (args.product_follows) let_next_kernel_start();
  const int64_t first = int64_t{kRun} * threadIdx.x;
  const int64_t step = int64_t{kRun} * blockDim.x;
  const int64_t parts = ceil_div(args.cols, kKept * step);  // of a row, a block's runs at a time
  uint2 flags[kKept] = {};
  int32_t ranks[kKept] = {};
  Ranks list(shared);
  bool waits = kOutliers == Outliers::Found;

  // Bits of the largest magnitude of a part, and marks of outliers that are not yet known.
  const auto look = [&](const Run<T, kRun>(&runs)[kKept]) {
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if constexpr (kOutliers == Outliers::None) {
        largest = max(largest, largest_magnitude(runs[j]));
      } else {
        uint32_t marks = 0;
        largest = max(largest, mark_outliers(runs[j], args.threshold, marks));
        flags[j] = bytes_of(marks);
      }
    }
    return largest;
  };
  const auto load = [&](int64_t row, int64_t part, Run<T, kRun>(&runs)[kKept]) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t i = first + (part * kKept + j) * step;
      runs[j] = {};
      if (row < args.rows && i < args.cols) runs[j] = load_row<kAligned>(args, row, i);
    }
  };
  const auto load_flags = [&](int64_t part) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t i = first + (part * kKept + j) * step;
      flags[j] = make_uint2(0, 0);
      for (int c = 0; i < args.cols && c < args.chunks; ++c) {
        const uint2 own = *reinterpret_cast<const uint2*>(args.flags + c * args.flag_pitch + i);
        flags[j].x |= own.x;
        flags[j].y |= own.y;
      }
    }
  };
  const auto rank = [&] {
    int found[kKept];
#pragma unroll
    for (int j = 0; j < kKept; ++j) found[j] = __popc(flags[j].x) + __popc(flags[j].y);
    list.next(found, ranks);
  };
  const auto finish = [&](int64_t row, int64_t part, const Int8Encoder& encoder, const Run<T, kRun>(&runs)[kKept]) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t i = first + (part * kKept + j) * step;
      if constexpr (kLists) {
        if ((flags[j].x | flags[j].y) != 0) {
          int32_t at = ranks[j];
#pragma unroll
          for (int k = 0; k < kRun; ++k) {
            if (((k < 4 ? flags[j].x : flags[j].y) >> k % 4 * 8 & 1) == 0) continue;
            if (row == 0) args.columns[at] = static_cast<int32_t>(i + k);
            if (row < args.rows && args.values != nullptr && at < kOutlierValues) {
              args.values[row * kOutlierValues + at] = from_float<T>(runs[j][k]);
            }
            ++at;
          }
        }
      }
      if (row < args.rows && i < args.cols) encode<kAligned>(args, encoder, runs[j], flags[j], row, i);
    }
  };

  bool listed = false;
  for (int64_t row = blockIdx.x; row < max(args.rows, int64_t{1});
       row += gridDim.x) {  // without rows, there is a count
    Run<T, kRun> kept[kKept];
    load(row, 0, kept);
    uint32_t largest = 0;
    if constexpr (kOutliers == Outliers::Found) {
      if (waits) wait_for_kernels_before();
      waits = false;
      for (int64_t s = threadIdx.x; row < args.rows && s < args.strips; s += blockDim.x) {
        largest = max(largest, args.magnitudes[row * args.strips + s]);
      }
      if (!listed || parts > 1) load_flags(0);
    } else {
#pragma unroll 1
      for (int64_t part = parts - 1; part > 0; --part) {
        Run<T, kRun> runs[kKept];
        load(row, part, runs);
        largest = max(largest, look(runs));
      }
      largest = max(largest, look(kept));
    }
    const float scale = finite_scale(block_max(largest, reinterpret_cast<uint32_t*>(shared)));
    if (row < args.rows && threadIdx.x == 0) args.scales[row] = scale;
    const Int8Encoder encoder(scale);
    // The list is one for all rows: what a block has of the first part it keeps.
    if (kLists && (!listed || parts > 1)) {
      __syncthreads();
      list = Ranks(shared);
      rank();
    }
    listed = true;
    if (parts > 0) finish(row, 0, encoder, kept);
#pragma unroll 1
    for (int64_t part = 1; part < parts; ++part) {
      load(row, part, kept);
      if constexpr (kOutliers == Outliers::Own) look(kept);
      if constexpr (kOutliers == Outliers::Found) load_flags(part);
      if constexpr (kLists) {
        __syncthreads();
        rank();
      }
      finish(row, part, encoder, kept);
    }
    for (int64_t i = args.cols + threadIdx.x; row < args.rows && i < args.pitch; i += blockDim.x) {
      args.codes[row * args.pitch + i] = 0;
    }
    if constexpr (kLists) {
      const int32_t count = list.count();
      if (row == 0) {
        // linear_int8 looks at no more.
        const int64_t columns = args.values != nullptr ? min(args.cols, int64_t{kOutlierValues}) : args.cols;
        for (int64_t i = count + int64_t{threadIdx.x}; i < columns; i += blockDim.x) args.columns[i] = -1;
        if (threadIdx.x == 0) *args.count = count;
      }
      if (row < args.rows && args.values != nullptr) {
        for (int64_t i = count + int64_t{threadIdx.x}; i < kOutlierValues; i += blockDim.x) {
          args.values[row * kOutlierValues + i] = from_float<T>(0.0F);
        }
      }
    }
  }
}

// How the workspace is used with a threshold.
struct Scratch {
  int64_t flag_pitch;
  int64_t strips;
  int64_t chunks;
  int64_t bytes;

  Scratch(int64_t rows, int64_t cols)
      : flag_pitch(ceil_div(cols, int64_t{kStrip}) * kStrip),
        strips(ceil_div(cols, int64_t{kStrip})),
        chunks(std::clamp<int64_t>(rows / 64, 1, kMaxChunks)),
        bytes(chunks * flag_pitch + rows * strips * 4) {}
};

template <class T>
void run(const QuantizeInt8RowwiseArgs& args, const Int8Layout& layout, Stream stream) {
  constexpr std::string_view op = "quantize_int8_rowwise";
  RowwiseArgs<T> kernel_args{.x = static_cast<const T*>(args.x),
                             .rows = args.rows,
                             .cols = args.cols,
                             .pitch = layout.pitch,
                             .threshold = args.threshold,
                             .codes = args.codes,
                             .scales = args.scales,
                             .columns = args.outlier_columns,
                             .count = args.outlier_count,
                             .values = static_cast<T*>(layout.outlier_values),
                             .product_follows = layout.product_follows};
  const bool aligned =
      args.cols % kRun == 0 && layout.pitch % kRun == 0 && is_aligned(args.x, 16) && is_aligned(args.codes, kRun);
  const int64_t runs = ceil_div(args.cols, int64_t{kRun});
  // As many threads as keep the row, up to the most.
  const int threads = static_cast<int>(std::clamp<int64_t>(ceil_div(runs, int64_t{kKept} * 32) * 32, 64, kMaxThreads));
  const int64_t blocks = std::clamp<int64_t>(args.rows, 1, INT32_MAX);
  dispatch_bool(aligned, [&](auto is_aligned) {
    const LaunchShape shape{.blocks = blocks, .threads = threads};
    if (args.threshold == 0) {
      return launch(op, quantize_rows<T, is_aligned, Outliers::None>, shape, stream, kernel_args);
    }
    if (args.rows <= 1) {
      return launch(op, quantize_rows<T, is_aligned, Outliers::Own>, shape, stream, kernel_args);
    }
    const Scratch scratch(args.rows, args.cols);
    kernel_args.flags = static_cast<uint8_t*>(args.workspace);
    kernel_args.magnitudes = reinterpret_cast<uint32_t*>(kernel_args.flags + scratch.chunks * scratch.flag_pitch);
    kernel_args.flag_pitch = scratch.flag_pitch;
    kernel_args.strips = scratch.strips;
    kernel_args.chunks = static_cast<int>(scratch.chunks);
    kernel_args.chunk_rows = ceil_div(args.rows, scratch.chunks);
    if (scratch.strips > 0) {
      launch(op, find_outliers<T, is_aligned>, {.blocks = scratch.strips * scratch.chunks, .threads = 256}, stream,
             kernel_args);
    }
    // As many blocks as run at once: each lists the outlier columns for itself.
    launch(op, quantize_rows<T, is_aligned, Outliers::Found>,
           {.blocks = std::min<int64_t>(blocks, kResident * device_facts(args.device, op).sm_count),
            .threads = threads,
            .overlaps = scratch.strips > 0},
           stream, kernel_args);
  });
}

}  // namespace

int64_t quantize_int8_rowwise_workspace(int64_t rows, int64_t cols, float threshold, Device) {
  return threshold > 0 && rows > 1 ? Scratch(rows, cols).bytes : 0;
}

void quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args, const Int8Layout& layout, Stream stream) {
  dispatch_float(args.x_dtype, "quantize_int8_rowwise", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run<T>(args, layout, stream);
  });
}

void quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, "quantize_int8_rowwise");
  quantize_int8_rowwise(args, {.pitch = args.cols}, stream);
}

}  // namespace qbits::cuda
