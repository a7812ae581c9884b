#include <algorithm>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/quantize_int8_outliers.cuh"

// Rows are encoded each by itself, in one pass over x. With a threshold the columns to leave out depend on all rows:
// the pass marks them, and a second kernel, or for one row the same, takes them out of the codes, unless marks are all
// that is wanted.
//
// Of few rows each has a block of as many threads as it has runs, up to 1024: less time, for each computes little.

namespace qbits::cuda {
namespace {

using namespace rowwise;

constexpr int kManyKept = 4;    // runs a thread keeps from the look for the absmax until they are encoded
constexpr int kMinGroup = 128;  // threads that have a row
constexpr int kMaxGroup = 256;
constexpr int kFewGroup = 1024;                   // of few rows
constexpr int kResident = 3;                      // such groups of a multiprocessor
constexpr int kResidentPlain = kHasSm80 ? 5 : 4;  // without marks, which take registers
constexpr int kMaxThreads = kMaxGroup * kResident;
constexpr int kFewBlocks = 64;  // that few rows are shared out to
constexpr int kTakeOutBlocks = 64;
constexpr int kTakeOutRows = 8;  // of a block, at least

enum class Outliers : uint8_t {
  None,
  One,  // in one row
  Few,  // in no more rows than there are blocks
  Many,
};

constexpr int threads_of(Outliers outliers, int kept) {
  return kept == 1 ? kFewGroup : outliers == Outliers::Many ? kMaxThreads : kMaxGroup;
}
constexpr int resident(Outliers outliers, int kept) {
  return kept == 1 || outliers == Outliers::Many ? 1 : outliers == Outliers::One ? kResident : kResidentPlain;
}

// What a group of threads does with rows, in parts of as many columns as they keep.
template <class T, bool kAligned, bool kMarks, int kKept>
class RowQuantizer {
 public:
  __device__ RowQuantizer(const RowwiseArgs<T>& args, int thread)
      : args_(args), first_(kRun * thread), step_(kRun * args.group), cols_(static_cast<uint32_t>(args.cols)) {}

  __device__ int parts() const { return static_cast<int>(ceil_div(cols_, kKept * step_)); }

  __device__ void load(int64_t row, int part) {
    const T* const x = args_.x + row * args_.cols;
#pragma unroll
    for (int j = 0; j < kKept; ++j) kept_[j] = load_row<kAligned>(x, column(part, j), cols_);
  }

  // The next row, behind this one's back.
  __device__ void prefetch(int64_t row) {
    if (row >= args_.rows) return;
    const T* const x = args_.x + row * args_.cols;
#pragma unroll
    for (int j = 0; j < kKept; ++j) next_[j] = load_row<kAligned>(x, column(0, j), cols_);
  }
  __device__ void advance() {
#pragma unroll
    for (int j = 0; j < kKept; ++j) kept_[j] = next_[j];
  }

  // Bits of the largest magnitude; marks outliers.
  __device__ uint32_t look() {
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if constexpr (kMarks) {
        Marks<T> marks;
        largest = max(largest, marks.add(kept_[j], args_.threshold));
        marks_ |= marks.bits() << j * 8;
      } else {
        largest = max(largest, largest_magnitude(kept_[j]));
      }
    }
    return largest;
  }

  // Eight bits for run j of the thread, of four at most.
  __device__ uint32_t marks(int j) const { return marks_ >> j * 8 & 255; }

  // Of a row whose marks are not kept, since it is too long or alone: into the block's own, after those of rows before.
  __device__ void leave_marks(uint8_t* to, int part, bool first) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t at = column(part, j) / kRun;
      if (at < args_.mark_pitch) to[at] = static_cast<uint8_t>((first ? 0 : to[at]) | marks(j));
    }
    marks_ = 0;
  }

  // Encodes a row of which the group holds the last part.
  __device__ void encode(int64_t row, float scale) {
    int8_t* const to = args_.codes + row * args_.pitch;
    const Int8Encoder encoder(scale);
    const int last = parts() - 1;
#pragma unroll 1
    for (int i = last; i < 2 * last + 1; ++i) {
      const int part = i == last ? last : i - last - 1;
      if (part != last) load(row, part);
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        const uint32_t k = column(part, j);
        if (k < cols_) store_codes<kAligned>(to, k, cols_, encoder(kept_[j]));
      }
    }
    if (first_ == 0) args_.scales[row] = scale;
    for (int64_t i = args_.cols + first_ / kRun; i < args_.pitch; i += args_.group) to[i] = 0;
  }

 private:
  // Unsigned, for it may lie behind the last, which is below 2^31.
  __device__ uint32_t column(int part, int j) const { return first_ + (part * kKept + j) * step_; }

  const RowwiseArgs<T>& args_;
  Run<T, kRun> kept_[kKept];
  Run<T, kRun> next_[kKept];
  uint32_t marks_ = 0;  // of the runs
  uint32_t first_;
  uint32_t step_;
  uint32_t cols_;
};

// A row after the other, of a group's threads.
template <class T, bool kAligned, Outliers kOutliers, int kKept>
__global__ void __launch_bounds__(threads_of(kOutliers, kKept), resident(kOutliers, kKept))
    quantize_rows(const __grid_constant__ RowwiseArgs<T> args) {
  constexpr bool kMarks = kOutliers != Outliers::None;
  __shared__ uint32_t magnitudes[kMaxThreads / kMinGroup][32];
  wait_for_kernels_before();
  if (args.product_follows || kOutliers == Outliers::Few || kOutliers == Outliers::Many) let_next_kernel_start();
  constexpr bool kGroups = kOutliers == Outliers::Many;
  const int groups = kGroups ? static_cast<int>(blockDim.x) / args.group : 1;
  const int group = kGroups ? static_cast<int>(threadIdx.x) / args.group : 0;
  const int thread = static_cast<int>(threadIdx.x) - group * args.group;
  RowQuantizer<T, kAligned, kMarks, kKept> quantizer(args, thread);
  const int parts = quantizer.parts();
  uint8_t* const marks = kMarks ? args.marks + blockIdx.x * args.mark_pitch : nullptr;
  // A barrier whose number is not constant would keep other blocks from the multiprocessor.
  const auto wait = [&] { kGroups ? group_sync(1 + group, args.group) : __syncthreads(); };
  const auto encode = [&](int64_t row, uint32_t largest) {
    const uint32_t all = group_max(largest, wait, thread / 32, args.group / 32, magnitudes[group]);
    quantizer.encode(row, finite_scale(all));
  };
  const int64_t step = int64_t{gridDim.x} * groups;
  int64_t row = int64_t{blockIdx.x} * groups + group;
  if (kGroups && sizeof(T) == 2 && parts == 1) {  // two rows of float32 would not fit the registers
    quantizer.prefetch(row);
    for (; row < args.rows; row += step) {
      quantizer.advance();
      const uint32_t largest = quantizer.look();
      quantizer.prefetch(row + step);
      encode(row, largest);
    }
  }
  for (; row < args.rows; row += step) {
    uint32_t largest = 0;
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      quantizer.load(row, part);
      largest = max(largest, quantizer.look());
      if (kMarks && (parts > 1 || kOutliers == Outliers::Few)) quantizer.leave_marks(marks, part, row == blockIdx.x);
    }
    encode(row, largest);
  }
  if constexpr (kGroups) {
    // Those of all groups together.
    __shared__ uint8_t own[kKept * kMaxThreads];
    if (parts == 1) {
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        own[(group * kKept + j) * args.group + thread] = static_cast<uint8_t>(quantizer.marks(j));
      }
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < args.mark_pitch; i += static_cast<int>(blockDim.x)) {
        uint32_t bits = own[i];
        for (int g = 1; g < groups; ++g) bits |= own[g * kKept * args.group + i];
        marks[i] = static_cast<uint8_t>(bits);
      }
    }
  }
  if constexpr (kOutliers == Outliers::One) {
    static_assert(kKept * kMaxGroup * kRun == kSegment);
    __shared__ OutlierShared shared;
    if (parts == 1) {
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        reinterpret_cast<uint8_t*>(shared.marks)[j * kMaxGroup + thread] = static_cast<uint8_t>(quantizer.marks(j));
      }
    } else {
      clear_marks(shared);
    }
    __syncthreads();
    take_out_columns(args, 0, args.rows, parts == 1, shared);
  }
}

template <class T>
__global__ void __launch_bounds__(1024, 1) take_out_outliers(const __grid_constant__ RowwiseArgs<T> args) {
  __shared__ OutlierShared shared;
  if (args.product_follows) let_next_kernel_start();
  clear_marks(shared);
  wait_for_kernels_before();
  const int64_t begin = args.rows * blockIdx.x / gridDim.x;
  const int64_t end = args.rows * (blockIdx.x + 1) / gridDim.x;
  take_out_columns(args, begin, end, false, shared);
}

// How a call is shared out. With a threshold the workspace holds the blocks' marks.
struct Shares {
  Outliers outliers;
  int kept;
  int group;
  int groups;  // of a block
  int64_t blocks;
  int64_t mark_pitch;

  // alone: of outliers, marks are all that is wanted.
  Shares(int64_t rows, int64_t cols, bool threshold, bool alone, int sm_count) {
    const int64_t runs = ceil_div(cols, int64_t{kRun});
    outliers = !threshold            ? Outliers::None
               : rows <= 1 && !alone ? Outliers::One
               : rows <= kFewBlocks  ? Outliers::Few
                                     : Outliers::Many;
    kept = rows <= kFewBlocks && outliers != Outliers::One ? 1 : kManyKept;
    // As many threads as keep the row, up to the most.
    group = static_cast<int>(
        std::clamp<int64_t>(ceil_div(runs, int64_t{kept} * 32) * 32, kMinGroup, kept == 1 ? kFewGroup : kMaxGroup));
    if (outliers == Outliers::One) group = kMaxGroup;  // which take columns out, too
    groups = 1;
    blocks = std::clamp<int64_t>(rows, 1, INT32_MAX);
    mark_pitch = ceil_div(runs, int64_t{16}) * 16;
    if (outliers != Outliers::Many) return;
    // Few blocks, for each has marks that others read. Long rows leave theirs as they go: no two groups.
    if (runs <= int64_t{kManyKept} * group) {
      groups = static_cast<int>(std::min<int64_t>(ceil_div(rows, int64_t{kFewBlocks}), kMaxThreads / group));
    }
    const int64_t resident = int64_t{sm_count} * (kMaxThreads / (group * groups));
    blocks = std::min(ceil_div(rows, int64_t{groups}), resident);
  }

  int64_t mark_bytes() const { return blocks * mark_pitch; }
};

template <class T>
Int8Marks run(const QuantizeInt8RowwiseArgs& args, const Int8Layout& layout, Stream stream) {
  constexpr std::string_view op = "quantize_int8_rowwise";
  const bool outliers = args.threshold > 0;
  const DeviceFacts& device = device_facts(args.device, op);
  const int sm_count = device.sm_count;
  const bool overlaps = device.compute_capability >= 90;  // earlier ones know no launch that does
  const Shares shares(args.rows, args.cols, outliers, layout.marks_alone, sm_count);
  const RowwiseArgs<T> kernel_args{.x = static_cast<const T*>(args.x),
                                   .rows = args.rows,
                                   .cols = args.cols,
                                   .pitch = layout.pitch,
                                   .threshold = threshold_of<T>(args.threshold),
                                   .codes = args.codes,
                                   .scales = args.scales,
                                   .columns = args.outlier_columns,
                                   .count = args.outlier_count,
                                   .values = static_cast<T*>(layout.outlier_values),
                                   .product_follows = layout.product_follows,
                                   .group = shares.group,
                                   .marks = static_cast<uint8_t*>(args.workspace),
                                   .markers = args.rows > 0 ? static_cast<int>(shares.blocks) : 0,
                                   .mark_pitch = shares.mark_pitch};
  const bool aligned =
      args.cols % kRun == 0 && layout.pitch % kRun == 0 && is_aligned(args.x, 16) && is_aligned(args.codes, kRun);
  const LaunchShape shape{.blocks = shares.blocks, .threads = shares.group * shares.groups, .overlaps = overlaps};
  dispatch_bool(aligned, [&](auto is_aligned) {
    const auto start = [&](auto kernel) { launch(op, kernel, shape, stream, kernel_args); };
    switch (shares.outliers) {
      case Outliers::None:
        if (args.rows == 0) return;
        return start(shares.kept == 1 ? quantize_rows<T, is_aligned, Outliers::None, 1>
                                      : quantize_rows<T, is_aligned, Outliers::None, kManyKept>);
      case Outliers::One:
        return start(quantize_rows<T, is_aligned, Outliers::One, kManyKept>);
      case Outliers::Few:
        start(quantize_rows<T, is_aligned, Outliers::Few, 1>);
        break;
      case Outliers::Many:
        start(quantize_rows<T, is_aligned, Outliers::Many, kManyKept>);
    }
    if (layout.marks_alone) return;
    // Each block looks at all marks: few, unless there are many rows.
    const int64_t blocks = std::max({int64_t{1}, std::min<int64_t>(args.rows / kTakeOutRows, kTakeOutBlocks),
                                     std::min<int64_t>(args.rows / 64, sm_count)});
    launch(op, take_out_outliers<T>,
           {.blocks = blocks, .threads = blocks < kTakeOutBlocks ? 512 : 1024, .overlaps = overlaps}, stream,
           kernel_args);
  });
  return {.marks = kernel_args.marks, .count = kernel_args.markers, .pitch = kernel_args.mark_pitch};
}

}  // namespace

int64_t quantize_int8_rowwise_workspace(int64_t rows, int64_t cols, float threshold, Device device) {
  if (threshold == 0) return 0;
  return Shares(rows, cols, true, false, device_facts(device, "quantize_int8_rowwise").sm_count).mark_bytes();
}

Int8Marks quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args, const Int8Layout& layout, Stream stream) {
  Int8Marks marks{};
  dispatch_float(args.x_dtype, "quantize_int8_rowwise", [&](auto tag) {
    using T = typename decltype(tag)::type;
    marks = run<T>(args, layout, stream);
  });
  return marks;
}

void quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, "quantize_int8_rowwise");
  quantize_int8_rowwise(args, {.pitch = args.cols}, stream);
}

}  // namespace qbits::cuda
