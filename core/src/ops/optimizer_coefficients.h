#pragma once

#include <cmath>

#include "ops/host_device.h"
#include "ops/optimizer_rules.h"
#include "ops/optimizer_step.h"

// From a row of the group table and a step count to the coefficients of one tensor's step, in float64.

namespace qbits {

// base^n for n >= 0 by squaring: the same bits on every device.
QBITS_HOST_DEVICE inline double power(double base, int64_t n) {
  double result = 1.0;
  for (; n > 0; n /= 2, base *= base) {
    if (n % 2 != 0) result *= base;
  }
  return result;
}

// One of 2^64 well mixed numbers (splitmix64: Steele, Lea and Flood, OOPSLA 2014).
QBITS_HOST_DEVICE inline uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9U;
  x = (x ^ x >> 27) * 0x94d049bb133111ebU;
  return x ^ x >> 31;
}

// beta3 of AdEMAMix on its way from beta1, such that its half-life grows linearly (arXiv 2409.03137, appendix A.1).
QBITS_HOST_DEVICE inline double scheduled_beta3(double beta1, double beta3, double t, double steps) {
  if (steps <= 0.0 || t >= steps) return beta3;
  if (beta1 <= 0.0) return 0.0;  // a half-life of nothing is where a schedule from beta1 = 0 stays until its end
  const double log1 = log(beta1);
  const double log3 = log(beta3);
  const double done = t / steps;
  const double beta = exp(log1 * log3 / ((1.0 - done) * log3 + done * log1));
  return beta < beta3 ? beta : beta3;
}

// `row` as OptimizerField names it, `t` the number of this step, from 1.
QBITS_HOST_DEVICE inline Coefficients coefficients(const OptimizerStepArgs& args, const double* row, uint32_t id,
                                                   double t, double grad_scale) {
  const auto field = [row](OptimizerField name) { return row[static_cast<int>(name)]; };
  const double lr = field(OptimizerField::Lr);
  const double decay = field(OptimizerField::WeightDecay);
  const double beta1 = field(OptimizerField::Beta1);
  const double beta2 = field(OptimizerField::Beta2);
  double beta3 = field(OptimizerField::Beta3);
  double alpha = field(OptimizerField::Alpha);
  double eps = field(OptimizerField::Eps);
  double rate = lr;
  double mean1 = beta1;
  double rest1 = 1.0 - beta1;
  double unit = 1.0;
  const int64_t steps = static_cast<int64_t>(t);
  if (args.algorithm == Algorithm::Adam || args.algorithm == Algorithm::AdEMAMix) {
    // m / c1 / (sqrt(v) / c2 + eps), with the corrections of both means moved out of the formula.
    const double correction1 = 1.0 - power(beta1, steps);
    const double correction2 = sqrt(1.0 - power(beta2, steps));
    unit = correction2 / correction1;
    rate = lr * unit;
    eps *= correction2;
    const double alpha_steps = field(OptimizerField::AlphaSteps);
    if (alpha_steps > 0.0 && t < alpha_steps) alpha *= t / alpha_steps;
    alpha *= correction1;
    beta3 = scheduled_beta3(beta1, beta3, t, field(OptimizerField::Beta3Steps));
  } else if (args.algorithm == Algorithm::Momentum) {
    // The first gradient fills the state whole. A momentum of 0 is plain descent, without dampening.
    if (t <= 1.0 || beta1 == 0.0) mean1 = 0.0;
    rest1 = t <= 1.0 || beta1 == 0.0 ? 1.0 : 1.0 - field(OptimizerField::Dampening);
    const bool nesterov = field(OptimizerField::Nesterov) != 0.0 && beta1 != 0.0;
    alpha = nesterov ? 1.0 : 0.0;    // of the gradient in the update
    beta3 = nesterov ? beta1 : 1.0;  // of the state
  } else if (args.algorithm == Algorithm::Adagrad) {
    rate = lr / (1.0 + (t - 1.0) * field(OptimizerField::LrDecay));
  }
  const double sign = field(OptimizerField::Maximize) != 0.0 ? -1.0 : 1.0;
  const double shrink = args.decay == Decay::Coupled ? 0.0 : lr * decay;
  if (args.decay == Decay::After) rate *= 1.0 - shrink;  // (1 - shrink) (p - rate u)
  const uint64_t random = mixed(mixed(mixed(args.seed) + id) + static_cast<uint64_t>(steps));
  Coefficients c{};
  c.grad_factor = static_cast<float>(sign / grad_scale);
  c.l2 = args.decay == Decay::Coupled ? static_cast<float>(decay) : 0.0F;
  c.shrink = static_cast<float>(shrink);
  c.rate = static_cast<float>(rate);
  c.eps = static_cast<float>(eps);
  c.beta1 = static_cast<float>(mean1);
  c.rest1 = static_cast<float>(rest1);
  c.beta2 = static_cast<float>(beta2);
  c.rest2 = static_cast<float>(1.0 - beta2);
  c.beta3 = static_cast<float>(beta3);
  c.rest3 = static_cast<float>(1.0 - beta3);
  c.alpha = static_cast<float>(alpha);
  c.norm_unit = static_cast<float>(unit);
  const bool trust = args.scaling == LayerScaling::TrustRatio;
  c.norm_decay = trust && args.decay != Decay::Coupled ? static_cast<float>(decay) : 0.0F;
  c.norm_gradient = trust && args.algorithm == Algorithm::Momentum ? 1 : 0;
  c.scaling = static_cast<float>(field(OptimizerField::Scaling));
  c.random[0] = static_cast<uint32_t>(random);
  c.random[1] = static_cast<uint32_t>(random >> 32);
  return c;
}

// Applies LayerScaling to the coefficients of a tensor with these norms.
QBITS_HOST_DEVICE inline void scale_layer(LayerScaling scaling, const LayerNorms& norms, Coefficients& c) {
  const double p = sqrt(norms.p);
  const double u = sqrt(norms.u) + (c.norm_gradient != 0 ? static_cast<double>(c.l2) * p : 0.0);
  const float factor = static_cast<float>(static_cast<double>(c.scaling) * p / u);
  if (!(norms.u > 0.0) || !(factor > 0.0F) || !(factor <= 0x1.fffffep127F)) return;
  if (c.norm_gradient != 0) {
    c.grad_factor *= factor;
    c.l2 *= factor;
  } else if (scaling == LayerScaling::TrustRatio) {
    c.rate *= factor;
    c.shrink *= factor;
  } else if (factor < 1.0F) {
    c.rate *= factor;
  }
}

// The record of an entry, for which a step is counted unless found_inf forbids it.
QBITS_HOST_DEVICE inline OptimizerRecord begin_step(const OptimizerStepArgs& args, const OptimizerEntry& entry) {
  OptimizerRecord record{};
  record.entry = entry;
  if (args.found_inf != nullptr && *args.found_inf != 0.0F) {
    record.c.skip = 1;
    return record;
  }
  const float t = *entry.step + 1.0F;
  if (entry.counts) *entry.step = t;
  double grad_scale = args.grad_scale != nullptr ? static_cast<double>(*args.grad_scale) : 1.0;
  if (entry.grad_scale != nullptr) grad_scale *= static_cast<double>(*entry.grad_scale);
  record.c = coefficients(args, args.groups + static_cast<int64_t>(entry.group) * kOptimizerFields, entry.id,
                          static_cast<double>(t), grad_scale);
  return record;
}

}  // namespace qbits
