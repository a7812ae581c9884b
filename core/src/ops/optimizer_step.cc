#include "ops/optimizer_step.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ops/ceil_div.h"
#include "ops/check.h"
#include "ops/optimizer_rules.h"

namespace qbits {
namespace {

constexpr std::string_view kOp = "optimizer_step";

template <class Rule>
constexpr OptimizerAlgorithm row(std::string_view name, std::string_view summary, Algorithm algorithm) {
  return {.name = name,
          .summary = summary,
          .algorithm = algorithm,
          .first = kHasState<Rule> ? Rule::kFirst : 0,
          .second = Rule::kSecond};
}

// c1 = 1 - beta1^t and c2 = sqrt(1 - beta2^t) correct the means of Adam and AdEMAMix for their start at 0.
constexpr std::array<OptimizerAlgorithm, 7> kAlgorithms = {
    row<AdamRule>("adam",
                  "m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g g; p -= (lr c2 / c1) (m / (sqrt(v) + c2 eps)): Kingma "
                  "and Ba, arXiv 1412.6980",
                  Algorithm::Adam),
    row<AdEMAMixRule>("ademamix",
                      "as adam with a second, slow mean n of beta3: m + c1 alpha n instead of m in the update: "
                      "Pagliardini et al., arXiv 2409.03137",
                      Algorithm::AdEMAMix),
    row<LionRule>("lion", "p -= lr sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g: Chen et al., arXiv 2302.06675",
                  Algorithm::Lion),
    row<RMSpropRule>("rmsprop", "v = b1 v + (1 - b1) g g; p -= lr (g / (sqrt(v) + eps)): Tieleman and Hinton, 2012",
                     Algorithm::RMSprop),
    row<AdagradRule>("adagrad",
                     "v += g g; p -= (lr / (1 + (t - 1) lr_decay)) (g / (sqrt(v) + eps)): Duchi et al., JMLR 12, 2011",
                     Algorithm::Adagrad),
    row<MomentumRule>("momentum",
                      "m = b1 m + (1 - dampening) g, the first time m = g; p -= lr m, with nesterov lr (g + b1 m): "
                      "Sutskever et al., ICML 2013, as torch writes it",
                      Algorithm::Momentum),
    row<GradientDescentRule>("gradient_descent", "p -= lr g", Algorithm::GradientDescent),
};

constexpr std::array<std::string_view, 14> kFields = {"lr",       "weight_decay", "beta1",       "beta2",  "beta3",
                                                      "alpha",    "alpha_steps",  "beta3_steps", "eps",    "dampening",
                                                      "nesterov", "lr_decay",     "maximize",    "scaling"};
static_assert(kFields.size() == static_cast<size_t>(OptimizerField::Scaling) + 1);
static_assert(kFields.size() <= kOptimizerFields);

bool is_8bit(const OptimizerTensor& t) { return t.state1 && t.state1->dtype == DType::UInt8; }

// Of the blocks the step works with; those of 32-bit state have no rows.
int64_t row_of(const OptimizerTensor& t) { return is_8bit(t) ? t.row : 0; }

int64_t chunks_of(int64_t numel, int64_t row) { return ceil_div(state_blocks(numel, row), kOptimizerChunkBlocks); }

int64_t chunks_of(std::span<const OptimizerTensor> tensors) {
  int64_t chunks = 0;
  for (const OptimizerTensor& t : tensors) chunks += chunks_of(t.param.numel(), row_of(t));
  return chunks;
}

void require_presence(std::string_view what, const std::optional<TensorView>& t, bool wanted) {
  check::require(t.has_value() == wanted, ErrorCode::InvalidArgument, kOp, what, wanted ? "none" : "a tensor",
                 wanted ? "a tensor" : "none: the algorithm or the dtype of the state has no use for it");
}

// State of `numbers` an element, in the dtype `states`, and its scales.
void check_state(std::string_view state_name, std::string_view absmax_name, const std::optional<TensorView>& state,
                 const std::optional<TensorView>& absmax, int64_t numbers, DType states, int64_t n, int64_t blocks,
                 Device device) {
  require_presence(state_name, state, numbers > 0);
  require_presence(absmax_name, absmax, numbers > 0 && states == DType::UInt8);
  if (state) {
    check::tensor(kOp, state_name, *state, {states}, device);
    check::numel(kOp, state_name, *state, numbers * n);
  }
  if (absmax) {
    check::tensor(kOp, absmax_name, *absmax, {DType::Float32}, device);
    check::numel(kOp, absmax_name, *absmax, numbers * blocks);
  }
}

// Of a parameter that has been checked, or null.
void* checked_compensation(const OptimizerStep& step, const OptimizerTensor& t) {
  if (!t.compensation) return nullptr;
  check::require(t.param.dtype != DType::Float32, ErrorCode::InvalidArgument, kOp, "compensation",
                 "one of a float32 parameter", "none: it is for those of 16 bits");
  check::require(!step.stochastic_rounding, ErrorCode::InvalidArgument, kOp, "compensation",
                 "one with stochastic rounding", "only one of the two");
  check::tensor(kOp, "compensation", *t.compensation, {t.param.dtype}, t.param.device);
  check::numel(kOp, "compensation", *t.compensation, t.param.numel());
  return t.compensation->data;
}

const float* checked_scalar(std::string_view what, const std::optional<TensorView>& t, Device device) {
  if (!t) return nullptr;
  check::tensor(kOp, what, *t, {DType::Float32}, device);
  check::numel(kOp, what, *t, 1);
  return t->as<const float>();
}

OptimizerEntry checked(const OptimizerStep& step, const OptimizerTensor& t, int64_t groups, Device device,
                       Device state_device) {
  const OptimizerAlgorithm& algorithm = *step.algorithm;
  const int64_t n = t.param.numel();
  check::floating(kOp, "param", t.param, device);
  check::floating(kOp, "grad", t.grad, device);
  check::numel(kOp, "grad", t.grad, n);
  check::require(
      t.row >= 0 && (t.row == 0 || n % t.row == 0), ErrorCode::InvalidArgument, kOp, "row",
      [&] { return std::to_string(t.row); }, [&] { return "0 or a divisor of " + std::to_string(n); });
  const int64_t blocks = state_blocks(n, row_of(t));
  check::require(
      row_of(t) == 0 || blocks <= std::numeric_limits<uint32_t>::max(), ErrorCode::InvalidArgument, kOp, "row",
      [&] { return std::to_string(blocks) + " blocks"; }, "fewer than 2^32 blocks of rows");
  const DType states = is_8bit(t) ? DType::UInt8 : DType::Float32;
  check_state("state1", "absmax1", t.state1, t.absmax1, algorithm.first, states, n, blocks, state_device);
  check_state("state2", "absmax2", t.state2, t.absmax2, algorithm.second, states, n, blocks, state_device);
  check::tensor(kOp, "step", t.step, {DType::Float32}, device);
  check::numel(kOp, "step", t.step, 1);
  check::require(
      t.group >= 0 && t.group < groups, ErrorCode::InvalidArgument, kOp, "group",
      [&] { return std::to_string(t.group); }, [&] { return "one of the " + std::to_string(groups) + " rows"; });
  const auto data = [](const std::optional<TensorView>& view) { return view ? view->data : nullptr; };
  OptimizerEntry entry{.param = t.param.data,
                       .grad = t.grad.data,
                       .state1 = data(t.state1),
                       .state2 = data(t.state2),
                       .absmax1 = static_cast<float*>(data(t.absmax1)),
                       .absmax2 = static_cast<float*>(data(t.absmax2)),
                       .compensation = checked_compensation(step, t),
                       .step = t.step.as<float>(),
                       .grad_scale = checked_scalar("grad_scale", t.grad_scale, device),
                       .numel = n,
                       .row = row_of(t),
                       .offset = t.offset,
                       .group = static_cast<int32_t>(t.group),
                       .id = t.id,
                       .first_chunk = 0,
                       .param_dtype = t.param.dtype,
                       .grad_dtype = t.grad.dtype,
                       .vectors = false,
                       .counts = true};
  entry.vectors = allows_vectors(entry, algorithm);
  return entry;
}

// uint8, rows of kOptimizerFields doubles; returns their number.
int64_t check_groups(std::string_view op, const TensorView& groups, Device device) {
  constexpr int64_t kBytes = kOptimizerFields * sizeof(double);
  check::tensor(op, "groups", groups, {DType::UInt8}, device);
  check::require(
      groups.numel() % kBytes == 0 && reinterpret_cast<uintptr_t>(groups.data) % alignof(double) == 0,
      ErrorCode::InvalidArgument, op, "groups", [&] { return groups.describe(); },
      [&] { return "rows of " + std::to_string(kBytes) + " bytes, on an 8-byte boundary"; });
  return groups.numel() / kBytes;
}

void check_choices(const OptimizerStep& step) {
  check::require(step.algorithm != nullptr, ErrorCode::InvalidArgument, kOp, "algorithm", "none",
                 "one of the table of algorithms");
  if (step.scaling == LayerScaling::None) return;
  check::require(step.algorithm->algorithm != Algorithm::GradientDescent, ErrorCode::InvalidArgument, kOp, "scaling",
                 "one of layers with gradient_descent", "none");
  if (step.scaling != LayerScaling::TrustRatio) return;
  const bool momentum = step.algorithm->algorithm == Algorithm::Momentum;
  check::require(momentum ? step.decay == Decay::Coupled : step.decay != Decay::After, ErrorCode::InvalidArgument, kOp,
                 "decay", "one that the trust ratio does not know", momentum ? "coupled" : "coupled or before");
}

std::vector<OptimizerEntry> make_entries(const OptimizerStep& step, std::span<const OptimizerTensor> tensors,
                                         const std::vector<bool>& on_host, int64_t groups, Device device) {
  std::vector<OptimizerEntry> entries;
  entries.reserve(tensors.size());
  int64_t chunks = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    try {
      const Device state_device = !on_host.empty() && on_host[i] ? Device{} : device;
      entries.push_back(checked(step, tensors[i], groups, device, state_device));
      chunks += chunks_of(entries.back().numel, entries.back().row);
    } catch (const Error& error) {
      throw Error(error.code(), std::string(error.what()) + " (tensor " + std::to_string(i) + ")");
    }
  }
  check::require(
      chunks <= std::numeric_limits<int32_t>::max(), ErrorCode::InvalidArgument, kOp, "elements",
      [&] { return std::to_string(chunks) + " chunks"; }, "fewer than 2^44 elements");
  return entries;
}

}  // namespace

std::vector<OptimizerEntry> check_optimizer_step(const OptimizerStep& step, std::span<const OptimizerTensor> tensors,
                                                 const std::vector<bool>& on_host) {
  check_choices(step);
  const Device device = step.groups.device;
  const int64_t groups = check_groups(kOp, step.groups, device);
  static_cast<void>(checked_scalar("grad_scale", step.grad_scale, device));
  static_cast<void>(checked_scalar("found_inf", step.found_inf, device));
  check::tensor(kOp, "skipped", step.skipped, {DType::Int64}, device);
  check::numel(kOp, "skipped", step.skipped, 1);
  return make_entries(step, tensors, on_host, groups, device);
}

bool allows_vectors(const OptimizerEntry& e, const OptimizerAlgorithm& algorithm) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(e.param) | reinterpret_cast<uintptr_t>(e.grad) |
                        reinterpret_cast<uintptr_t>(e.state1) | reinterpret_cast<uintptr_t>(e.state2) |
                        reinterpret_cast<uintptr_t>(e.compensation);
  return all % 16 == 0 && (algorithm.first < 2 || e.numel % 4 == 0) && e.row % 4 == 0;
}

std::span<const OptimizerAlgorithm> optimizer_algorithms() { return kAlgorithms; }

const OptimizerAlgorithm& optimizer_algorithm(std::string_view name) {
  std::string known;
  for (const OptimizerAlgorithm& algorithm : kAlgorithms) {
    if (algorithm.name == name) return algorithm;
    known.append(known.empty() ? "" : ", ").append(algorithm.name);
  }
  check::fail(ErrorCode::InvalidArgument, "optimizer_algorithm", "name", std::string(name), "one of " + known);
}

void unknown_algorithm(std::string_view op, Algorithm algorithm) {
  check::fail(ErrorCode::InvalidArgument, op, "algorithm", std::to_string(static_cast<int>(algorithm)),
              "one of the table of algorithms");
}

std::span<const std::string_view> optimizer_fields() { return kFields; }

int64_t optimizer_step_workspace(const OptimizerStep& step, std::span<const OptimizerTensor> tensors) {
  return tensors.empty() ? 0 : OptimizerWorkspace(std::ssize(tensors), chunks_of(tensors), step.scaling).bytes;
}

void run_optimizer_step(const OptimizerStep& step, std::vector<OptimizerEntry> entries, const TensorView& workspace,
                        Stream stream) {
  if (entries.empty()) return;
  const auto end_8bit = std::ranges::stable_partition(entries, &OptimizerEntry::is_8bit).begin();
  int64_t chunks = 0;
  int64_t chunks_8bit = 0;
  for (auto entry = entries.begin(); entry != entries.end(); ++entry) {
    entry->first_chunk = static_cast<int32_t>(chunks);
    chunks += chunks_of(entry->numel, entry->row);
    if (entry < end_8bit) chunks_8bit = chunks;
  }
  const Device device = step.groups.device;
  const OptimizerStepArgs args{.algorithm = step.algorithm->algorithm,
                               .decay = step.decay,
                               .scaling = step.scaling,
                               .stochastic_rounding = step.stochastic_rounding,
                               .seed = step.seed,
                               .groups = step.groups.as<const double>(),
                               .grad_scale = checked_scalar("grad_scale", step.grad_scale, device),
                               .found_inf = checked_scalar("found_inf", step.found_inf, device),
                               .skipped = step.skipped.as<int64_t>(),
                               .entries = entries.data(),
                               .count = static_cast<int32_t>(entries.size()),
                               .chunks = static_cast<int32_t>(chunks),
                               .chunks_8bit = static_cast<int32_t>(chunks_8bit),
                               .workspace = workspace.data,
                               .device = device};
  device.type == DeviceType::Cpu ? cpu::optimizer_step(args) : cuda::optimizer_step(args, stream);
}

void check_optimizer_workspace(const OptimizerStep& step, std::span<const OptimizerTensor> tensors,
                               const TensorView& workspace) {
  check::workspace(kOp, workspace, optimizer_step_workspace(step, tensors), step.groups.device);
  check::require(tensors.empty() || reinterpret_cast<uintptr_t>(workspace.data) % 16 == 0, ErrorCode::InvalidArgument,
                 kOp, "workspace", "an address off 16-byte boundaries", "one on them");
}

void optimizer_step(const OptimizerStep& step, std::span<const OptimizerTensor> tensors, const TensorView& workspace,
                    Stream stream) {
  std::vector<OptimizerEntry> entries = check_optimizer_step(step, tensors);
  check_optimizer_workspace(step, tensors, workspace);
  run_optimizer_step(step, std::move(entries), workspace, stream);
}

void write_optimizer_groups(std::span<const double> values, const TensorView& groups, Stream stream) {
  constexpr std::string_view op = "write_optimizer_groups";
  const int64_t rows = check_groups(op, groups, groups.device);
  check::require(
      std::ssize(values) == rows * kOptimizerFields, ErrorCode::InvalidArgument, op, "values",
      [&] { return std::to_string(values.size()); },
      [&] { return std::to_string(rows * kOptimizerFields) + ", as the table has"; });
  if (rows == 0) return;
  if (groups.device.type == DeviceType::Cpu) {
    std::copy(values.begin(), values.end(), groups.as<double>());
  } else {
    cuda::write_optimizer_groups(values, groups.as<double>(), groups.device, stream);
  }
}

}  // namespace qbits
