#pragma once

#include <cstdint>
#include <functional>

namespace qbits::cpu {

// Splits [0, count) into runs of at most `grain` and calls body(begin, end) for each on the pool's
// threads, the caller among them; returns when all are done. A call from inside a body, or while another
// thread uses the pool, runs in the calling thread. Which thread takes which run is not fixed, so a body
// must write nothing that depends on it.
//
// Waking a worker that sleeps costs the caller 10 to 20 us, and it starts some 50 us later. With `wake` false,
// for bodies that take less than that together, only workers still awake after an earlier call help.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body, bool wake = true);

int num_threads();
void set_num_threads(int count);

}  // namespace qbits::cpu
