#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qbits::cpu {

enum class Isa { Scalar, Avx2, Avx512 };

// The instruction set in use (see runtime.h).
Isa active_isa();
std::string_view name(Isa isa);
std::vector<Isa> available();
void set_isa(std::string_view name);

// One function compiled once per instruction set; operator() calls the active one.
template <class Fn>
struct PerIsa {
  Fn* scalar;
  Fn* avx2;
  Fn* avx512;

  template <class... Args>
  auto operator()(Args&&... args) const {
    switch (active_isa()) {
      case Isa::Avx512:
        return avx512(std::forward<Args>(args)...);
      case Isa::Avx2:
        return avx2(std::forward<Args>(args)...);
      default:
        return scalar(std::forward<Args>(args)...);
    }
  }
};

}  // namespace qbits::cpu

// Declares `type name` in each instruction set's namespace and the PerIsa `name` that chooses.
#define QBITS_PER_ISA(result, name, ...)                                                           \
  namespace qbits::cpu::scalar {                                                                   \
  result name(__VA_ARGS__);                                                                        \
  }                                                                                                \
  namespace qbits::cpu::avx2 {                                                                     \
  result name(__VA_ARGS__);                                                                        \
  }                                                                                                \
  namespace qbits::cpu::avx512 {                                                                   \
  result name(__VA_ARGS__);                                                                        \
  }                                                                                                \
  namespace qbits::cpu {                                                                           \
  inline constexpr PerIsa<result(__VA_ARGS__)> name##_isa{scalar::name, avx2::name, avx512::name}; \
  }
