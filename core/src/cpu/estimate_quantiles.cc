#include "ops/estimate_quantiles.h"

#include <algorithm>
#include <bit>

#include "cpu/float16.h"
#include "cpu/thread_pool.h"

// Up to three histograms, as ops/estimate_quantiles.h defines them. Sections of x are counted in parallel, each
// into counters of its own, so that the result does not depend on the number of threads.

namespace qbits::cpu {
namespace {

constexpr int64_t kTop = 65536;                    // buckets of the first histogram
constexpr int64_t kParts = 256;                    // parts of a heavy bucket
constexpr int64_t kMaxHeavy = kQuantileHeavy - 1;  // more cannot hold m / kQuantileHeavy elements each
constexpr int64_t kFine = kMaxHeavy * kParts;
constexpr int64_t kMaxSections = 8;
constexpr uint16_t kLight = 0xffff;
constexpr uint32_t kLowestKey = 0x007fffff;   // of -infinity; smaller keys are NaN
constexpr uint32_t kHighestKey = 0xff800000;  // of infinity; larger keys are NaN

int64_t num_sections(int64_t n) { return std::clamp<int64_t>(n >> 20, 1, kMaxSections); }

struct Workspace {
  int64_t* top;           // [kTop]
  int64_t* parts;         // [kMaxHeavy, kParts]: heavy buckets by the next 8 bits
  int64_t* last;          // [kMaxHeavy, kParts]: heavy parts by the last 8 bits
  int64_t* sections;      // [num_sections, kFine]: counters of one pass
  uint16_t* heavy;        // [kTop]: the row of `parts` that splits a bucket, or kLight
  uint16_t* heavy_parts;  // [kFine]: the row of `last` that splits a part, or kLight
};

constexpr int64_t kAlignment = 64;

int64_t workspace_bytes(int64_t n) {
  return (kTop + 2 * kFine + num_sections(n) * kFine) * 8 + (kTop + kFine) * 2 + kAlignment;
}

Workspace divide(void* memory, int64_t n) {
  const auto address = (reinterpret_cast<uintptr_t>(memory) + kAlignment - 1) / kAlignment * kAlignment;
  Workspace w;
  w.top = reinterpret_cast<int64_t*>(address);
  w.parts = w.top + kTop;
  w.last = w.parts + kFine;
  w.sections = w.last + kFine;
  w.heavy = reinterpret_cast<uint16_t*>(w.sections + num_sections(n) * kFine);
  w.heavy_parts = w.heavy + kTop;
  return w;
}

// Calls count(section, counters, begin, end) for each section, with `bins` zeroed counters, and adds these to `total`.
template <class Count>
void histogram(const Workspace& w, int64_t n, int64_t bins, int64_t* total, Count count) {
  const int64_t sections = num_sections(n);
  const int64_t length = (n - 1) / sections + 1;
  parallel_for(sections, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      int64_t* counters = w.sections + s * kFine;
      std::fill(counters, counters + bins, 0);
      count(s, counters, s * length, std::min(n, (s + 1) * length));
    }
  });
  std::copy(w.sections, w.sections + bins, total);
  for (int64_t s = 1; s < sections; ++s) {
    for (int64_t i = 0; i < bins; ++i) total[i] += w.sections[s * kFine + i];
  }
}

// Numbers the heavy ones of `counts` in ascending order and returns how many there are.
int64_t find_heavy(const int64_t* counts, int64_t bins, int64_t m, uint16_t* rows) {
  int64_t found = 0;
  for (int64_t i = 0; i < bins; ++i) {
    rows[i] = counts[i] * kQuantileHeavy > m ? static_cast<uint16_t>(found++) : kLight;
  }
  return found;
}

// Finds elements by rank in ascending order of the ranks asked for.
class Walk {
 public:
  explicit Walk(const int64_t* counts) : counts_(counts) {}

  // Moves to the bucket that holds element k.
  void to(int64_t k) {
    while (k >= first_ + counts_[bucket_]) first_ += counts_[bucket_++];
  }
  int64_t bucket() const { return bucket_; }
  int64_t first() const { return first_; }
  int64_t count() const { return counts_[bucket_]; }

 private:
  const int64_t* counts_;
  int64_t bucket_ = 0;
  int64_t first_ = 0;
};

int64_t sum(const int64_t* counts, int64_t bins) {
  int64_t total = 0;
  for (int64_t i = 0; i < bins; ++i) total += counts[i];
  return total;
}

// Sets each quantile to value(k) of the element it asks for.
template <class Value>
void for_each_rank(const EstimateQuantilesArgs& args, int64_t m, Value value) {
  const double step = quantile_step(args.offset, args.num_quantiles);
  for (int64_t i = 0; i < args.num_quantiles; ++i) {
    args.quantiles[i] = value(quantile_rank(args.offset, step, args.num_quantiles, i, m));
  }
}

void fill_nan(const EstimateQuantilesArgs& args) {
  std::fill(args.quantiles, args.quantiles + args.num_quantiles, std::bit_cast<float>(0x7fc00000));
}

template <class T>
void quantiles16(const EstimateQuantilesArgs& args, uint16_t infinity) {
  const Workspace w = divide(args.workspace, args.n);
  const T* x = static_cast<const T*>(args.x);
  histogram(w, args.n, kTop, w.top, [&](int64_t, int64_t* counters, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if ((x[i].bits & 0x7fff) <= infinity) ++counters[quantile_key16(x[i].bits)];
    }
  });
  const int64_t m = sum(w.top, kTop);
  if (m == 0) return fill_nan(args);
  Walk walk(w.top);
  for_each_rank(args, m, [&](int64_t k) {
    walk.to(k);
    return to_float(T{quantile_bits16(static_cast<uint32_t>(walk.bucket()))});
  });
}

void quantiles32(const EstimateQuantilesArgs& args) {
  const Workspace w = divide(args.workspace, args.n);
  const float* x = static_cast<const float*>(args.x);
  auto is_number = [](uint32_t key) { return key - kLowestKey <= kHighestKey - kLowestKey; };

  uint32_t smallest[kMaxSections];
  uint32_t largest[kMaxSections];
  histogram(w, args.n, kTop, w.top, [&](int64_t section, int64_t* counters, int64_t begin, int64_t end) {
    uint32_t low = 0xffffffff;
    uint32_t high = 0;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t key = quantile_key(x[i]);
      if (!is_number(key)) continue;
      low = std::min(low, key);
      high = std::max(high, key);
      ++counters[key >> 16];
    }
    smallest[section] = low;
    largest[section] = high;
  });
  const int64_t m = sum(w.top, kTop);
  if (m == 0) return fill_nan(args);
  const int64_t sections = num_sections(args.n);
  const uint32_t lowest = *std::min_element(smallest, smallest + sections);
  const uint32_t highest = *std::max_element(largest, largest + sections);

  const int64_t heavy = find_heavy(w.top, kTop, m, w.heavy);
  int64_t heavy_parts = 0;
  if (heavy > 0) {
    histogram(w, args.n, heavy * kParts, w.parts, [&](int64_t, int64_t* counters, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint32_t key = quantile_key(x[i]);
        const uint16_t row = w.heavy[key >> 16];
        if (row != kLight && is_number(key)) ++counters[row * kParts + (key >> 8 & 0xff)];
      }
    });
    heavy_parts = find_heavy(w.parts, heavy * kParts, m, w.heavy_parts);
  }
  if (heavy_parts > 0) {
    histogram(w, args.n, heavy_parts * kParts, w.last, [&](int64_t, int64_t* counters, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint32_t key = quantile_key(x[i]);
        const uint16_t row = w.heavy[key >> 16];
        if (row == kLight || !is_number(key)) continue;
        const uint16_t part_row = w.heavy_parts[row * kParts + (key >> 8 & 0xff)];
        if (part_row != kLight) ++counters[part_row * kParts + (key & 0xff)];
      }
    });
  }

  Walk walk(w.top);
  for_each_rank(args, m, [&](int64_t k) {
    walk.to(k);
    auto low = static_cast<uint32_t>(walk.bucket() << 16);
    int64_t width = kTop;
    int64_t first = walk.first();
    int64_t count = walk.count();
    if (const uint16_t row = w.heavy[walk.bucket()]; row != kLight) {
      Walk parts(w.parts + row * kParts);
      parts.to(k - first);
      low |= static_cast<uint32_t>(parts.bucket() << 8);
      width = kParts;
      first += parts.first();
      count = parts.count();
      if (const uint16_t part_row = w.heavy_parts[row * kParts + parts.bucket()]; part_row != kLight) {
        Walk last(w.last + part_row * kParts);
        last.to(k - first);
        return quantile_value(low | static_cast<uint32_t>(last.bucket()));
      }
    }
    const uint32_t key = low + static_cast<uint32_t>((k - first) * width / count);
    return quantile_value(std::clamp(key, lowest, highest));
  });
}

}  // namespace

int64_t estimate_quantiles_workspace(int64_t n) { return workspace_bytes(n); }

void estimate_quantiles(const EstimateQuantilesArgs& args) {
  switch (args.x_dtype) {
    case DType::BFloat16:
      return quantiles16<BFloat16>(args, 0x7f80);
    case DType::Float16:
      return quantiles16<Float16>(args, 0x7c00);
    default:
      return quantiles32(args);
  }
}

}  // namespace qbits::cpu
