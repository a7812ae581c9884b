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
  __shared__ uint2 shared[kWarps][32];
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t strip = blockIdx.x % args.strips;
  const int64_t chunk = blockIdx.x / args.strips;
  const int64_t i = strip * kStrip + lane * kRun;
  const int64_t end = min((chunk + 1) * args.chunk_rows, args.rows);
  Marks<T> marks;
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
      const uint32_t largest = warp_max(marks.add(runs[b], args.threshold));
      if (row < end && lane == 0) args.magnitudes[row * args.strips + strip] = largest;
    }
  }
  uint2 flags = marks.bytes();
  shared[warp][lane] = flags;
  __syncthreads();
  if (warp > 0) return;
  for (int other = 1; other < kWarps; ++other) {
    flags.x |= shared[other][lane].x;
    flags.y |= shared[other][lane].y;
  }
  *reinterpret_cast<uint2*>(args.flags + chunk * args.flag_pitch + i) = flags;
}

template <bool kAligned, class T>
__device__ void encode(const RowwiseArgs<T>& args, const Int8Encoder& encoder, const Run<T, kRun>& run, uint2 flags,
                       int64_t row, int64_t i) {
  int8_t* const codes = args.codes + row * args.pitch + i;
  uint2 packed = encoder(run);
  packed.x &= ~flags.x;
  packed.y &= ~flags.y;
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
  __shared__ int32_t first_columns[kOutlierValues];
  if (args.product_follows) let_next_kernel_start();
  const int64_t first = int64_t{kRun} * threadIdx.x;
  const int64_t step = int64_t{kRun} * blockDim.x;
  const int64_t parts = ceil_div(args.cols, kKept * step);  // of a row, a block's runs at a time
  Run<T, kRun> kept[kKept];
  uint2 flags[kKept] = {};
  Ranks list(shared);

  const auto column = [&](int64_t part, int j) { return first + (part * kKept + j) * step; };
  const auto load = [&](int64_t row, int64_t part) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      kept[j] = {};
      if (row < args.rows && column(part, j) < args.cols) kept[j] = load_row<kAligned>(args, row, column(part, j));
    }
  };
  // Bits of the largest magnitude, and outliers that are not yet known.
  const auto look = [&] {
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if constexpr (kOutliers == Outliers::None) {
        largest = max(largest, largest_magnitude(kept[j]));
      } else {
        Marks<T> marks;
        largest = max(largest, marks.add(kept[j], args.threshold));
        flags[j] = marks.bytes();
      }
    }
    return largest;
  };
  const auto load_flags = [&](int64_t part) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      flags[j] = make_uint2(0, 0);
      for (int c = 0; column(part, j) < args.cols && c < args.chunks; ++c) {
        const uint2 own = *reinterpret_cast<const uint2*>(args.flags + c * args.flag_pitch + column(part, j));
        flags[j].x |= own.x;
        flags[j].y |= own.y;
      }
    }
  };
  const auto enlist = [&](int64_t part, bool writes) {
    int found[kKept];
    int32_t ranks[kKept];
#pragma unroll
    for (int j = 0; j < kKept; ++j) found[j] = count_marks(flags[j]);
    list.next(found, ranks);
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if (found[j] == 0) continue;
      int32_t at = ranks[j];
      for (int k = 0; k < kRun; ++k) {
        if (!is_marked(flags[j], k)) continue;
        const auto i = static_cast<int32_t>(column(part, j) + k);
        if (at < kOutlierValues) first_columns[at] = i;
        if (writes) args.columns[at] = i;
        ++at;
      }
    }
  };
  const auto finish = [&](int64_t row, int64_t part, const Int8Encoder& encoder) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t i = column(part, j);
      if (row < args.rows && i < args.cols) encode<kAligned>(args, encoder, kept[j], flags[j], row, i);
    }
  };

  bool listed = false;  // The list is one for all rows, and so are the flags if they are of one part.
  const int64_t last = parts - 1;
  for (int64_t row = blockIdx.x; row < max(args.rows, int64_t{1}); row += gridDim.x) {  // without rows: a count
    uint32_t largest = 0;
    if constexpr (kOutliers == Outliers::Found) {
      if (parts > 0) load(row, last);
      if (!listed) wait_for_kernels_before();
      for (int64_t s = threadIdx.x; row < args.rows && s < args.strips; s += blockDim.x) {
        largest = max(largest, args.magnitudes[row * args.strips + s]);
      }
      for (int64_t part = listed ? last : 0; part < parts && (!listed || parts > 1); ++part) {
        load_flags(part);
        if (!listed) enlist(part, row == 0);
      }
    } else {
#pragma unroll 1
      for (int64_t part = 0; part < parts; ++part) {
        load(row, part);
        largest = max(largest, look());
        if constexpr (kLists) enlist(part, true);
      }
    }
    const float scale = finite_scale(block_max(largest, reinterpret_cast<uint32_t*>(shared)));
    if (row < args.rows && threadIdx.x == 0) args.scales[row] = scale;
    float value = 0.0F;  // of the first outlier columns, one for each of as many threads
    const bool has_value = kLists && row < args.rows && args.values != nullptr && threadIdx.x < kOutlierValues;
    if (has_value && static_cast<int32_t>(threadIdx.x) < list.count()) {
      value = to_float(args.x[row * args.cols + first_columns[threadIdx.x]]);
    }
    const Int8Encoder encoder(scale);
    if (parts > 0) finish(row, last, encoder);
#pragma unroll 1
    for (int64_t part = 0; part < last; ++part) {
      load(row, part);
      if constexpr (kOutliers == Outliers::Own) look();
      if constexpr (kOutliers == Outliers::Found) load_flags(part);
      finish(row, part, encoder);
    }
    for (int64_t i = args.cols + threadIdx.x; row < args.rows && i < args.pitch; i += blockDim.x) {
      args.codes[row * args.pitch + i] = 0;
    }
    if constexpr (kLists) {
      if (has_value) args.values[row * kOutlierValues + threadIdx.x] = from_float<T>(value);
      if (row == 0) {
        // linear_int8 looks at no more.
        const int64_t columns = args.values != nullptr ? min(args.cols, int64_t{kOutlierValues}) : args.cols;
        for (int64_t i = list.count() + int64_t{threadIdx.x}; i < columns; i += blockDim.x) args.columns[i] = -1;
        if (threadIdx.x == 0) *args.count = list.count();
      }
    }
    listed = true;
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
                             .threshold = threshold_of<T>(args.threshold),
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
