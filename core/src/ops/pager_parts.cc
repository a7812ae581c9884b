#include "ops/pager_parts.h"

namespace qbits {
namespace {

void add_run(const PagerRun& run, std::vector<PagerRun>& runs) {
  if (run.bytes == 0) return;
  if (!runs.empty()) {
    PagerRun& last = runs.back();
    if (last.slab == run.slab && last.host + last.bytes == run.host && last.offset + last.bytes == run.offset) {
      last.bytes += run.bytes;
      return;
    }
  }
  runs.push_back(run);
}

}  // namespace

std::vector<PagerRun> pager_runs(const PagerWindow& window, const std::vector<PagerEntry>& entries) {
  std::vector<PagerRun> runs;
  for (const PagerPiece& piece : window.pieces) {
    const PagerEntry& entry = entries[piece.index];
    const int64_t elements = piece.end - piece.begin;
    if (elements == entry.shape.numel) {
      add_run({entry.host, piece.offset, entry.layout.bytes, entry.slab}, runs);
      continue;
    }
    const PagedLayout part = paged_layout(entry.shape, elements);
    for (size_t a = 0; a < part.arrays.size(); ++a) {
      const PagedArray& from = entry.layout.arrays[a];
      const PagedArray& to = part.arrays[a];
      const int64_t before = piece.begin / kStateBlockSize * from.block_bytes;
      for (int64_t row = 0; row < to.rows; ++row) {
        char* host = entry.host + from.offset + row * from.row_bytes + before;
        add_run({host, piece.offset + to.offset + row * to.row_bytes, to.row_bytes, entry.slab}, runs);
      }
    }
  }
  return runs;
}

PagedState paged_state(const PagedShape& shape, int64_t elements, char* memory, Device device) {
  const PagedLayout layout = paged_layout(shape, elements);
  const auto view = [&](int a, DType dtype) -> std::optional<TensorView> {
    const PagedArray& array = layout.arrays[a];
    if (array.rows == 0) return std::nullopt;
    return TensorView::contiguous(memory + array.offset, dtype, {array.rows * array.row_bytes / itemsize(dtype)},
                                  device);
  };
  const DType states = shape.is_8bit ? DType::UInt8 : DType::Float32;
  return {.state1 = view(0, states),
          .state2 = view(1, states),
          .absmax1 = view(2, DType::Float32),
          .absmax2 = view(3, DType::Float32)};
}

OptimizerEntry paged_part(const OptimizerEntry& whole, const OptimizerAlgorithm& algorithm, const PagedShape& shape,
                          const PagerPiece& piece, char* memory) {
  const PagedLayout layout = paged_layout(shape, piece.end - piece.begin);
  const auto array = [&](int a) { return layout.arrays[a].rows == 0 ? nullptr : memory + layout.arrays[a].offset; };
  OptimizerEntry part = whole;
  part.param = static_cast<char*>(whole.param) + piece.begin * itemsize(whole.param_dtype);
  part.grad = static_cast<const char*>(whole.grad) + piece.begin * itemsize(whole.grad_dtype);
  part.state1 = array(0);
  part.state2 = array(1);
  part.absmax1 = reinterpret_cast<float*>(array(2));
  part.absmax2 = reinterpret_cast<float*>(array(3));
  if (whole.compensation != nullptr) {
    part.compensation = static_cast<char*>(whole.compensation) + piece.begin * itemsize(whole.param_dtype);
  }
  part.numel = piece.end - piece.begin;
  part.offset += piece.begin;
  part.counts = piece.end == shape.numel;
  part.vectors = allows_vectors(part, algorithm);
  return part;
}

}  // namespace qbits
