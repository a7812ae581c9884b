#include <algorithm>

#include "cuda/launch.h"
#include "cuda/optimizer_step_kernels.h"
#include "ops/optimizer_coefficients.h"
#include "ops/optimizer_rules.h"
#include "qbits/format.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "optimizer_step";

// Entries travel as kernel parameters: no pinned memory that must outlive the copy, and a captured graph keeps them.
constexpr int kMostPrepared = 288;
constexpr int kPrepareThreads = 8;  // parameters are read one address at a time: few threads in many blocks

struct Preparation {
  OptimizerStepArgs args;
  OptimizerRecord* records;
  int32_t* first_chunks;
  int32_t done;  // entries of earlier launches
  int32_t count;
  OptimizerEntry entries[kMostPrepared];
};
static_assert(sizeof(Preparation) <= 32764, "what parameters of a kernel may take");

// Counts the step of each tensor and computes its coefficients.
__global__ void prepare_optimizer_step(const __grid_constant__ Preparation p) {
  const int i = static_cast<int>(blockIdx.x) * kPrepareThreads + static_cast<int>(threadIdx.x);
  if (i >= p.count) return;
  const OptimizerEntry entry = p.entries[i];
  p.records[p.done + i] = begin_step(p.args, entry);
  p.first_chunks[p.done + i] = entry.first_chunk;
  if (p.done + i + 1 == p.args.count) p.first_chunks[p.args.count] = p.args.chunks;
}

constexpr int kScaleThreads = 256;

// A block for each tensor: adds the norms of its chunks, always in the same order, and scales its coefficients.
__global__ void __launch_bounds__(kScaleThreads)
    scale_layers(OptimizerRecord* records, const int32_t* first_chunks, const LayerNorms* norms, LayerScaling scaling) {
  __shared__ double p[kScaleThreads];
  __shared__ double u[kScaleThreads];
  const int thread = static_cast<int>(threadIdx.x);
  OptimizerRecord& record = records[blockIdx.x];
  if (record.c.skip != 0) return;
  LayerNorms sum;
  for (int chunk = first_chunks[blockIdx.x] + thread; chunk < first_chunks[blockIdx.x + 1]; chunk += kScaleThreads) {
    sum.p += norms[chunk].p;
    sum.u += norms[chunk].u;
  }
  p[thread] = sum.p;
  u[thread] = sum.u;
  for (int half = kScaleThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      p[thread] += p[thread + half];
      u[thread] += u[thread + half];
    }
  }
  if (thread == 0) scale_layer(scaling, LayerNorms{.p = p[0], .u = u[0]}, record.c);
}

constexpr int kMostWritten = 256;

struct Written {
  double values[kMostWritten];
};

__global__ void write_values(const __grid_constant__ Written written, int count, double* to) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < count) to[i] = written.values[i];
}

void prepare(const OptimizerStepArgs& args, OptimizerRecord* records, int32_t* first_chunks, Stream stream) {
  Preparation p{.args = args, .records = records, .first_chunks = first_chunks};
  for (p.done = 0; p.done < args.count; p.done += p.count) {
    p.count = std::min(args.count - p.done, kMostPrepared);
    std::copy_n(args.entries + p.done, p.count, p.entries);
    launch(kOp, prepare_optimizer_step, {.blocks = ceil_div(p.count, kPrepareThreads), .threads = kPrepareThreads},
           stream, p);
  }
}

const StateMapValues& state_map_values() {
  static const StateMapValues values = [] {
    StateMapValues v;
    std::ranges::copy(format("dynamic").codebook, v.first);
    std::ranges::copy(format("dynamic_unsigned").codebook, v.second);
    return v;
  }();
  return values;
}

}  // namespace

void optimizer_step(const OptimizerStepArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  const OptimizerWorkspace layout(args.count, args.chunks, args.scaling);
  auto* memory = static_cast<char*>(args.workspace);
  auto* records = reinterpret_cast<OptimizerRecord*>(memory);
  auto* first_chunks = reinterpret_cast<int32_t*>(memory + layout.first_chunks);
  prepare(args, records, first_chunks, stream);
  const OptimizerWork all{.records = records,
                          .first_chunks = first_chunks,
                          .tensors = args.count,
                          .begin = 0,
                          .end = args.chunks,
                          .skipped = args.skipped,
                          .norms = reinterpret_cast<LayerNorms*>(memory + layout.norms),
                          .stochastic_rounding = args.stochastic_rounding};
  OptimizerWork of_8bit = all;
  OptimizerWork of_32bit = all;
  of_8bit.end = of_32bit.begin = args.chunks_8bit;
  const auto for_each_width = [&](auto&& body) {
    if (of_8bit.end > of_8bit.begin) body(of_8bit, true);
    if (of_32bit.end > of_32bit.begin) body(of_32bit, false);
  };
  const StateMapValues& maps = state_map_values();
  dispatch_rule(args.algorithm, kOp, [&]<class Rule>(Rule) {
    if (args.scaling != LayerScaling::None) {
      for_each_width(
          [&](const OptimizerWork& work, bool is_8bit) { launch_optimizer_norms<Rule>(work, is_8bit, maps, stream); });
      launch(kOp, scale_layers, {.blocks = args.count, .threads = kScaleThreads}, stream, records, first_chunks,
             all.norms, args.scaling);
    }
    for_each_width(
        [&](const OptimizerWork& work, bool is_8bit) { launch_optimizer_update<Rule>(work, is_8bit, maps, stream); });
  });
}

void write_optimizer_groups(std::span<const double> values, double* groups, Device device, Stream stream) {
  constexpr std::string_view op = "write_optimizer_groups";
  const DeviceGuard guard(device, op);
  for (size_t done = 0; done < values.size(); done += kMostWritten) {
    const size_t count = std::min<size_t>(values.size() - done, kMostWritten);
    Written written{};
    std::copy_n(values.begin() + static_cast<ptrdiff_t>(done), count, written.values);
    launch(op, write_values, {.blocks = 1, .threads = kMostWritten}, stream, written, static_cast<int>(count),
           groups + done);
  }
}

}  // namespace qbits::cuda
