#pragma once

#include <string_view>

#include "ops/host_device.h"
#include "ops/optimizer_step.h"

// The formulas of the algorithms, written once for a float and for a vector of them. `Ops` names what a type F has
// beside + - *: set(float), quotient(F, F), root(F) and sign(F), which is -1, 0 or 1. Every result is rounded by
// itself.
//
// A rule updates the state of an element, first numbers and then second ones, and returns the update u of p - rate u.

namespace qbits {

struct AdamRule {
  static constexpr int kFirst = 1;
  static constexpr int kSecond = 1;
  template <class Ops, class F>
  QBITS_HOST_DEVICE static F update(const Coefficients& c, F g, F (&s)[2]) {
    s[0] = s[0] * Ops::set(c.beta1) + Ops::set(c.rest1) * g;
    s[1] = s[1] * Ops::set(c.beta2) + Ops::set(c.rest2) * g * g;
    return Ops::quotient(s[0], Ops::root(s[1]) + Ops::set(c.eps));
  }
};

struct AdEMAMixRule {
  static constexpr int kFirst = 2;
  static constexpr int kSecond = 1;
  template <class Ops, class F>
  QBITS_HOST_DEVICE static F update(const Coefficients& c, F g, F (&s)[3]) {
    s[0] = s[0] * Ops::set(c.beta1) + Ops::set(c.rest1) * g;
    s[1] = s[1] * Ops::set(c.beta3) + Ops::set(c.rest3) * g;
    s[2] = s[2] * Ops::set(c.beta2) + Ops::set(c.rest2) * g * g;
    return Ops::quotient(s[0] + Ops::set(c.alpha) * s[1], Ops::root(s[2]) + Ops::set(c.eps));
  }
};

struct LionRule {
  static constexpr int kFirst = 1;
  static constexpr int kSecond = 0;
  template <class Ops, class F>
  QBITS_HOST_DEVICE static F update(const Coefficients& c, F g, F (&s)[1]) {
    const F u = Ops::sign(s[0] * Ops::set(c.beta1) + Ops::set(c.rest1) * g);
    s[0] = s[0] * Ops::set(c.beta2) + Ops::set(c.rest2) * g;
    return u;
  }
};

struct RMSpropRule {
  static constexpr int kFirst = 1;
  static constexpr int kSecond = 0;
  template <class Ops, class F>
  QBITS_HOST_DEVICE static F update(const Coefficients& c, F g, F (&s)[1]) {
    s[0] = s[0] * Ops::set(c.beta1) + Ops::set(c.rest1) * g * g;
    return Ops::quotient(g, Ops::root(s[0]) + Ops::set(c.eps));
  }
};

struct AdagradRule {
  static constexpr int kFirst = 1;
  static constexpr int kSecond = 0;
  template <class Ops, class F>
  QBITS_HOST_DEVICE static F update(const Coefficients& c, F g, F (&s)[1]) {
    s[0] = s[0] + g * g;
    return Ops::quotient(g, Ops::root(s[0]) + Ops::set(c.eps));
  }
};

struct MomentumRule {
  static constexpr int kFirst = 1;
  static constexpr int kSecond = 0;
  template <class Ops, class F>
  QBITS_HOST_DEVICE static F update(const Coefficients& c, F g, F (&s)[1]) {
    s[0] = s[0] * Ops::set(c.beta1) + Ops::set(c.rest1) * g;
    return Ops::set(c.alpha) * g + Ops::set(c.beta3) * s[0];
  }
};

// Has no state; what is checked instead, to be finite, is the gradient.
struct GradientDescentRule {
  static constexpr int kFirst = 1;
  static constexpr int kSecond = 0;
  template <class Ops, class F>
  QBITS_HOST_DEVICE static F update(const Coefficients&, F g, F (&s)[1]) {
    s[0] = g;
    return g;
  }
};

// Numbers an element has in memory between steps.
template <class Rule>
inline constexpr int kStates = Rule::kFirst + Rule::kSecond;
template <class Rule>
inline constexpr bool kHasState = true;
template <>
inline constexpr bool kHasState<GradientDescentRule> = false;

// The gradient as rules take it.
template <class Ops, class F>
QBITS_HOST_DEVICE F scaled_gradient(const Coefficients& c, F p, F g) {
  g = g * Ops::set(c.grad_factor);
  return c.l2 != 0.0F ? g + Ops::set(c.l2) * p : g;
}

// The new p, and new state in s; `g` is scaled.
template <class Rule, class Ops, class F>
QBITS_HOST_DEVICE F stepped(const Coefficients& c, F p, F g, F (&s)[kStates<Rule>]) {
  const F u = Rule::template update<Ops>(c, g, s);
  return p - (Ops::set(c.shrink) * p + Ops::set(c.rate) * u);
}

// What LayerScaling takes the norm of, and new state in s; `g` is not scaled yet.
template <class Rule, class Ops, class F>
QBITS_HOST_DEVICE F normed(const Coefficients& c, F p, F g, F (&s)[kStates<Rule>]) {
  const F u = Rule::template update<Ops>(c, scaled_gradient<Ops>(c, p, g), s);
  if (c.norm_gradient != 0) return g * Ops::set(c.grad_factor);
  return Ops::set(c.norm_unit) * u + Ops::set(c.norm_decay) * p;
}

// 16 random bits for element i: those below a bfloat16 in a float32 (the finalizer of MurmurHash3 over a counter).
// Static, so that the linker cannot merge copies compiled for different instruction sets.
QBITS_HOST_DEVICE static inline uint32_t random_bits(const uint32_t (&random)[2], int64_t i) {
  uint32_t x = (static_cast<uint32_t>(i) * 0x9e3779b9U + random[0]) ^ (static_cast<uint32_t>(i >> 32) + random[1]);
  x = (x ^ x >> 16) * 0x85ebca6bU;
  x = (x ^ x >> 13) * 0xc2b2ae35U;
  return (x ^ x >> 16) & 0xffffU;
}

[[noreturn]] void unknown_algorithm(std::string_view op, Algorithm algorithm);

// Calls f with the rule of an algorithm.
template <class F>
void dispatch_rule(Algorithm algorithm, std::string_view op, F&& f) {
  switch (algorithm) {
    case Algorithm::Adam:
      return f(AdamRule{});
    case Algorithm::AdEMAMix:
      return f(AdEMAMixRule{});
    case Algorithm::Lion:
      return f(LionRule{});
    case Algorithm::RMSprop:
      return f(RMSpropRule{});
    case Algorithm::Adagrad:
      return f(AdagradRule{});
    case Algorithm::Momentum:
      return f(MomentumRule{});
    case Algorithm::GradientDescent:
      return f(GradientDescentRule{});
  }
  unknown_algorithm(op, algorithm);
}

}  // namespace qbits
