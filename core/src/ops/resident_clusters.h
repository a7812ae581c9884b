#pragma once

#include <algorithm>
#include <cstdint>

namespace qbits {

// Clusters of `blocks` the device holds at once, a block on each multiprocessor: the odd ones of a GPC hold none of a
// larger cluster (an H200's 132 hold 66 clusters of 2, 30 of 4 and 15 of 8, by cudaOccupancyMaxActiveClusters).
constexpr int64_t resident_clusters(int sm_count, int blocks) {
  return std::max<int64_t>((blocks > 2 ? sm_count * 10 / 11 : sm_count) / blocks, 1);
}

}  // namespace qbits
