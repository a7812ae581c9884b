#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "optimizer_cases.h"
#include "qbits/error.h"
#include "qbits/quantize.h"
#include "qbits/runtime.h"
#include "refusal.h"

namespace qbits {
namespace {

using test::Buffer;
using test::Problem;
using test::view;

enum class Rounding : uint8_t { Nearest, Stochastic, Compensated };

TEST(OptimizerStep, EveryInstructionSetWritesTheSameBits) {
  const std::string own = isa();
  for (const OptimizerAlgorithm& algorithm : optimizer_algorithms()) {
    for (bool is_8bit : {false, true}) {
      if (is_8bit && algorithm.first == 0) continue;
      for (Rounding rounding : {Rounding::Nearest, Rounding::Stochastic, Rounding::Compensated}) {
        set_isa("scalar");
        Problem want(algorithm.name, is_8bit, test::any_row(), false, rounding == Rounding::Compensated);
        Problem got(algorithm.name, is_8bit, test::any_row(), false, rounding == Rounding::Compensated);
        for (Problem* p : {&want, &got}) {
          p->step.stochastic_rounding = rounding == Rounding::Stochastic;
          p->step.decay = algorithm.second > 0 ? Decay::Before : Decay::Coupled;
          p->grads[9].set(1234, NAN);
          p->run(3);
          set_isa(own);
        }
        const std::string where = std::string(algorithm.name) + (is_8bit ? " 8" : " 32");
        EXPECT_EQ(want.count_skipped(), got.count_skipped()) << where;
        EXPECT_EQ(got.count_skipped(), 3) << where;
        for (size_t i = 0; i < want.params.size(); ++i) {
          EXPECT_EQ(want.params[i].bytes, got.params[i].bytes) << where << " param " << i;
          for (size_t k = 0; k < want.states[i].all().size(); ++k) {
            EXPECT_EQ(want.states[i].all()[k]->bytes, got.states[i].all()[k]->bytes) << where << " state " << i << k;
          }
        }
      }
    }
  }
}

TEST(OptimizerStep, AdamWAgainstFloat64) {
  Problem p("adam", false, test::any_row(), true);
  const auto before = p.params;
  p.run(5);
  for (size_t k = 0; k < p.params.size(); ++k) {
    for (int64_t i = 0; i < test::kSizes[k]; ++i) {
      const double g = p.grads[k].get(i);
      double x = before[k].get(i), m = 0, v = 0;
      for (int t = 1; t <= 5; ++t) {
        m = 0.9 * m + 0.1 * g;
        v = 0.99 * v + 0.01 * g * g;
        x -= 0.01 * 0.1 * x;
        x -= 0.01 * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.99, t))) + 1e-8);
      }
      ASSERT_NEAR(p.params[k].get(i), x, 2e-6 + 1e-6 * std::fabs(x)) << k << " " << i;
    }
  }
}

// The decay of bitsandbytes' CUDA kernels: after the update.
TEST(OptimizerStep, OrdersOfDecay) {
  for (Decay decay : {Decay::Coupled, Decay::Before, Decay::After}) {
    Problem p("gradient_descent", false,
              test::group_row({{OptimizerField::Lr, 0.5}, {OptimizerField::WeightDecay, 0.25}}), true);
    p.step.decay = decay;
    const float x = p.params[1].get(2);
    const float g = p.grads[1].get(2);
    p.run();
    const double want = decay == Decay::Coupled  ? x - 0.5 * (g + 0.25 * x)
                        : decay == Decay::Before ? x * 0.875 - 0.5 * g
                                                 : (x - 0.5 * g) * 0.875;
    EXPECT_NEAR(p.params[1].get(2), want, 1e-6);
  }
}

// New 8-bit state is what quantize_blockwise makes of the numbers of a 32-bit step, except that what is negative never
// becomes 0 in state1.
TEST(OptimizerStep, CodesAreThoseOfTheQuantizer) {
  Problem eight("adam", true, test::any_row(), true);
  Problem wide("adam", false, test::any_row(), true);
  eight.run();
  wide.run();
  for (size_t k = 0; k < eight.params.size(); ++k) {
    const int64_t n = test::kSizes[k];
    const auto check = [&](Buffer& numbers, const Buffer& codes, const Buffer& absmax, std::string_view map,
                           bool first) {
      std::vector<float> code(format(map).codebook.begin(), format(map).codebook.end());
      std::vector<uint8_t> want(n);
      std::vector<float> scales((n + 255) / 256);
      quantize_blockwise(view(numbers), TensorView::contiguous(code.data(), DType::Float32, {256}), 256,
                         TensorView::contiguous(want.data(), DType::UInt8, {n}),
                         TensorView::contiguous(scales.data(), DType::Float32, {std::ssize(scales)}));
      for (int64_t i = 0; first && i < n; ++i) want[i] -= want[i] == 127 && numbers.get(i) < 0;
      EXPECT_EQ(want, codes.bytes) << k << map;
      for (int64_t b = 0; b < std::ssize(scales); ++b) ASSERT_EQ(scales[b], absmax.get(b));
    };
    check(wide.states[k].state1, eight.states[k].state1, eight.states[k].absmax1, "dynamic", true);
    check(wide.states[k].state2, eight.states[k].state2, eight.states[k].absmax2, "dynamic_unsigned", false);
    EXPECT_EQ(wide.params[k].bytes, eight.params[k].bytes);
  }
}

TEST(OptimizerStep, StochasticRoundingIsRightOnAverageAndRepeats) {
  constexpr int64_t kCount = 20000;
  const auto run = [](uint64_t seed, uint32_t id) {
    Problem p("gradient_descent", false, test::group_row({{OptimizerField::Lr, 1.0}}));
    p.params = {test::random_buffer(DType::BFloat16, kCount, 1)};
    p.grads = {test::random_buffer(DType::Float32, kCount, 2)};
    p.states.erase(p.states.begin() + 1, p.states.end());
    for (int64_t i = 0; i < kCount; ++i) {
      p.params[0].set(i, 1.0F);
      p.grads[0].set(i, -0x1p-10F);  // an eighth of the step of bfloat16 above 1
    }
    p.step.stochastic_rounding = true;
    p.step.seed = seed;
    auto all = p.tensors();
    all[0].id = id;
    p.run(all);
    return p.params[0].bytes;
  };
  const auto bytes = run(1, 0);
  int up = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const uint16_t x = reinterpret_cast<const uint16_t*>(bytes.data())[i];
    ASSERT_TRUE(x == 0x3f80 || x == 0x3f81);
    up += x == 0x3f81;
  }
  EXPECT_NEAR(up, kCount / 8, 5 * std::sqrt(kCount * 7.0 / 64));
  EXPECT_EQ(bytes, run(1, 0));
  EXPECT_NE(bytes, run(2, 0));
  EXPECT_NE(bytes, run(1, 1));
}

// A step with compensations is one of float32 parameters that are the sums, whatever scales it; what it skips stays.
TEST(OptimizerStep, CompensationTakesWhatRoundingLeaves) {
  const auto check = [](const OptimizerAlgorithm& algorithm, bool is_8bit, LayerScaling scaling) {
    Problem narrow(algorithm.name, is_8bit, test::any_row(), false, true);
    Problem wide(algorithm.name, is_8bit, test::any_row(), true);
    narrow.grads[7].set(100, NAN);  // of bfloat16 and float16 parameters
    narrow.grads[11].set(8192, INFINITY);
    wide.grads = narrow.grads;
    for (Problem* p : {&narrow, &wide}) {
      p->step.scaling = scaling;
      p->step.decay = algorithm.second > 0 ? Decay::Before : Decay::Coupled;
    }
    for (int step = 0; step < 3; ++step) {
      const auto before = narrow.params;
      const auto rests = narrow.states;
      for (size_t i = 0; i < before.size(); ++i) {
        const bool is_narrow = before[i].dtype != DType::Float32;
        for (int64_t j = 0; j < test::kSizes[i]; ++j) {
          wide.params[i].set(j, before[i].get(j) + (is_narrow ? rests[i].compensation.get(j) : 0.0F));
        }
      }
      narrow.run();
      wide.run();
      for (size_t i = 0; i < before.size(); ++i) {
        const std::string where = std::string(algorithm.name) + (is_8bit ? " 8 " : " 32 ") + std::to_string(i);
        Buffer param = wide.params[i];
        Buffer rest = rests[i].compensation;
        if (before[i].dtype != DType::Float32) {
          param = before[i];
          for (int64_t j = 0; j < test::kSizes[i]; ++j) {
            const int64_t bad = i == 7 ? 100 : i == 11 ? 8192 : -1;
            if (bad >= 0 && (is_8bit ? j / 256 == bad / 256 : j == bad)) continue;
            const float next = wide.params[i].get(j);
            param.set(j, test::rounded(next, param.dtype));
            rest.set(j, test::rounded(next - param.get(j), param.dtype));
          }
        }
        ASSERT_EQ(narrow.params[i].bytes, param.bytes) << where;
        ASSERT_EQ(narrow.states[i].compensation.bytes, rest.bytes) << where;
        EXPECT_EQ(narrow.states[i].state1.bytes, wide.states[i].state1.bytes) << where;
        EXPECT_EQ(narrow.states[i].state2.bytes, wide.states[i].state2.bytes) << where;
      }
    }
    EXPECT_EQ(narrow.count_skipped(), 6);
  };
  for (const OptimizerAlgorithm& algorithm : optimizer_algorithms()) {
    check(algorithm, false, LayerScaling::None);
    if (algorithm.first > 0) check(algorithm, true, LayerScaling::None);
  }
  check(optimizer_algorithm("adam"), true, LayerScaling::TrustRatio);
  check(optimizer_algorithm("momentum"), false, LayerScaling::TrustRatio);
}

// Blocks that start anew at each row are those of rows that are tensors by themselves.
TEST(OptimizerStep, RowsAreTensorsOfTheirOwn) {
  constexpr int64_t kRows = 70;  // some in another chunk
  for (const OptimizerAlgorithm& algorithm : optimizer_algorithms()) {
    if (algorithm.first == 0) continue;
    for (int64_t row : {1, 255, 256, 257, 576}) {
      const int64_t n = kRows * row;
      Problem whole(algorithm.name, true, test::any_row());
      Problem parts(algorithm.name, true, test::any_row());
      whole.params = parts.params = {test::random_buffer(DType::BFloat16, n, 1)};
      whole.grads = parts.grads = {test::random_buffer(DType::Float32, n, 2)};
      whole.grads[0].set(3 * row, NAN);
      parts.grads = whole.grads;
      whole.states = {test::StateBuffers(algorithm, n, true, row)};
      parts.states.assign(kRows, test::StateBuffers(algorithm, row, true));
      for (Problem* p : {&whole, &parts}) p->step.stochastic_rounding = true;
      auto all = whole.tensors();
      all[0].row = row;
      whole.run(all, 3);
      all.clear();
      for (int64_t i = 0; i < kRows; ++i) {
        auto& s = parts.states[i];
        std::vector<TensorView> views = {view(parts.params[0]), view(parts.grads[0])};
        for (Buffer* buffer : s.all()) views.push_back(view(*buffer));
        auto& t = all.emplace_back(test::optimizer_tensor(views));
        t.param = TensorView::contiguous(parts.params[0].bytes.data() + 2 * i * row, DType::BFloat16, {row});
        t.grad = TensorView::contiguous(parts.grads[0].bytes.data() + 4 * i * row, DType::Float32, {row});
        t.offset = i * row;
      }
      parts.run(all, 3);
      const std::string where = std::string(algorithm.name) + " " + std::to_string(row);
      EXPECT_EQ(whole.params[0].bytes, parts.params[0].bytes) << where;
      EXPECT_EQ(whole.count_skipped(), parts.count_skipped()) << where;
      const int64_t blocks = test::state_blocks(row, 0);
      for (int64_t i = 0; i < kRows; ++i) {
        for (int k = 0; k < algorithm.first; ++k) {
          for (int64_t j = 0; j < row; ++j) {
            ASSERT_EQ(whole.states[0].state1.bytes[k * n + i * row + j], parts.states[i].state1.bytes[k * row + j])
                << where;
          }
          for (int64_t j = 0; j < blocks; ++j) {
            ASSERT_EQ(whole.states[0].absmax1.get((k * kRows + i) * blocks + j),
                      parts.states[i].absmax1.get(k * blocks + j))
                << where;
          }
        }
      }
    }
  }
}

TEST(OptimizerStep, GradientsAreDividedByScales) {
  Problem plain("adam", true, test::any_row());
  Problem scaled("adam", true, test::any_row());
  Buffer all(DType::Float32, 1);
  Buffer own(DType::Float32, 1);
  all.set(0, 4.0F);
  own.set(0, 0.5F);
  for (size_t i = 0; i < scaled.grads.size(); ++i) {
    for (int64_t j = 0; j < test::kSizes[i]; ++j) scaled.grads[i].set(j, scaled.grads[i].get(j) * (i == 7 ? 2 : 4));
  }
  scaled.step.grad_scale = view(all);
  auto tensors = scaled.tensors();
  tensors[7].grad_scale = view(own);
  scaled.run(tensors);
  plain.run();
  for (size_t i = 0; i < plain.params.size(); ++i) EXPECT_EQ(plain.params[i].bytes, scaled.params[i].bytes) << i;
}

TEST(OptimizerStep, FoundInfChangesNothing) {
  Problem p("adam", true, test::any_row());
  Buffer one(DType::Float32, 1);
  one.set(0, 1.0F);
  p.step.found_inf = view(one);
  const auto params = p.params;
  p.run();
  for (size_t i = 0; i < params.size(); ++i) EXPECT_EQ(params[i].bytes, p.params[i].bytes);
  EXPECT_EQ(p.states[0].step.get(0), 0.0F);
  one.set(0, 0.0F);
  p.run();
  EXPECT_NE(params[0].bytes, p.params[0].bytes);
  EXPECT_EQ(p.states[0].step.get(0), 1.0F);
}

TEST(OptimizerStep, WhatDoesNotFitIsRefused) {
  const auto refused = [](ErrorCode code, auto change) {
    Problem p("adam", true, test::any_row());
    auto all = p.tensors();
    change(p, all);
    std::vector<std::max_align_t> workspace(1000);
    return test::refusal(
        code, [&] { optimizer_step(p.step, all, TensorView::contiguous(workspace.data(), DType::UInt8, {16000})); });
  };
  using Tensors = std::vector<OptimizerTensor>;
  using enum ErrorCode;
  EXPECT_EQ(refused(InvalidArgument, [](Problem&, Tensors& t) { t[2].grad.shape[0] = 5; }),
            "[optimizer_step] grad: got float32[5] on cpu, want 127 elements (tensor 2)");
  EXPECT_EQ(refused(InvalidArgument, [](Problem&, Tensors& t) { t[1].state2.reset(); }),
            "[optimizer_step] state2: got none, want a tensor (tensor 1)");
  EXPECT_EQ(refused(InvalidArgument, [](Problem&, Tensors& t) { t[0].absmax1.reset(); }),
            "[optimizer_step] absmax1: got none, want a tensor (tensor 0)");
  EXPECT_EQ(refused(InvalidType, [](Problem&, Tensors& t) { t[0].param = *t[0].state1; }),
            "[optimizer_step] param: got uint8[1] on cpu, want float32, bfloat16, float16 (tensor 0)");
  EXPECT_EQ(refused(InvalidType, [](Problem&, Tensors& t) { t[0].state2->dtype = DType::Float32; }),
            "[optimizer_step] state2: got float32[1] on cpu, want uint8 (tensor 0)");
  EXPECT_EQ(refused(InvalidArgument, [](Problem&, Tensors& t) { t[3].group = 1; }),
            "[optimizer_step] group: got 1, want one of the 1 rows (tensor 3)");
  EXPECT_EQ(refused(InvalidArgument, [](Problem&, Tensors& t) { t[2].row = 2; }),
            "[optimizer_step] row: got 2, want 0 or a divisor of 127 (tensor 2)");
  EXPECT_EQ(refused(InvalidArgument, [](Problem&, Tensors& t) { t[8].row = 10; }),
            "[optimizer_step] absmax1: got float32[4] on cpu, want 100 elements (tensor 8)");
  EXPECT_EQ(refused(InvalidArgument, [](Problem&, Tensors& t) { t[0].compensation = t[0].param; }),
            "[optimizer_step] compensation: got one of a float32 parameter, want none: it is for those of 16 bits "
            "(tensor 0)");
  EXPECT_EQ(refused(InvalidType, [](Problem&, Tensors& t) { t[1].compensation = t[1].grad; }),
            "[optimizer_step] compensation: got float16[3] on cpu, want bfloat16 (tensor 1)");
  EXPECT_EQ(refused(InvalidArgument, [](Problem&, Tensors& t) { t[1].compensation = t[4].param; }),
            "[optimizer_step] compensation: got bfloat16[129] on cpu, want 3 elements (tensor 1)");
  EXPECT_EQ(refused(InvalidArgument,
                    [](Problem& p, Tensors& t) {
                      t[1].compensation = t[1].param;
                      p.step.stochastic_rounding = true;
                    }),
            "[optimizer_step] compensation: got one with stochastic rounding, want only one of the two (tensor 1)");
  EXPECT_EQ(refused(InvalidArgument, [](Problem& p, Tensors&) { p.step.groups.shape[0] = 100; }),
            "[optimizer_step] groups: got uint8[100] on cpu, want rows of 128 bytes, on an 8-byte boundary");
  EXPECT_EQ(refused(InvalidArgument, [](Problem& p, Tensors&) { p.step.algorithm = nullptr; }),
            "[optimizer_step] algorithm: got none, want one of the table of algorithms");
  EXPECT_EQ(refused(InvalidArgument,
                    [](Problem& p, Tensors&) {
                      p.step.scaling = LayerScaling::TrustRatio;
                      p.step.decay = Decay::After;
                    }),
            "[optimizer_step] decay: got one that the trust ratio does not know, want coupled or before");
  EXPECT_EQ(refused(InvalidArgument,
                    [](Problem& p, Tensors&) {
                      p.step.algorithm = &optimizer_algorithm("gradient_descent");
                      p.step.scaling = LayerScaling::MaxUnorm;
                    }),
            "[optimizer_step] scaling: got one of layers with gradient_descent, want none");
  EXPECT_EQ(test::refusal(InvalidArgument, [] { optimizer_algorithm("sgd"); }),
            "[optimizer_algorithm] name: got sgd, want one of adam, ademamix, lion, rmsprop, adagrad, momentum, "
            "gradient_descent");
}

// The step of every tensor, weight decay included, has lr times the tensor's norm.
TEST(OptimizerStep, TrustRatio) {
  for (bool is_8bit : {false, true}) {
    std::vector<double> row = test::any_row();
    row[static_cast<int>(OptimizerField::Scaling)] = 1.0;
    Problem p("adam", is_8bit, row, true);
    p.step.scaling = LayerScaling::TrustRatio;
    const auto before = p.params;
    p.run();
    for (size_t k = 0; k < p.params.size(); ++k) {
      double norm = 0, moved = 0;
      for (int64_t i = 0; i < test::kSizes[k]; ++i) {
        norm += std::pow(before[k].get(i), 2);
        moved += std::pow(static_cast<double>(before[k].get(i)) - p.params[k].get(i), 2);
      }
      EXPECT_NEAR(std::sqrt(moved / norm), 0.01, 1e-4) << k;
    }
  }
}

// Updates are as long as allowed, or as they are.
TEST(OptimizerStep, MaxUnorm) {
  for (double most : {0.02, 1000.0, 0.0}) {
    std::vector<double> row = test::any_row();
    row[static_cast<int>(OptimizerField::WeightDecay)] = 0.0;
    row[static_cast<int>(OptimizerField::Scaling)] = most;
    Problem clipped("adam", false, row, true);
    Problem plain("adam", false, row, true);
    clipped.step.scaling = LayerScaling::MaxUnorm;
    const auto before = plain.params;
    clipped.run();
    plain.run();
    for (size_t k = 0; k < plain.params.size(); ++k) {
      if (most != 0.02) {
        EXPECT_EQ(clipped.params[k].bytes, plain.params[k].bytes);
        continue;
      }
      double norm = 0, moved = 0;
      for (int64_t i = 0; i < test::kSizes[k]; ++i) {
        norm += std::pow(before[k].get(i), 2);
        moved += std::pow(static_cast<double>(before[k].get(i)) - clipped.params[k].get(i), 2);
      }
      EXPECT_NEAR(std::sqrt(moved / norm), 0.01 * 0.02, 3e-6) << k;
    }
  }
}

TEST(OptimizerStep, NoTensorsAtAll) {
  Problem p("adam", false, test::any_row());
  optimizer_step(p.step, {}, TensorView::contiguous(nullptr, DType::UInt8, {0}));
  EXPECT_EQ(p.count_skipped(), 0);
}

TEST(OptimizerStep, GroupsAreWritten) {
  std::vector<double> values = test::any_row();
  Buffer table(DType::UInt8, 128);
  write_optimizer_groups(values, view(table));
  EXPECT_EQ(table.bytes, test::as_bytes(values).bytes);
  values.pop_back();
  EXPECT_EQ(test::refusal(ErrorCode::InvalidArgument, [&] { write_optimizer_groups(values, view(table)); }),
            "[write_optimizer_groups] values: got 15, want 16, as the table has");
}

}  // namespace
}  // namespace qbits
