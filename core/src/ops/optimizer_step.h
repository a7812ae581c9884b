#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/host_device.h"
#include "qbits/optim.h"

// What back ends receive of an optimizer step: validated, tensors with 8-bit state in front. There is at least one
// tensor; it may be empty.

namespace qbits {

// A tensor is worked on in chunks of so many blocks, numbered over all tensors.
inline constexpr int64_t kOptimizerChunkBlocks = 32;
inline constexpr int64_t kOptimizerChunk = kOptimizerChunkBlocks * kStateBlockSize;

struct OptimizerEntry {
  void* param;
  const void* grad;
  void* state1;
  void* state2;
  float* absmax1;  // null for 32-bit state
  float* absmax2;
  void* compensation;  // or null
  float* step;
  const float* grad_scale;  // or null
  int64_t numel;
  int64_t row;  // 0 for 32-bit state
  int64_t offset;
  int32_t group;
  uint32_t id;
  int32_t first_chunk;
  DType param_dtype;
  DType grad_dtype;
  bool vectors;  // all pointers allow loads of 16 bytes at every fourth element
  bool counts;   // up the step, as of several parts of a tensor the last does

  bool is_8bit() const { return absmax1 != nullptr; }
};
bool allows_vectors(const OptimizerEntry& entry, const OptimizerAlgorithm& algorithm);

// Functions are static, so that the linker cannot merge copies compiled for different instruction sets.
QBITS_HOST_DEVICE static inline int64_t state_blocks(int64_t numel, int64_t row) {
  const int64_t run = row == 0 ? numel : row;
  const int64_t blocks = run / kStateBlockSize + (run % kStateBlockSize != 0);
  return row == 0 ? blocks : numel / row * blocks;
}

struct StateBlock {
  int64_t start;
  int64_t size;
};

QBITS_HOST_DEVICE static inline StateBlock state_block(const OptimizerEntry& entry, int64_t block) {
  int64_t start = block * kStateBlockSize;
  int64_t end = entry.numel;
  if (entry.row != 0) {  // a branch, and 32 bits, because division is slow on a GPU
    const auto of_row = static_cast<uint32_t>(state_blocks(entry.row, 0));
    const uint32_t row = static_cast<uint32_t>(block) / of_row;
    start = row * entry.row + (static_cast<uint32_t>(block) - row * of_row) * kStateBlockSize;
    end = (row + int64_t{1}) * entry.row;
  }
  return {.start = start, .size = end - start < kStateBlockSize ? end - start : kStateBlockSize};
}

// What the formulas of an algorithm (optimizer_rules.h) need beside the tensors, rounded to float32.
struct Coefficients {
  float grad_factor;  // of the gradient: its sign, 1 / grad_scale
  float l2;           // coupled weight decay
  float shrink;       // p - (shrink p + rate u): decoupled weight decay
  float rate;
  float eps;
  float beta1, rest1;  // of old and new in a running mean
  float beta2, rest2;
  float beta3, rest3;
  float alpha;
  float norm_unit;  // LayerScaling: the norm is of norm_unit u + norm_decay p, or of the gradient
  float norm_decay;
  float scaling;
  int32_t norm_gradient;
  uint32_t random[2];  // what stochastic rounding starts from
  int32_t skip;        // found_inf
};

struct alignas(16) OptimizerRecord {
  OptimizerEntry entry;
  Coefficients c;
};

struct OptimizerStepArgs {
  Algorithm algorithm;
  Decay decay;
  LayerScaling scaling;
  bool stochastic_rounding;
  uint64_t seed;
  const double* groups;
  const float* grad_scale;  // or null
  const float* found_inf;   // or null
  int64_t* skipped;
  const OptimizerEntry* entries;
  int32_t count;
  int32_t chunks;
  int32_t chunks_8bit;
  void* workspace;
  Device device;
};

// Sums of squares that LayerScaling needs.
struct LayerNorms {
  double p = 0.0;
  double u = 0.0;
};

// The workspace: records, the first chunk of each and the end, and with LayerScaling the norms of each chunk.
struct OptimizerWorkspace {
  int64_t first_chunks;
  int64_t norms;
  int64_t bytes;

  OptimizerWorkspace(int64_t tensors, int64_t chunks, LayerScaling scaling)
      : first_chunks(tensors * static_cast<int64_t>(sizeof(OptimizerRecord))),
        norms((first_chunks + 4 * (tensors + 1) + 15) / 16 * 16),
        bytes(norms + (scaling == LayerScaling::None ? 0 : static_cast<int64_t>(sizeof(LayerNorms)) * chunks)) {}
};

// The three parts of optimizer_step. An entry for each tensor; the state of some may be `on_host`, if not empty.
std::vector<OptimizerEntry> check_optimizer_step(const OptimizerStep& step, std::span<const OptimizerTensor> tensors,
                                                 const std::vector<bool>& on_host = {});
void check_optimizer_workspace(const OptimizerStep& step, std::span<const OptimizerTensor> tensors,
                               const TensorView& workspace);
void run_optimizer_step(const OptimizerStep& step, std::vector<OptimizerEntry> entries, const TensorView& workspace,
                        Stream stream);

namespace cpu {
void optimizer_step(const OptimizerStepArgs& args);
}  // namespace cpu
namespace cuda {
void optimizer_step(const OptimizerStepArgs& args, Stream stream);
void write_optimizer_groups(std::span<const double> values, double* groups, Device device, Stream stream);
}  // namespace cuda

}  // namespace qbits
