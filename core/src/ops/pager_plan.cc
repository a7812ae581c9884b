#include "ops/pager_plan.h"

#include <algorithm>

#include "ops/ceil_div.h"
#include "ops/optimizer_step.h"

namespace qbits {
namespace {

constexpr int64_t kBoundary = 256;

// The first load and the last store have nothing to overlap with: little state passes in smaller windows than a buffer
// could hold, but not so small that launches take longer than copies.
constexpr int64_t kWindows = 16;
constexpr int64_t kLeastWindow = int64_t{4} << 20;

int64_t rounded(int64_t bytes) { return ceil_div(bytes, kBoundary) * kBoundary; }

// The end of the largest piece from `begin` that has no more than `room` bytes; `begin` if there is none.
int64_t end_of_piece(const PagedShape& shape, int64_t begin, int64_t room) {
  const int64_t left = shape.numel - begin;
  if (paged_layout(shape, left).bytes <= room) return shape.numel;
  if (!shape.divisible) return begin;
  // Bisection, for what is rounded up in each array does not grow with the piece.
  int64_t fits = 0;
  for (int64_t above = left / kOptimizerChunk + 1; above - fits > 1;) {
    const int64_t middle = (fits + above) / 2;
    (paged_layout(shape, middle * kOptimizerChunk).bytes <= room ? fits : above) = middle;
  }
  return begin + fits * kOptimizerChunk;
}

void add_to_windows(const PagedShape& shape, int64_t index, int64_t window_bytes, std::vector<PagerWindow>& windows) {
  const int64_t least = shape.divisible ? std::min(shape.numel, kOptimizerChunk) : shape.numel;
  const int64_t room = std::max(window_bytes, paged_layout(shape, least).bytes);
  for (int64_t begin = 0; begin < shape.numel;) {
    // One piece of a tensor in a window, which so needs no more workspace than all tensors do.
    const bool shares = !windows.empty() && begin == 0;
    int64_t end = shares ? end_of_piece(shape, begin, window_bytes - windows.back().bytes) : begin;
    if (end == begin) {
      windows.emplace_back();
      end = end_of_piece(shape, begin, room);
    }
    PagerWindow& window = windows.back();
    window.pieces.push_back({.index = index, .begin = begin, .end = end, .offset = window.bytes});
    window.bytes += paged_layout(shape, end - begin).bytes;
    begin = end;
  }
}

// Events: those of each buffer, then the fork and the joins.
enum BufferEvent { kLoaded, kUpdated, kStored };

int64_t event(BufferEvent which, int64_t window, int buffers) {
  return kPagerEventsOfBuffer * (window % buffers) + which;
}

int64_t fork_event(int buffers) { return kPagerEventsOfBuffer * buffers; }

class Schedule {
 public:
  explicit Schedule(const PagerPlan& plan) : buffers_(plan.buffers) {}

  void work(PagerAction::Kind kind, PagerQueue queue, int64_t window = 0) { actions.push_back({kind, queue, window}); }
  void record(PagerQueue queue, int64_t event) { actions.push_back({PagerAction::Record, queue, event}); }
  void wait(PagerQueue queue, int64_t event) { actions.push_back({PagerAction::Wait, queue, event}); }

  void fork() {
    record(PagerQueue::Main, fork_event(buffers_));
    wait(PagerQueue::In, fork_event(buffers_));
  }

  void load(int64_t window) {
    work(PagerAction::Load, PagerQueue::In, window);
    record(PagerQueue::In, event(kLoaded, window, buffers_));
  }

  void update(int64_t window) {
    wait(PagerQueue::Main, event(kLoaded, window, buffers_));
    work(PagerAction::Update, PagerQueue::Main, window);
    record(PagerQueue::Main, event(kUpdated, window, buffers_));
  }

  void store(int64_t window) {
    wait(PagerQueue::Out, event(kUpdated, window, buffers_));
    work(PagerAction::Store, PagerQueue::Out, window);
    record(PagerQueue::Out, event(kStored, window, buffers_));
  }

  void join(PagerQueue queue) {
    const int64_t joined = fork_event(buffers_) + static_cast<int64_t>(queue);
    record(queue, joined);
    wait(PagerQueue::Main, joined);
  }

  std::vector<PagerAction> actions;

 private:
  int buffers_;
};

}  // namespace

PagedLayout paged_layout(const PagedShape& shape, int64_t elements) {
  PagedLayout layout{};
  const int64_t blocks = ceil_div(elements, kStateBlockSize);
  const auto place = [&](int i, int64_t rows, int64_t row_bytes, int64_t block_bytes) {
    layout.arrays[i] = {.offset = layout.bytes, .rows = rows, .row_bytes = row_bytes, .block_bytes = block_bytes};
    layout.bytes += rounded(rows * row_bytes);
  };
  const int64_t item = shape.is_8bit ? 1 : 4;
  place(0, shape.first, elements * item, kStateBlockSize * item);
  place(1, shape.second, elements * item, kStateBlockSize * item);
  place(2, shape.is_8bit ? shape.first : 0, blocks * 4, 4);
  place(3, shape.is_8bit ? shape.second : 0, blocks * 4, 4);
  return layout;
}

PagerPlan pager_plan(std::span<const PagedShape> shapes, int64_t budget, const PagerOptions& options) {
  PagerPlan plan;
  int64_t passing = 0;
  for (const PagedShape& shape : shapes) {
    const int64_t bytes = paged_layout(shape, shape.numel).bytes;
    const bool fits = bytes <= budget - plan.resident_bytes;
    plan.resident.push_back(fits);
    (fits ? plan.resident_bytes : passing) += bytes;
  }
  const int64_t window_bytes = std::min(options.staging_bytes, std::max(kLeastWindow, passing / kWindows));
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (!plan.resident[i]) add_to_windows(shapes[i], static_cast<int64_t>(i), window_bytes, plan.windows);
  }
  plan.buffers = static_cast<int>(std::min<int64_t>(options.buffers, std::ssize(plan.windows)));
  for (const PagerWindow& window : plan.windows) plan.buffer_bytes = std::max(plan.buffer_bytes, window.bytes);
  return plan;
}

std::string PagerPlan::describe() const {
  const auto kept = std::count(resident.begin(), resident.end(), true);
  std::string text = std::to_string(kept) + " of " + std::to_string(resident.size()) + " tensors resident in " +
                     std::to_string(resident_bytes) + " bytes";
  if (windows.empty()) return text;
  int64_t moved = 0;
  for (const PagerWindow& window : windows) moved += window.bytes;
  return text + ", the rest, " + std::to_string(moved) + " bytes, in " + std::to_string(windows.size()) +
         " windows through " + std::to_string(buffers) + " buffers of " + std::to_string(buffer_bytes) + " bytes";
}

std::vector<PagerAction> pager_prefetch(const PagerPlan& plan) {
  Schedule s(plan);
  if (plan.windows.empty()) return s.actions;
  s.fork();
  for (int64_t w = 0; w < plan.buffers; ++w) s.load(w);
  return s.actions;
}

std::vector<PagerAction> pager_schedule(const PagerPlan& plan, const std::vector<bool>& needed, bool prefetched) {
  const int64_t windows = std::ssize(plan.windows);
  Schedule s(plan);
  if (windows > 0 && !prefetched) {
    s.fork();
    for (int64_t w = 0; w < plan.buffers; ++w) {
      if (needed[w]) s.load(w);
    }
  }
  s.work(PagerAction::UpdateResident, PagerQueue::Main);
  for (int64_t w = 0; w < windows; ++w) {
    if (needed[w]) {
      s.update(w);
      s.store(w);
    }
    const int64_t next = w + plan.buffers;
    if (next >= windows || !needed[next]) continue;
    // The last to use the buffer in this step, if any has.
    int64_t last = w;
    while (last >= 0 && !needed[last]) last -= plan.buffers;
    if (last >= 0) s.wait(PagerQueue::In, event(kStored, last, plan.buffers));
    s.load(next);
  }
  if (windows == 0) return s.actions;
  s.join(PagerQueue::In);
  const bool any = std::find(needed.begin(), needed.end(), true) != needed.end();
  if (any) s.join(PagerQueue::Out);
  return s.actions;
}

}  // namespace qbits
