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

TensorView slice(const TensorView& t, const PagerPiece& piece) {
  char* data = t.as<char>() + piece.begin * itemsize(t.dtype);
  return TensorView::contiguous(data, t.dtype, {piece.end - piece.begin}, t.device);
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

OptimizerTensor paged_part(const OptimizerTensor& whole, const PagedShape& shape, const PagerPiece& piece,
                           char* memory) {
  OptimizerTensor part = whole;
  part.param = slice(whole.param, piece);
  part.grad = slice(whole.grad, piece);
  const PagedState state = paged_state(shape, piece.end - piece.begin, memory, whole.param.device);
  part.state1 = state.state1;
  part.state2 = state.state2;
  part.absmax1 = state.absmax1;
  part.absmax2 = state.absmax2;
  part.begin += piece.begin;
  part.counts = part.counts && piece.end == shape.numel;
  return part;
}

}  // namespace qbits
