#include "ops/linear_4bit_plan.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "ops/ceil_div.h"
#include "ops/codebook_fit.h"
#include "qbits/error.h"

namespace qbits {
namespace {

constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max();
constexpr int kMaxSplits = 16;
constexpr int kSimtTile = 64;
constexpr int kSimtRowWarps = 8;
constexpr int kSimtRowColumns = 4;
constexpr int kSimtRowMaxM = 16;

bool is_power_of_two(int64_t v) { return v > 0 && (v & (v - 1)) == 0; }

void check_blocks(int64_t blocks) {
  if (blocks > kMaxBlocks) {
    throw Error(ErrorCode::Unsupported, "[linear_4bit] thread blocks: got " + std::to_string(blocks) +
                                            ", want at most " + std::to_string(kMaxBlocks));
  }
}

// Splits the depth when too few tiles exist to occupy the device, keeping a few stages for each split.
void split(Linear4bitPlan& plan, const Linear4bitTile& tile, const Linear4bitProblem& p, int64_t cols, int64_t depth,
           int wanted) {
  const int64_t tiles = max_pieces(p, tile.m) * ceil_div(cols, tile.n);
  const int64_t steps = ceil_div(depth, tile.k);
  const int64_t per_split = ceil_div(steps, std::clamp<int64_t>(wanted, 1, std::min<int64_t>(steps, kMaxSplits)));
  plan.splits = static_cast<int>(ceil_div(steps, per_split));
  plan.split_depth = per_split * tile.k;
  plan.blocks = tiles * plan.splits;
  plan.workspace_bytes = plan.splits > 1 ? plan.splits * p.m * cols * int64_t{sizeof(float)} : 0;
  check_blocks(plan.blocks);
}

int wanted_splits(const Linear4bitTile& tile, int64_t m, int64_t cols, int64_t depth, int sm_count) {
  const int64_t tiles = ceil_div(m, tile.m) * ceil_div(cols, tile.n);
  const int64_t steps = ceil_div(depth, tile.k);
  return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(sm_count / tiles, steps / 4), 1, kMaxSplits));
}

// The instructions for a problem without obstacle.
MmaIsa mma_isa(const Linear4bitProblem& p) { return p.compute_capability < 80 ? MmaIsa::Sm75 : MmaIsa::Sm80; }

// All that compute it.
std::vector<MmaIsa> mma_isas(const Linear4bitProblem& p) {
  if (mma_isa(p) == MmaIsa::Sm75) return {MmaIsa::Sm75};
  return p.dtype == DType::Float16 ? std::vector{MmaIsa::Sm75, MmaIsa::Sm80} : std::vector{MmaIsa::Sm80};
}

Linear4bitPlan mma(const Linear4bitProblem& p, MmaIsa isa, int index, int wanted) {
  const Linear4bitTile& tile = kLinear4bitTiles[index];
  const bool affine = p.coding == Coding::Affine;
  Linear4bitPlan plan{.kernel = Linear4bitKernel::Mma, .tile = index, .chunk = linear_4bit_chunk(p), .isa = isa};
  if (isa == MmaIsa::Sm75 && affine && tile.m > 64) plan.chunk = 32;  // 64 does not fit in registers, 5 % slower
  split(plan, tile, p, p.n, p.k, wanted);

  const SharedLimit limit = shared_limit(p.compute_capability);
  const int copies = Linear4bitShared::lut_copies(isa, tile, plan.chunk, affine);
  const int fixed = copies * Linear4bitShared::kPairBytes + Linear4bitShared::kNestedCodeBytes;
  const int stage = Linear4bitShared::stage(tile, plan.chunk, affine);
  // A second block on an SM is worth more than a deeper ring; 1 KB of each block is the system's.
  const bool paired = mma_blocks_per_sm(isa, tile, affine) == 2 && limit.sm / 2 - 1024 >= fixed + 3 * stage;
  const int budget = paired ? limit.sm / 2 - 1024 : limit.block;
  plan.stages = isa == MmaIsa::Sm75 ? Linear4bitShared::kSm75Stages : std::clamp((budget - fixed) / stage, 2, 6);
  plan.shared_bytes = std::max(fixed + plan.stages * stage, Linear4bitShared::reduction(tile));
  return plan;
}

int mma_tile(int64_t m) {
  int index = 0;
  while (index + 1 < kLinear4bitTileCount && m > kLinear4bitTiles[index].m) ++index;
  return index;
}

Linear4bitPlan ahead_of(const AheadPlan& ahead) {
  return {.kernel = Linear4bitKernel::Ahead,
          .blocks = ahead.blocks,
          .workspace_bytes = ahead.workspace_bytes,
          .ahead = ahead,
          .reason = "least time"};
}

// The faster of the two kernels of Hopper, if either can run.
std::optional<Linear4bitPlan> hopper_plan(const Linear4bitProblem& p, bool transposed) {
  const WgmmaPlan wgmma = linear_4bit_wgmma_plan(p, transposed);
  const AheadPlan ahead = linear_4bit_ahead_plan(p, transposed);
  if (ahead.obstacle.empty() && (!wgmma.obstacle.empty() || ahead.time < wgmma.time)) return ahead_of(ahead);
  if (wgmma.obstacle.empty()) return linear_4bit_wgmma_plan_of(wgmma);
  return {};
}

int grad_x_mma_tile(int64_t m) { return m <= kLinear4bitGradXTiles[0].m ? 0 : 1; }

Linear4bitPlan grad_x_mma(const Linear4bitProblem& p, MmaIsa isa, int index, int wanted) {
  const Linear4bitTile& tile = kLinear4bitGradXTiles[index];
  Linear4bitPlan plan{
      .kernel = Linear4bitKernel::Mma, .tile = index, .stages = Linear4bitShared::grad_x_stages(isa), .isa = isa};
  split(plan, tile, p, p.k, p.n, wanted);
  plan.shared_bytes = Linear4bitShared::grad_x(tile, plan.stages);
  return plan;
}

}  // namespace

bool can_pack(const Format& format, DType x, DType scales) {
  if (format.coding == Coding::Affine) return scales == x;
  return x == DType::BFloat16 && fitted<FitTarget{.bits = 8}>(format).exact;
}

int64_t max_pieces(const Linear4bitProblem& p, int64_t columns) {
  const int64_t experts = std::clamp<int64_t>(p.experts, 1, p.m);
  return (p.m + experts * (columns - 1)) / columns;
}

int64_t likely_pieces(const Linear4bitProblem& p, int64_t columns) {
  const int64_t experts = std::clamp<int64_t>(p.experts, 1, p.m);
  return experts * ceil_div(ceil_div(p.m, experts), columns);
}

std::optional<Linear4bitPlan> linear_4bit_few_rows_plan(const Linear4bitProblem& p, int64_t rows) {
  auto stream = linear_4bit_stream_plan(p);
  if (!stream) return {};
  // Of experts, whose models lack what it costs to begin with each, by measured times on an H200: wgmma where weights
  // are enough for all multiprocessors, but where rows fill the slots of a block and there are most of them.
  const bool affine = p.coding == Coding::Affine;
  const int64_t weights = p.n * p.k;
  const int64_t products = std::clamp<int64_t>(p.experts, 1, p.m);
  const bool enough = weights >= ceil_div(int64_t{1} << 24, products);
  const bool most = p.k >= 3840 && weights >= ceil_div(int64_t{1} << (affine ? 27 : 28), products);
  if (rows > 8 && (p.experts == 0 || (enough && !most))) {
    const WgmmaPlan wgmma = linear_4bit_wgmma_plan(p, false);
    const bool faster = p.experts > 0 || wgmma.time < stream->time;
    if (wgmma.obstacle.empty() && wgmma.decode == WgmmaDecode::Sums && faster) return linear_4bit_wgmma_plan_of(wgmma);
  }
  stream->reason = "few rows";
  return stream;
}

Linear4bitPlan linear_4bit_simt_row_plan(const Linear4bitProblem& p) {
  Linear4bitPlan plan{.kernel = Linear4bitKernel::SimtRow};
  plan.blocks = ceil_div(p.n, kSimtRowWarps) * max_pieces(p, kSimtRowColumns);
  plan.split_depth = p.k;
  check_blocks(plan.blocks);
  return plan;
}

Linear4bitPlan linear_4bit_simt_tile_plan(const Linear4bitProblem& p, bool transposed) {
  Linear4bitPlan plan{.kernel = Linear4bitKernel::SimtTile};
  plan.blocks = ceil_div(transposed ? p.k : p.n, kSimtTile) * max_pieces(p, kSimtTile);
  plan.split_depth = transposed ? p.n : p.k;
  check_blocks(plan.blocks);
  return plan;
}

Linear4bitPlan linear_4bit_mma_plan(const Linear4bitProblem& p, int64_t rows, bool transposed) {
  return transposed ? grad_x_mma(p, mma_isa(p), grad_x_mma_tile(rows), 1) : mma(p, mma_isa(p), mma_tile(rows), 1);
}

Linear4bitPlan linear_4bit_wgmma_plan_of(const WgmmaPlan& wgmma) {
  int64_t workspace_bytes = wgmma.workspace_bytes;
  for (const WgmmaPlan& rest : wgmma.rest) workspace_bytes = std::max(workspace_bytes, rest.workspace_bytes);
  return {.kernel = Linear4bitKernel::Wgmma,
          .splits = wgmma.splits,
          .blocks = wgmma.blocks,
          .workspace_bytes = workspace_bytes,
          .wgmma = wgmma,
          .reason = "least time"};
}

void check_linear_4bit_problem(const Linear4bitProblem& p) {
  if (p.n < 0 || p.k < 0 || p.m < 1 || p.block_size < 0 || !is_floating(p.dtype)) {
    throw Error(ErrorCode::Unsupported, "[linear_4bit] problem: got m " + std::to_string(p.m) + ", n " +
                                            std::to_string(p.n) + ", k " + std::to_string(p.k) + ", block size " +
                                            std::to_string(p.block_size) + ", dtype " + std::string(name(p.dtype)) +
                                            ", want sizes from 0, m from 1 and a floating dtype");
  }
}

SharedLimit shared_limit(int cc) {
  if (cc == 75) return {Linear4bitShared::kSm75Bytes, Linear4bitShared::kSm75Bytes};
  if (cc == 80 || cc == 87) return {164 * 1024, 163 * 1024};
  if (cc == 90 || (cc >= 100 && cc < 120)) return {228 * 1024, 227 * 1024};
  return {100 * 1024, 99 * 1024};
}

std::string linear_4bit_mma_obstacle(const Linear4bitProblem& p, int64_t run) {
  if (p.compute_capability < 75) return "compute capability below 7.5";
  if (p.dtype == DType::Float32) return "float32 activations";
  if (p.dtype == DType::BFloat16 && p.compute_capability < 80) return "bfloat16 below compute capability 8.0";
  if (!p.aligned) return "pointers not on 16-byte boundaries";
  if (p.n == 0 || p.k == 0) return "empty weight";
  if (p.k % 32 != 0) return "K is no multiple of 32";
  const bool whole_row = p.coding == Coding::Affine && p.block_size >= p.k;
  if (!whole_row && (!is_power_of_two(p.block_size) || p.block_size < run)) {
    return "block size is no power of two from " + std::to_string(run);
  }
  return "";
}

std::string linear_4bit_grad_x_mma_obstacle(const Linear4bitProblem& p) {
  if (std::string obstacle = linear_4bit_mma_obstacle(p, 16); !obstacle.empty()) return obstacle;
  return p.n % 8 == 0 ? "" : "N is no multiple of 8";
}

int linear_4bit_chunk(const Linear4bitProblem& p) {
  const bool affine = p.coding == Coding::Affine;
  const bool wide = affine ? p.block_size % 64 == 0 || p.block_size >= p.k : p.block_size % 64 == 0 && p.k % 64 == 0;
  return wide ? 64 : 32;
}

Linear4bitPlan linear_4bit_plan(const Linear4bitProblem& p) {
  check_linear_4bit_problem(p);
  if (const std::string obstacle = linear_4bit_mma_obstacle(p, 32); !obstacle.empty()) {
    Linear4bitPlan plan = p.m <= kSimtRowMaxM ? linear_4bit_simt_row_plan(p) : linear_4bit_simt_tile_plan(p, false);
    plan.reason = obstacle;
    return plan;
  }
  if (const auto few = linear_4bit_few_rows_plan(p, p.m)) return *few;
  if (const auto hopper = hopper_plan(p, false)) return *hopper;
  const int index = mma_tile(p.m);
  Linear4bitPlan plan = mma(p, mma_isa(p), index, wanted_splits(kLinear4bitTiles[index], p.m, p.n, p.k, p.sm_count));
  plan.reason = "smallest tile that holds m";
  return plan;
}

std::vector<Linear4bitPlan> linear_4bit_plans(const Linear4bitProblem& p) {
  check_linear_4bit_problem(p);
  std::vector<Linear4bitPlan> plans = {linear_4bit_simt_row_plan(p), linear_4bit_simt_tile_plan(p, false)};
  if (!linear_4bit_mma_obstacle(p, 32).empty()) return plans;
  for (const MmaIsa isa : mma_isas(p)) {
    for (int index = 0; index < kLinear4bitTileCount; ++index) {
      plans.push_back(mma(p, isa, index, 1));
      if (Linear4bitPlan two = mma(p, isa, index, 3); two.splits > 1) plans.push_back(two);
    }
  }
  std::ranges::move(linear_4bit_stream_plans(p), std::back_inserter(plans));
  std::ranges::transform(linear_4bit_wgmma_plans(p, false), std::back_inserter(plans), linear_4bit_wgmma_plan_of);
  std::ranges::transform(linear_4bit_ahead_plans(p, false), std::back_inserter(plans), ahead_of);
  return plans;
}

Linear4bitPlan linear_4bit_grad_x_plan(const Linear4bitProblem& p) {
  check_linear_4bit_problem(p);
  if (const std::string obstacle = linear_4bit_grad_x_mma_obstacle(p); !obstacle.empty()) {
    Linear4bitPlan plan = linear_4bit_simt_tile_plan(p, true);
    plan.reason = obstacle;
    return plan;
  }
  if (const auto hopper = hopper_plan(p, true)) return *hopper;
  const int index = grad_x_mma_tile(p.m);
  const Linear4bitTile& tile = kLinear4bitGradXTiles[index];
  Linear4bitPlan plan = grad_x_mma(p, mma_isa(p), index, wanted_splits(tile, p.m, p.k, p.n, p.sm_count));
  plan.reason = "smallest tile that holds m";
  return plan;
}

std::vector<Linear4bitPlan> linear_4bit_grad_x_plans(const Linear4bitProblem& p) {
  check_linear_4bit_problem(p);
  std::vector<Linear4bitPlan> plans = {linear_4bit_simt_tile_plan(p, true)};
  if (!linear_4bit_grad_x_mma_obstacle(p).empty()) return plans;
  for (const MmaIsa isa : mma_isas(p)) {
    for (int index = 0; index < kLinear4bitGradXTileCount; ++index) {
      plans.push_back(grad_x_mma(p, isa, index, 1));
      if (Linear4bitPlan two = grad_x_mma(p, isa, index, 3); two.splits > 1) plans.push_back(two);
    }
  }
  std::ranges::transform(linear_4bit_wgmma_plans(p, true), std::back_inserter(plans), linear_4bit_wgmma_plan_of);
  std::ranges::transform(linear_4bit_ahead_plans(p, true), std::back_inserter(plans), ahead_of);
  return plans;
}

std::string to_string(const Linear4bitPlan& plan) {
  std::string text;
  switch (plan.kernel) {
    case Linear4bitKernel::SimtRow:
      text = "simt row";
      break;
    case Linear4bitKernel::SimtTile:
      text = "simt tile 64x64";
      break;
    case Linear4bitKernel::Mma: {
      // Only the forward kernel has a chunk.
      const Linear4bitTile& t = plan.chunk > 0 ? kLinear4bitTiles[plan.tile] : kLinear4bitGradXTiles[plan.tile];
      text = plan.isa == MmaIsa::Sm75 ? "mma of sm_75 " : "mma ";
      text += std::to_string(t.m) + "x" + std::to_string(t.n) + "x" + std::to_string(t.k);
      if (plan.chunk > 0) text += ", chunk " + std::to_string(plan.chunk);
      text += ", " + std::to_string(plan.stages) + " stages, " + std::to_string(plan.shared_bytes) + " B shared";
      break;
    }
    case Linear4bitKernel::Stream:
      text = "stream " + std::to_string(8 * plan.column_tiles) + "x" + std::to_string(16 * plan.warps / plan.parts) +
             ", " + std::to_string(plan.warps) + " warps, chunk " + std::to_string(plan.chunk) + ", " +
             std::to_string(plan.stages) + " stages, " + std::to_string(plan.rounds) + " rounds, " +
             std::to_string(plan.shared_bytes) + " B shared";
      break;
    case Linear4bitKernel::Wgmma: {
      constexpr const char* kDecodes[] = {"scaled sums", "scaled weights", "packed weights"};
      const auto tiles = [&](const WgmmaPlan& w) {
        std::string of = std::to_string(w.columns) + "x" + std::to_string(64 * w.groups) + ", " +
                         kDecodes[static_cast<int>(w.decode)] + ", " + std::to_string(w.whole_tiles) + " tiles and " +
                         std::to_string(w.shared_tiles) + " shared";
        if (w.sharers > 1) of += ", x shared by two blocks";
        if (w.clusters > 1) of += ", by " + std::to_string(w.clusters) + " clusters";
        return of;
      };
      text = "wgmma " + tiles(plan.wgmma);
      for (const WgmmaPlan& rest : plan.wgmma.rest) text += ", then " + tiles(rest);
      break;
    }
    case Linear4bitKernel::Ahead: {
      const AheadPlan& a = plan.ahead;
      text = "ahead " + std::to_string(a.columns) + "x" + std::to_string(Ahead::kUnitOutputs) + ", groups of " +
             std::to_string(a.group) + ", a ring of " + std::to_string(a.units);
    }
  }
  text += ", " + std::to_string(plan.blocks) + " blocks";
  if (plan.splits > 1) {
    text += ", " + std::to_string(plan.splits) + " splits";
    if (plan.split_depth > 0) text += " of " + std::to_string(plan.split_depth);
    if (plan.workspace_bytes == 0 || plan.kernel == Linear4bitKernel::Wgmma) text += ", a cluster";
  }
  if (plan.phases > 1) {
    text += ", " + std::to_string(plan.phases) + " phases of " + std::to_string(plan.split_depth);
  }
  if (plan.workspace_bytes > 0) text += ", workspace " + std::to_string(plan.workspace_bytes) + " B";
  if (!plan.reason.empty()) text += " (" + plan.reason + ")";
  return text;
}

}  // namespace qbits
