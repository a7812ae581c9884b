#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "cuda/device.h"
#include "ops/args.h"
#include "ops/linear_4bit_plan.h"

// From the arguments of a product with a 4-bit weight, plain or of experts, to its plan.

namespace qbits::cuda {

// experts: 0 for a plain product. aligned: as Linear4bitProblem has it.
inline Linear4bitProblem problem_of(std::string_view op, const Weight4bitArgs& weight, int64_t experts, int64_t m,
                                    DType dtype, Device device, bool aligned) {
  const DeviceFacts& facts = device_facts(device, op);
  return {.coding = weight.format->coding,
          .block_size = weight.block_size,
          .n = experts > 0 ? weight.rows / experts : weight.rows,
          .k = weight.cols,
          .m = m,
          .experts = experts,
          .dtype = dtype,
          .nested = !weight.is_affine() && weight.absmax.is_nested(),
          .packs = can_pack(*weight.format, dtype, weight.scale_dtype),
          .aligned = aligned,
          .compute_capability = facts.compute_capability,
          .sm_count = facts.sm_count};
}

// Choosing takes longer than a launch, and a call needs its plan for the workspace and for the run: each thread keeps
// the plans of the problems it met last.
template <Linear4bitPlan (*kChoose)(const Linear4bitProblem&)>
const Linear4bitPlan& plan_of(const Linear4bitProblem& p) {
  constexpr size_t kKept = 64;
  thread_local std::array<std::pair<Linear4bitProblem, Linear4bitPlan>, kKept> kept;
  const auto size = [](int64_t s) { return static_cast<uint64_t>(s); };  // its products may wrap around
  const uint64_t mixed = (size(p.n) * 31 + size(p.k) * 17 + size(p.m) * 7 + p.aligned) * 0x9e3779b97f4a7c15;
  auto& [problem, plan] = kept[mixed >> 58];
  if (problem != p) {
    plan = kChoose(p);
    problem = p;
  }
  return plan;
}

}  // namespace qbits::cuda
