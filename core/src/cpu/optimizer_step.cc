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

constexpr int64_t kGrain = 65536 / kOptimizerChunk;

// Each tensor's coefficients by its norms, whose chunks are summed in order.
void scale_layers(const OptimizerStepArgs& args, OptimizerRecord* records) {
  const OptimizerWorkspace layout(args.count, args.chunks, args.scaling);
  auto* norms = reinterpret_cast<LayerNorms*>(static_cast<char*>(args.workspace) + layout.norms);
  parallel_for(args.chunks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      for_each_tensor(args, records, chunk, chunk + 1,
                      [&](const OptimizerChunks& own) { norms[chunk] = optimizer_norms_chunk_isa(args, own); });
    }
  });
  for (int32_t i = 0; i < args.count; ++i) {
    const int32_t end = i + 1 < args.count ? records[i + 1].entry.first_chunk : args.chunks;
    LayerNorms sum;
    for (int32_t chunk = records[i].entry.first_chunk; chunk < end; ++chunk) {
      sum.p += norms[chunk].p;
      sum.u += norms[chunk].u;
    }
    scale_layer(args.scaling, sum, records[i].c);
  }
}

}  // namespace

void optimizer_step(const OptimizerStepArgs& args) {
  auto* records = static_cast<OptimizerRecord*>(args.workspace);
  for (int32_t i = 0; i < args.count; ++i) records[i] = begin_step(args, args.entries[i]);
  if (records[0].c.skip != 0) return;
  if (args.scaling != LayerScaling::None) scale_layers(args, records);
  parallel_for(args.chunks, kGrain, [&](int64_t begin, int64_t end) {
    int64_t skipped = 0;
    for_each_tensor(args, records, begin, end,
                    [&](const OptimizerChunks& chunks) { skipped += optimizer_step_chunks_isa(args, chunks); });
    if (skipped > 0) std::atomic_ref(*args.skipped).fetch_add(skipped, std::memory_order_relaxed);
  });
}

}  // namespace qbits::cpu
