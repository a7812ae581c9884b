#include "cuda/grouped_linear_4bit_cases.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <utility>

#include "qbits/dtype.h"

namespace qbits::test {
namespace {

LinearCase all_experts(const GroupedCase& c) {
  LinearCase all = c.linear;
  all.n *= c.experts();
  return all;
}

// Ways to spread m rows over experts.
std::vector<int32_t> spread(int64_t experts, int64_t m, int way, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int64_t> rows(experts);
  if (way == 0) {  // evenly
    for (int64_t t = 0; t < m; ++t) ++rows[t % experts];
  } else if (way == 1) {  // all to one, others have none
    rows[experts * 2 / 3] = m;
  } else {  // at random, which leaves some without
    for (int64_t t = 0; t < m; ++t) ++rows[random() % experts];
  }
  std::vector<int32_t> offsets = {0};
  for (const int64_t r : rows) offsets.push_back(offsets.back() + static_cast<int32_t>(r));
  return offsets;
}

}  // namespace

GroupedCase grouped_case(LinearCase linear, std::vector<int32_t> offsets) {
  return {std::move(linear), std::move(offsets)};
}

std::string to_string(const GroupedCase& c) {
  std::ostringstream text;
  text << to_string(c.linear) << ", offsets";
  for (const int32_t offset : c.offsets) text << " " << offset;
  return text.str();
}

std::vector<GroupedCase> grouped_cases() {
  struct Shape {
    int64_t experts, n, k, m;
  };
  // Odd N K, whose experts begin inside a byte; more experts than a warp has lanes; several tiles of everything.
  constexpr Shape kShapes[] = {{1, 64, 64, 20},   {3, 5, 7, 9},     {5, 33, 96, 40},   {40, 24, 64, 90},
                               {2, 257, 512, 7},  {70, 8, 32, 13},  {3, 40, 1056, 70}, {2, 136, 160, 140},
                               {4, 72, 1280, 30}, {2, 40, 96, 300}, {3, 200, 576, 0}};
  constexpr int64_t kBlocks[] = {64, 32, 128, 16, 256, 4096, 512};
  constexpr DType kDtypes[] = {DType::BFloat16, DType::Float16, DType::Float32};
  std::vector<GroupedCase> cases;
  int turn = 0;
  for (const Shape& s : kShapes) {
    for (int way = 0; way < 3; ++way) {
      for (const char* format : {"nf4", "int4", "fp4"}) {
        const bool affine = std::string(format) == "int4";
        LinearCase c{.format = format, .block_size = kBlocks[turn % 7], .n = s.n, .k = s.k, .m = s.m};
        c.dtype = turn % 5 == 4 ? DType::Float32 : kDtypes[turn % 2];  // bfloat16 and float16 more often
        if (s.m == 0) c.m = 1 + turn % 33;
        c.nested = !affine && turn / 2 % 2 == 1;
        c.bias = turn % 3 != 0;
        c.scale_dtype = kDtypes[turn / 3 % 3];
        if (affine && turn % 4 == 0) c.block_size = s.k;  // one group per row
        if (turn % 13 == 12) c.offset = 1;
        cases.push_back({c, spread(s.experts, c.m, way, static_cast<uint64_t>(turn))});
        ++turn;
      }
    }
  }
  return cases;
}

GroupedProblem::GroupedProblem(const GroupedCase& c, bool grad_x, uint64_t seed)
    : LinearProblem(all_experts(c), grad_x, seed, Empty{}),
      experts_(c.experts()),
      offsets_device_(c.offsets.size() * sizeof(int32_t)) {
  refill(c.offsets, seed + 1);
}

int64_t GroupedProblem::expert_of(int64_t row) const {
  for (int64_t e = 0; e < experts_; ++e) {
    if (offsets_[e] <= row && row < offsets_[e + 1]) return e;
  }
  return -1;
}

void GroupedProblem::write_offsets(const std::vector<int32_t>& offsets) {
  offsets_device_.write(offsets.data(), offsets.size() * sizeof(int32_t));
}

void GroupedProblem::refill(const std::vector<int32_t>& offsets, uint64_t seed) {
  offsets_ = offsets;
  write_offsets(offsets);
  if (!grad_x_) return LinearProblem::refill(seed);
  draw_a(seed);
  // The gradient of all experts' columns is 0 but for the row's own expert; the device has these alone.
  std::vector<float> own(case_.m * n());
  for (int64_t row = 0; row < case_.m; ++row) {
    const int64_t expert = expert_of(row);
    for (int64_t j = 0; j < case_.n; ++j) {
      float& value = a_[row * case_.n + j];
      if (j / n() == std::max<int64_t>(expert, 0)) own[row * n() + j % n()] = value;
      if (j / n() != expert) value = 0;
    }
  }
  write_a(own);
  multiply();
}

GroupedLinear4bitArgs GroupedProblem::forward() const {
  const Linear4bitArgs all = LinearProblem::forward();
  return {.x = all.x,
          .dtype = all.dtype,
          .m = all.m,
          .offsets = reinterpret_cast<const int32_t*>(offsets_device_.data()),
          .experts = experts_,
          .weight = all.weight,
          .bias = all.bias,
          .out = all.out,
          .workspace = nullptr,
          .device = all.device};
}

GroupedLinear4bitGradXArgs GroupedProblem::grad_x() const {
  const Linear4bitGradXArgs all = LinearProblem::grad_x();
  return {.grad = all.grad,
          .dtype = all.dtype,
          .m = all.m,
          .offsets = reinterpret_cast<const int32_t*>(offsets_device_.data()),
          .experts = experts_,
          .weight = all.weight,
          .out = all.out,
          .workspace = nullptr,
          .device = all.device};
}

std::string GroupedProblem::stray_write() const {
  const std::vector<uint8_t> bytes = result_bytes();
  const size_t begin = case_.offset * itemsize(case_.dtype);
  const size_t end = begin + case_.m * out_cols() * itemsize(case_.dtype);
  for (size_t i = 0; i < bytes.size(); ++i) {
    if ((i < begin || i >= end) && bytes[i] != 0xff)
      return "byte " + std::to_string(i) + " outside of the result was written";
  }
  return "";
}

std::string GroupedProblem::mismatch() const {
  const std::vector<float> got = result();
  int64_t bad = 0;
  std::ostringstream text;
  for (int64_t i = 0; i < case_.m * out_cols(); ++i) {
    const int64_t row = i / out_cols();
    const int64_t column = i % out_cols();
    const int64_t expert = expert_of(row);
    if (expert < 0) {
      if (!std::isnan(got[i])) return "row " + std::to_string(row) + " of no expert was written";
      continue;
    }
    const int64_t at = grad_x_ ? i : row * case_.n + expert * n() + column;
    if (std::fabs(got[i] - want_[at]) <= bound(at)) continue;
    if (bad++ == 0) {
      text << "first bad element: row " << row << " of expert " << expert << ", column " << column << ": got " << got[i]
           << ", want " << want_[at] << " within " << bound(at);
    }
  }
  if (bad == 0) return stray_write();
  text << "; " << bad << " of " << case_.m * out_cols() << " are bad";
  return text.str();
}

}  // namespace qbits::test
