#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/optimizer_step.h"
#include "ops/pager_plan.h"
#include "qbits/optim.h"
#include "qbits/pager.h"

// Where the parts of a plan lie in memory.

namespace qbits {

// The state of a tensor.
struct PagerEntry {
  PagedShape shape;
  PagedLayout layout;
  char* host = nullptr;
  size_t slab = 0;  // the allocation that `host` is in
  char* resident = nullptr;

  char* memory() const { return resident != nullptr ? resident : host; }
};

// Bytes that lie together in host memory and in a buffer.
struct PagerRun {
  char* host;
  int64_t offset;
  int64_t bytes;
  size_t slab;  // a copy must not reach over two allocations
};

// The copies of a window, as few as can be.
std::vector<PagerRun> pager_runs(const PagerWindow& window, const std::vector<PagerEntry>& entries);

// The state of some elements with their layout at `memory`.
PagedState paged_state(const PagedShape& shape, int64_t elements, char* memory, Device device);

// The elements of a piece of `whole`, whose state is at `memory` on the device.
OptimizerEntry paged_part(const OptimizerEntry& whole, const OptimizerAlgorithm& algorithm, const PagedShape& shape,
                          const PagerPiece& piece, char* memory);

}  // namespace qbits
