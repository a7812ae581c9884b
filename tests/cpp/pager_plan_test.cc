#include "ops/pager_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

namespace qbits {
namespace {

constexpr int64_t kChunk = 8192;

PagedShape adam_8bit(int64_t numel) {
  return {.numel = numel, .first = 1, .second = 1, .is_8bit = true, .divisible = true};
}

PagedShape ademamix_32bit(int64_t numel) {
  return {.numel = numel, .first = 2, .second = 1, .is_8bit = false, .divisible = true};
}

std::vector<PagedShape> mixed() {
  std::vector<PagedShape> shapes;
  for (int64_t n : {1, 255, 256, 257, 5000, 8192, 8193, 100'000, 3, 65'536, 1'000'003}) {
    shapes.push_back(adam_8bit(n));
    shapes.push_back(ademamix_32bit(n));
  }
  shapes[5].divisible = false;
  shapes[15].divisible = false;
  return shapes;
}

int64_t bytes_of(const PagedShape& shape) { return paged_layout(shape, shape.numel).bytes; }

int64_t bytes_of(const std::vector<PagedShape>& shapes) {
  int64_t bytes = 0;
  for (const PagedShape& shape : shapes) bytes += bytes_of(shape);
  return bytes;
}

TEST(PagerPlan, Layout) {
  const PagedLayout eight = paged_layout(adam_8bit(257), 257);
  EXPECT_EQ(eight.arrays[0].offset, 0);
  EXPECT_EQ(eight.arrays[0].row_bytes, 257);
  EXPECT_EQ(eight.arrays[1].offset, 512);
  EXPECT_EQ(eight.arrays[2].offset, 1024);
  EXPECT_EQ(eight.arrays[2].row_bytes, 8);
  EXPECT_EQ(eight.arrays[3].offset, 1280);
  EXPECT_EQ(eight.bytes, 1536);
  const PagedLayout wide = paged_layout(ademamix_32bit(257), 257);
  EXPECT_EQ(wide.arrays[0].rows, 2);
  EXPECT_EQ(wide.arrays[0].row_bytes, 4 * 257);
  EXPECT_EQ(wide.arrays[1].offset, 2304);
  EXPECT_EQ(wide.arrays[2].rows, 0);
}

TEST(PagerPlan, EverythingFits) {
  const std::vector<PagedShape> shapes = mixed();
  const PagerPlan plan = pager_plan(shapes, bytes_of(shapes), {});
  EXPECT_EQ(std::count(plan.resident.begin(), plan.resident.end(), true), std::ssize(shapes));
  EXPECT_TRUE(plan.windows.empty());
  EXPECT_EQ(plan.buffers, 0);
  EXPECT_EQ(plan.describe(), "22 of 22 tensors resident in " + std::to_string(bytes_of(shapes)) + " bytes");
}

TEST(PagerPlan, TheFirstThatFitStay) {
  const std::vector<PagedShape> shapes = {adam_8bit(100'000), adam_8bit(1'000'000), adam_8bit(100'000),
                                          adam_8bit(100'000)};
  const PagerPlan plan = pager_plan(shapes, 2 * bytes_of(shapes[0]), {});
  EXPECT_EQ(plan.resident, (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(plan.resident_bytes, 2 * bytes_of(shapes[0]));
  EXPECT_EQ(pager_plan(shapes, -5, {}).resident_bytes, 0);
  EXPECT_TRUE(pager_plan({}, 0, {}).windows.empty());
}

// Every element of what is not resident is in exactly one piece, in order; pieces lie apart within a buffer, and are of
// different tensors.
TEST(PagerPlan, WindowsHoldEverythingOnce) {
  const std::vector<PagedShape> shapes = mixed();
  for (int64_t budget : {int64_t{0}, bytes_of(shapes) / 2}) {
    for (int64_t staging : {1, 50'000, 300'000, 32 << 20}) {
      const PagerPlan plan = pager_plan(shapes, budget, {.staging_bytes = staging});
      std::vector<int64_t> done(shapes.size());
      int64_t last = 0;
      for (const PagerWindow& window : plan.windows) {
        int64_t used = 0;
        std::set<int64_t> indices;
        ASSERT_FALSE(window.pieces.empty());
        for (const PagerPiece& piece : window.pieces) {
          const PagedShape& shape = shapes[piece.index];
          EXPECT_GE(piece.index, last);
          last = piece.index;
          EXPECT_FALSE(plan.resident[piece.index]);
          EXPECT_TRUE(indices.insert(piece.index).second);
          EXPECT_EQ(piece.begin, done[piece.index]);
          EXPECT_GT(piece.end, piece.begin);
          EXPECT_EQ(piece.begin % kChunk, 0);
          EXPECT_EQ(piece.offset, used);
          EXPECT_EQ(piece.offset % 256, 0);
          if (!shape.divisible) {
            EXPECT_EQ(piece.end, shape.numel);
          }
          used += paged_layout(shape, piece.end - piece.begin).bytes;
          done[piece.index] = piece.end;
        }
        EXPECT_EQ(window.bytes, used);
        EXPECT_LE(window.bytes, plan.buffer_bytes);
        if (window.pieces.size() > 1) {
          EXPECT_LE(window.bytes, staging);
        }
      }
      for (size_t i = 0; i < shapes.size(); ++i) EXPECT_EQ(done[i], plan.resident[i] ? 0 : shapes[i].numel);
      EXPECT_EQ(plan.buffers, std::min<int64_t>(3, std::ssize(plan.windows)));
    }
  }
}

TEST(PagerPlan, LargeTensorsFillTheirBuffers) {
  const std::vector<PagedShape> shapes = {adam_8bit(1 << 30)};
  const PagerPlan plan = pager_plan(shapes, 0, {});
  EXPECT_LE(plan.buffer_bytes, 32 << 20);
  EXPECT_GE(plan.buffer_bytes, (int64_t{32} << 20) * 99 / 100);
  EXPECT_EQ(plan.describe(),
            "0 of 1 tensors resident in 0 bytes, the rest, 2181038080 bytes, in 66 windows through 3 "
            "buffers of " +
                std::to_string(plan.buffer_bytes) + " bytes");
}

TEST(PagerPlan, LittleStatePassesInManyWindows) {
  const std::vector<PagedShape> shapes(2000, adam_8bit(65'536));
  const PagerPlan plan = pager_plan(shapes, 0, {});
  EXPECT_GE(std::ssize(plan.windows), 16);
  EXPECT_LE(std::ssize(plan.windows), 17);
  const std::vector<PagedShape> less(200, adam_8bit(65'536));
  EXPECT_LE(pager_plan(less, 0, {}).buffer_bytes, 4 << 20);
  EXPECT_GE(pager_plan(less, 0, {}).buffer_bytes, 3 << 20);
}

// --- The order of work ----------------------------------------------------------------------------------------------

// Which actions are certain to be over when another begins, from the order of queues and from events.
class Order {
 public:
  void run(const std::vector<PagerAction>& actions) {
    for (const PagerAction& action : actions) {
      std::set<size_t>& behind = behind_[static_cast<size_t>(action.queue)];
      if (action.kind == PagerAction::Record) {
        events_[action.index] = behind;
      } else if (action.kind == PagerAction::Wait) {
        ASSERT_TRUE(events_.contains(action.index)) << "an event from before the step";
        behind.insert(events_[action.index].begin(), events_[action.index].end());
      } else {
        before.push_back(behind);
        all.push_back(action);
        behind.insert(all.size() - 1);
      }
    }
  }

  // As at the end of a step, of a capture for instance.
  void forget_events() { events_.clear(); }
  const std::set<size_t>& behind_main() const { return behind_[0]; }

  std::vector<PagerAction> all;
  std::vector<std::set<size_t>> before;  // of each action

 private:
  std::array<std::set<size_t>, 3> behind_;
  std::map<int64_t, std::set<size_t>> events_;
};

// Actions on the same buffer, and those on the same window, are in order; the stream's end is behind everything.
void check_order(const Order& order, int buffers) {
  for (size_t b = 0; b < order.all.size(); ++b) {
    if (order.all[b].kind == PagerAction::UpdateResident) continue;
    for (size_t a = 0; a < b; ++a) {
      if (order.all[a].kind == PagerAction::UpdateResident) continue;
      if (order.all[a].index % buffers != order.all[b].index % buffers) continue;
      EXPECT_TRUE(order.before[b].contains(a)) << "action " << a << " and " << b;
    }
  }
  for (size_t a = 0; a < order.all.size(); ++a) EXPECT_TRUE(order.behind_main().contains(a));
}

PagerPlan plan_of(int windows, int buffers) {
  PagerPlan plan;
  plan.windows.resize(windows);
  plan.buffers = std::min(windows, buffers);
  return plan;
}

std::vector<bool> every(int windows) { return std::vector<bool>(windows, true); }

TEST(PagerSchedule, NothingTouchesABufferTooEarly) {
  for (int windows = 1; windows < 9; ++windows) {
    for (int buffers = 1; buffers < 5; ++buffers) {
      const PagerPlan plan = plan_of(windows, buffers);
      for (int mask = 0; mask < 1 << windows; ++mask) {
        std::vector<bool> needed = every(windows);
        for (int w = 0; w < windows; ++w) needed[w] = (mask >> w) % 2 != 0;
        Order order;
        for (bool prefetched : {false, true, false}) {
          order.forget_events();
          if (prefetched) order.run(pager_prefetch(plan));
          order.run(pager_schedule(plan, needed, prefetched));
        }
        check_order(order, plan.buffers);
        const auto count = [&](PagerAction::Kind kind) {
          return std::count_if(order.all.begin(), order.all.end(), [&](const auto& a) { return a.kind == kind; });
        };
        const auto each = 3 * std::count(needed.begin(), needed.end(), true);
        EXPECT_EQ(count(PagerAction::Update), each);
        EXPECT_EQ(count(PagerAction::Store), each);
        EXPECT_EQ(count(PagerAction::UpdateResident), 3);
      }
    }
  }
}

// While a window is updated, the next one is loaded and the one before is stored.
TEST(PagerSchedule, CopiesOverlap) {
  Order order;
  order.run(pager_schedule(plan_of(8, 3), every(8), false));
  const auto find = [&](PagerAction::Kind kind, int64_t window) {
    for (size_t i = 0; i < order.all.size(); ++i) {
      if (order.all[i].kind == kind && order.all[i].index == window) return i;
    }
    return order.all.size();
  };
  for (int64_t w = 2; w + 2 < 8; ++w) {
    EXPECT_FALSE(order.before[find(PagerAction::Load, w + 1)].contains(find(PagerAction::Update, w)));
    EXPECT_FALSE(order.before[find(PagerAction::Load, w + 1)].contains(find(PagerAction::Store, w - 1)));
    EXPECT_FALSE(order.before[find(PagerAction::Update, w)].contains(find(PagerAction::Store, w - 1)));
  }
  EXPECT_LT(find(PagerAction::Load, 2), find(PagerAction::UpdateResident, 0));
}

TEST(PagerSchedule, WithoutWindowsThereAreNoCopies) {
  const std::vector<PagerAction> actions = pager_schedule({}, {}, false);
  ASSERT_EQ(actions.size(), 1);
  EXPECT_EQ(actions[0].kind, PagerAction::UpdateResident);
  EXPECT_TRUE(pager_prefetch({}).empty());
}

}  // namespace
}  // namespace qbits
