#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "qbits/export.h"
#include "qbits/pager.h"

// What a pager decides, as data: which state stays on the device, in which windows the rest passes, and in which order
// the streams work.

namespace qbits {

struct PagedShape {
  int64_t numel;
  int64_t first;  // numbers an element has in state1
  int64_t second;
  bool is_8bit;
  bool divisible;
};

// An array of the state of `elements`: rows, one for each number, of `row_bytes` each, one after the other.
struct PagedArray {
  int64_t offset;
  int64_t rows;
  int64_t row_bytes;
  int64_t block_bytes;  // of kStateBlockSize elements
};

// How the state of some elements lies in memory: state1, state2, absmax1, absmax2, on boundaries of 256 bytes.
struct PagedLayout {
  std::array<PagedArray, 4> arrays;
  int64_t bytes;
};
QBITS_API PagedLayout paged_layout(const PagedShape& shape, int64_t elements);

// Elements of a tensor in a buffer.
struct PagerPiece {
  int64_t index;
  int64_t begin;
  int64_t end;
  int64_t offset;  // of their layout in the buffer
};

// What is in a buffer at one time.
struct PagerWindow {
  std::vector<PagerPiece> pieces;
  int64_t bytes = 0;
};

struct PagerPlan {
  std::vector<bool> resident;
  int64_t resident_bytes = 0;
  std::vector<PagerWindow> windows;
  int buffers = 0;  // window w passes through buffer w % buffers
  int64_t buffer_bytes = 0;

  QBITS_API std::string describe() const;
};

QBITS_API PagerPlan pager_plan(std::span<const PagedShape> shapes, int64_t budget, const PagerOptions& options);

enum class PagerQueue : uint8_t { Main, In, Out };

struct PagerAction {
  enum Kind : uint8_t { Load, UpdateResident, Update, Store, Record, Wait };
  Kind kind;
  PagerQueue queue;
  int64_t index = 0;  // a window; of Record and Wait an event
};

inline constexpr int kPagerEventsOfBuffer = 3;
inline constexpr int pager_events(int buffers) { return kPagerEventsOfBuffer * buffers + 3; }

// The loads that may start before a step, behind what is in Main.
QBITS_API std::vector<PagerAction> pager_prefetch(const PagerPlan& plan);

// A step over the windows that are `needed`. At its end Main has waited for all copies, and nothing needs an event
// from before: a step may be captured.
QBITS_API std::vector<PagerAction> pager_schedule(const PagerPlan& plan, const std::vector<bool>& needed,
                                                  bool prefetched);

}  // namespace qbits
