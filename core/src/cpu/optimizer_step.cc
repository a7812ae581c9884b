#include <algorithm>
#include <atomic>

#include "cpu/optimizer_step_kernel.h"
#include "cpu/thread_pool.h"
#include "ops/optimizer_coefficients.h"
#include "qbits/format.h"

namespace qbits::cpu {
namespace {

// Made once: the maps are constants.
const StateMaps& state_maps() {
  static const StateMaps maps = [] {
    const auto map = [](std::string_view name) {
      const float* values = format(name).codebook.data();
      return StateMap{.values = values, .encoder = make_encoder256(values)};
    };
    return StateMaps{.first = map("dynamic"), .second = map("dynamic_unsigned")};
  }();
  return maps;
}

// The chunks [begin, end), as runs of one tensor each.
template <class Body>
void for_each_tensor(const OptimizerStepArgs& args, const OptimizerRecord* records, int64_t begin, int64_t end,
                     Body&& body) {
  const auto behind = [](int64_t chunk, const OptimizerRecord& record) { return chunk < record.entry.first_chunk; };
  const OptimizerRecord* record = std::upper_bound(records, records + args.count, begin, behind) - 1;
  while (begin < end) {
    const bool last = record + 1 == records + args.count;
    const int64_t stop = std::min<int64_t>(end, last ? args.chunks : record[1].entry.first_chunk);
    const int64_t first = record->entry.first_chunk;
    if (begin < stop) {
      body(OptimizerChunks{.record = record, .maps = &state_maps(), .begin = begin - first, .end = stop - first});
    }
    begin = stop;
    ++record;
  }
}

}  // namespace

void optimizer_step(const OptimizerStepArgs& args) {
  auto* records = static_cast<OptimizerRecord*>(args.workspace);
  for (int32_t i = 0; i < args.count; ++i) records[i] = begin_step(args, args.entries[i]);
  if (records[0].c.skip != 0) return;
  constexpr int64_t kGrain = 65536 / kOptimizerChunk;
  parallel_for(args.chunks, kGrain, [&](int64_t begin, int64_t end) {
    int64_t skipped = 0;
    for_each_tensor(args, records, begin, end,
                    [&](const OptimizerChunks& chunks) { skipped += optimizer_step_chunks_isa(args, chunks); });
    if (skipped > 0) std::atomic_ref(*args.skipped).fetch_add(skipped, std::memory_order_relaxed);
  });
}

}  // namespace qbits::cpu
