#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>

#include "ops/check.h"

namespace qbits::cpu {
namespace {

bool supported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::Avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && supported(Isa::Avx2);
    case Isa::Avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::Scalar:
      return true;
  }
#endif
  return isa == Isa::Scalar;
}

constexpr Isa kAll[] = {Isa::Scalar, Isa::Avx2, Isa::Avx512};

// `source` is who named it: the function or the environment variable.
Isa parse(std::string_view source, std::string_view text) {
  for (Isa isa : kAll) {
    if (name(isa) != text) continue;
    check::require(supported(isa), ErrorCode::Unsupported, source, "instruction set", text, "one this machine has");
    return isa;
  }
  check::fail(ErrorCode::InvalidArgument, source, "instruction set", std::string(text), "scalar, avx2 or avx512");
}

Isa default_isa() {
  if (const char* text = std::getenv("QBITS_ISA"); text && *text) return parse("QBITS_ISA", text);
  return available().back();
}

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(default_isa())};
  return isa;
}

}  // namespace

Isa active_isa() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

std::string_view name(Isa isa) {
  switch (isa) {
    case Isa::Avx512:
      return "avx512";
    case Isa::Avx2:
      return "avx2";
    default:
      return "scalar";
  }
}

std::vector<Isa> available() {
  std::vector<Isa> isas;
  for (Isa isa : kAll) {
    if (supported(isa)) isas.push_back(isa);
  }
  return isas;
}

void set_isa(std::string_view text) {
  chosen() = static_cast<int>(text.empty() ? default_isa() : parse("set_isa", text));
}

}  // namespace qbits::cpu
