#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>

#include "ops/args.h"
#include "qbits/export.h"
#include "qbits/tensor.h"

// What a kernel may read before it waits for those before it. With programmatic dependent launch it starts while they
// still run, and in general any of them may write anything. A graph under capture, though, tells which kernel comes
// directly before. Where that is one of those that use this class, and so let the next start only once all before them
// are over, nothing can change any more but what it writes itself.

namespace qbits::cuda {

struct MemoryRange {
  const void* begin = nullptr;
  size_t bytes = 0;
};

// Nothing, if there is no matrix.
QBITS_API MemoryRange memory_of(const void* matrix, int64_t rows, int64_t cols, DType dtype);

// Of the kernel that the calling thread launches next on the stream.
class QBITS_API EarlyReads {
 public:
  explicit EarlyReads(Stream stream);

  // Whether it may read so early. False outside of capture. To be asked for what it reads after the wait as well, lest
  // that share a line of a cache with what is read early; but for a workspace, which no load takes from an L1.
  bool allowed(const MemoryRange& memory) const;
  bool allowed(const Weight4bitArgs& weight, std::initializer_list<MemoryRange> others) const;

  // It has been launched, calls let_next_kernel_start only after wait_for_kernels_before, and writes `memory` alone,
  // after that wait, too.
  void launched(const std::array<MemoryRange, 2>& memory) const;

 private:
  Stream stream_;
  bool captured_ = false;
  bool follows_ = false;  // directly on a kernel of this class
};

}  // namespace qbits::cuda
