#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "qbits/export.h"
#include "qbits/tensor.h"

// The step of an optimizer: every tensor of every group in one call, whatever their sizes and dtypes, with state in 32
// bits or in blockwise 8 bits (Dettmers et al., arXiv 2110.02861). On CUDA it is a few launches in all; nothing
// synchronises, and numbers that change from step to step (the group table, step counts, grad_scale) lie in device
// memory, so that a captured graph follows them.
// The conventions of quantize.h hold: contiguous tensors on one device, errors before writes, the caller allocates, the
// CPU and CUDA write identical bits (but those of a NaN, and with LayerScaling, where norms differ in their last bits).

namespace qbits {

enum class Algorithm : uint8_t { Adam, AdEMAMix, Lion, RMSprop, Adagrad, Momentum, GradientDescent };

// One row of the table of algorithms. Below, g is the gradient, m and v are state, t counts steps from 1.
struct OptimizerAlgorithm {
  std::string_view name;
  std::string_view summary;  // its formula
  Algorithm algorithm;
  int first;   // numbers an element has in state1; in 8 bits by the format "dynamic"
  int second;  // and in state2; in 8 bits by "dynamic_unsigned"
};

// Every algorithm, and the one called `name`. Throws InvalidArgument, listing the known names.
QBITS_API std::span<const OptimizerAlgorithm> optimizer_algorithms();
QBITS_API const OptimizerAlgorithm& optimizer_algorithm(std::string_view name);

// Where weight decay w enters.
enum class Decay : uint8_t {
  Coupled,  // g + w p instead of g: L2 regularisation
  Before,   // p (1 - lr w), then the update (Loshchilov and Hutter, arXiv 1711.05101; torch)
  After,    // the update, then p (1 - lr w) (the CUDA kernels of bitsandbytes)
};

// How the step of a whole tensor is scaled: by c |p| / |u|, where c is the group's Scaling and norms are Euclidean,
// over the elements that are not skipped. Where c, a norm or the result is 0 or not finite nothing is scaled.
enum class LayerScaling : uint8_t {
  None,
  // u is the update with its weight decay, and both are scaled (LAMB, You et al., arXiv 1904.00962); not for
  // Decay::After. For Momentum, with coupled decay alone, it is the gradient that is scaled, by c |p| / (|g| + w |p|)
  // (LARS, You et al., arXiv 1708.03888).
  TrustRatio,
  // u is the update without weight decay, and scaled only where that makes it smaller: bitsandbytes' max_unorm.
  MaxUnorm,
};

// The columns of the group table. What an algorithm does not name it ignores.
enum class OptimizerField : uint8_t {
  Lr,
  WeightDecay,
  Beta1,       // Adam, AdEMAMix, Lion; decay of the mean square of RMSprop; Momentum's momentum
  Beta2,       // Adam, AdEMAMix, Lion
  Beta3,       // AdEMAMix
  Alpha,       // AdEMAMix
  AlphaSteps,  // AdEMAMix: steps in which alpha grows to its value; 0 for no schedule
  Beta3Steps,  // AdEMAMix: the same for beta3, from beta1 on
  Eps,
  Dampening,  // Momentum
  Nesterov,   // Momentum: 0 or 1
  LrDecay,    // Adagrad
  Maximize,   // 0 or 1: steps along the gradient, not against it
  Scaling,    // c of LayerScaling
};
inline constexpr int kOptimizerFields = 16;  // doubles in a row, two of them free
QBITS_API std::span<const std::string_view> optimizer_fields();

// Elements that share a scale of 8-bit state. Blocks run over the flattened tensor, or over each of its rows.
inline constexpr int64_t kStateBlockSize = 256;

// One parameter. Its state is float32, or uint8 codes with one scale a block; state starts as zeros (codes of zero are
// 127 in state1 and 0 in state2).
struct OptimizerTensor {
  TensorView param;                   // float, n elements
  TensorView grad;                    // float, n elements; its dtype may be another
  std::optional<TensorView> state1;   // first * n elements, one number of all elements after the other
  std::optional<TensorView> state2;   // second * n elements
  std::optional<TensorView> absmax1;  // 8-bit: float32[first * blocks]
  std::optional<TensorView> absmax2;  // 8-bit: float32[second * blocks]
  // Of a parameter of 16 bits, in its dtype: n elements, zeros at first. Then p in the formulas is param + compensation
  // in float32; a new p is rounded to param, and p - param to the compensation, 0 where param is not finite (Kahan,
  // CACM 8(1), 1965; of parameters: Zamirai et al., arXiv 2010.06192). Not with stochastic rounding.
  std::optional<TensorView> compensation;
  TensorView step;                       // float32, one element: steps taken, which the call counts up
  std::optional<TensorView> grad_scale;  // float32, one element: this gradient is divided by it, too
  int64_t group = 0;                     // its row in the group table
  uint32_t id = 0;                       // tells the tensors of one optimizer apart for stochastic rounding
  // Elements after which blocks start anew, so that rows can be dealt out to processes; it divides n, and there are
  // n / row * ceil(row / 256) blocks, fewer than 2^32. 0: there are ceil(n / 256), over the flattened tensor.
  int64_t row = 0;
  int64_t offset = 0;  // of a part of a tensor: the elements before it, which stochastic rounding counts
};

struct OptimizerStep {
  const OptimizerAlgorithm* algorithm = nullptr;
  Decay decay = Decay::Before;
  LayerScaling scaling = LayerScaling::None;
  // bfloat16 parameters are rounded up or down at random, with the nearer neighbour the likelier, so that small updates
  // count on average. The bits depend on `seed`, the tensor's id, its step and the element: a run repeats itself.
  bool stochastic_rounding = false;
  uint64_t seed = 0;
  TensorView groups;                     // uint8: rows of kOptimizerFields doubles, on an 8-byte boundary
  std::optional<TensorView> grad_scale;  // float32, one element: gradients are divided by it
  std::optional<TensorView> found_inf;   // float32, one element: unless it is 0 the call changes nothing
  TensorView skipped;                    // int64, one element, counted up by elements that were not finite
};

// Bytes of scratch memory optimizer_step needs on the device of the tensors.
QBITS_API int64_t optimizer_step_workspace(const OptimizerStep& step, std::span<const OptimizerTensor> tensors);

// One step of every tensor. The arithmetic is float32, in the order the algorithm's summary gives; coefficients are
// computed in float64 and rounded once.
//
// Where new state would not be finite, since the gradient or its square is not, nothing of the element changes (32-bit
// state) or nothing of its block (8-bit state), and the elements to blame are counted in `skipped`.
//
// New 8-bit state is rounded as quantize_blockwise rounds it, but that a negative number never gets the code of zero in
// state1: bitsandbytes gives it the next lower one.
//   workspace  uint8, on a 16-byte boundary, at least optimizer_step_workspace(step, tensors) elements
QBITS_API void optimizer_step(const OptimizerStep& step, std::span<const OptimizerTensor> tensors,
                              const TensorView& workspace, Stream stream = {});

// Writes the group table: groups, as above, = values. The values are taken before the call returns.
QBITS_API void write_optimizer_groups(std::span<const double> values, const TensorView& groups, Stream stream = {});

}  // namespace qbits
