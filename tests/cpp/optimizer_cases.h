#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <string_view>
#include <vector>

#include "float_bits.h"
#include "qbits/optim.h"

// Parameters, gradients and state of an optimizer step as plain memory, for tests on any device.

namespace qbits::test {

inline constexpr int64_t kSizes[] = {1, 3, 127, 128, 129, 255, 256, 257, 1000, 4099, 8192, 8193, 20000};

// A row of the group table.
inline std::vector<double> group_row(std::initializer_list<std::pair<OptimizerField, double>> fields) {
  std::vector<double> row(kOptimizerFields, 0.0);
  for (const auto& [field, value] : fields) row[static_cast<int>(field)] = value;
  return row;
}

// Hyperparameters that any algorithm can work with.
inline std::vector<double> any_row() {
  using enum OptimizerField;
  return group_row({{Lr, 0.01},
                    {WeightDecay, 0.1},
                    {Beta1, 0.9},
                    {Beta2, 0.99},
                    {Beta3, 0.999},
                    {Alpha, 4.0},
                    {AlphaSteps, 10.0},
                    {Beta3Steps, 20.0},
                    {Eps, 1e-8},
                    {Dampening, 0.1},
                    {LrDecay, 0.01},
                    {Scaling, 0.02}});
}

inline Buffer as_bytes(const std::vector<double>& values) {
  Buffer bytes(DType::UInt8, static_cast<int64_t>(8 * values.size()));
  std::copy_n(reinterpret_cast<const uint8_t*>(values.data()), bytes.bytes.size(), bytes.bytes.data());
  return bytes;
}

inline Buffer filled(DType dtype, int64_t n, uint8_t byte) {
  Buffer buffer(dtype, n);
  std::fill(buffer.bytes.begin(), buffer.bytes.end(), byte);
  return buffer;
}

inline int64_t state_blocks(int64_t n, int64_t row) {
  return row == 0 ? (n + 255) / 256 : n / row * ((row + 255) / 256);
}

// A length of rows that n elements make up, 0 without `by_row`.
inline int64_t row_of(int64_t n, bool by_row) {
  int64_t row = by_row ? std::min<int64_t>(n, 600) : 0;
  while (by_row && n % row != 0) --row;
  return row;
}

// Of one tensor, in this order; what there is no use for is empty. `compensated`: the dtype of a parameter that has a
// compensation, float32 for none.
struct StateBuffers {
  Buffer state1, state2, absmax1, absmax2, step, compensation;

  StateBuffers(const OptimizerAlgorithm& algorithm, int64_t n, bool is_8bit, int64_t row = 0,
               DType compensated = DType::Float32)
      : state1(filled(is_8bit ? DType::UInt8 : DType::Float32, algorithm.first * n, is_8bit ? 127 : 0)),
        state2(filled(is_8bit ? DType::UInt8 : DType::Float32, algorithm.second * n, 0)),
        absmax1(filled(DType::Float32, is_8bit ? algorithm.first * state_blocks(n, row) : 0, 0)),
        absmax2(filled(DType::Float32, is_8bit ? algorithm.second * state_blocks(n, row) : 0, 0)),
        step(filled(DType::Float32, 1, 0)),
        compensation(filled(compensated, compensated == DType::Float32 ? 0 : n, 0)) {}

  std::vector<Buffer*> all() { return {&state1, &state2, &absmax1, &absmax2, &step, &compensation}; }
};

// The tensor of views in the order param, grad, state1, state2, absmax1, absmax2, step, compensation.
inline OptimizerTensor optimizer_tensor(const std::vector<TensorView>& views, int64_t group = 0) {
  const auto present = [](const TensorView& view) { return view.numel() > 0 ? std::optional(view) : std::nullopt; };
  return {.param = views[0],
          .grad = views[1],
          .state1 = present(views[2]),
          .state2 = present(views[3]),
          .absmax1 = present(views[4]),
          .absmax2 = present(views[5]),
          .compensation = present(views[7]),
          .step = views[6],
          .group = group};
}

inline TensorView view(Buffer& buffer) { return view_of(buffer, {std::ssize(buffer.bytes) / itemsize(buffer.dtype)}); }

// Whatever an optimizer of a test has in memory: tensors of all sizes, dtypes in turn, and their steps.
struct Problem {
  // With `compensated` the parameters of 16 bits have compensations.
  Problem(std::string_view algorithm, bool is_8bit, std::vector<double> groups, bool only_float32 = false,
          bool compensated = false)
      : groups(as_bytes(groups)), skipped(filled(DType::Int64, 1, 0)) {
    step.algorithm = &optimizer_algorithm(algorithm);
    step.groups = view(this->groups);
    step.skipped = view(skipped);
    constexpr DType kTypes[] = {DType::Float32, DType::BFloat16, DType::Float16};
    uint32_t seed = 0;
    for (int64_t n : kSizes) {
      const DType dtype = only_float32 ? DType::Float32 : kTypes[seed % 3];
      params.push_back(random_buffer(dtype, n, ++seed));
      grads.push_back(random_buffer(only_float32 ? dtype : kTypes[seed % 3], n, 100 + seed, 0.01F));
      states.emplace_back(*step.algorithm, n, is_8bit, 0, compensated ? dtype : DType::Float32);
    }
  }

  std::vector<OptimizerTensor> tensors() {
    std::vector<OptimizerTensor> all;
    for (size_t i = 0; i < params.size(); ++i) {
      std::vector<TensorView> views = {view(params[i]), view(grads[i])};
      for (Buffer* buffer : states[i].all()) views.push_back(view(*buffer));
      all.push_back(optimizer_tensor(views));
      all.back().id = static_cast<uint32_t>(i);
    }
    return all;
  }

  void run(int steps = 1) { run(tensors(), steps); }

  void run(const std::vector<OptimizerTensor>& all, int steps = 1) {
    std::vector<std::max_align_t> workspace(optimizer_step_workspace(step, all) / sizeof(std::max_align_t) + 1);
    const auto bytes = static_cast<int64_t>(workspace.size() * sizeof(std::max_align_t));
    for (int i = 0; i < steps; ++i) {
      optimizer_step(step, all, TensorView::contiguous(workspace.data(), DType::UInt8, {bytes}));
    }
  }

  int64_t count_skipped() { return *reinterpret_cast<int64_t*>(skipped.bytes.data()); }

  OptimizerStep step;
  Buffer groups;
  Buffer skipped;
  std::vector<Buffer> params, grads;
  std::vector<StateBuffers> states;
};

}  // namespace qbits::test
