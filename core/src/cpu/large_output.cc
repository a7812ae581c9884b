#include "cpu/large_output.h"

#include <sys/mman.h>

namespace qbits::cpu {

bool prepare_output(void* data, int64_t bytes) {
  constexpr int64_t kLarge = int64_t{8} << 20;
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (bytes <= kLarge) return false;
  // Only pages that belong to the output alone. A hint: where it is refused nothing is lost.
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (begin < end) static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
  return true;
}

}  // namespace qbits::cpu
