#include "ops/check.h"
#include "ops/dequantize_4bit.h"
#include "ops/quantize_4bit.h"
#include "ops/runtime.h"

// The CUDA entry points of a build without CUDA.

namespace qbits::cuda {
namespace {

[[noreturn]] void absent(std::string_view op) {
  check::fail(ErrorCode::Unsupported, op, "device", "a CUDA tensor", "a CPU tensor: this libqbits was built without CUDA");
}

}  // namespace

void quantize_4bit(const Quantize4bitArgs&, Stream) { absent("quantize_4bit"); }
void dequantize_4bit(const Dequantize4bitArgs&, Stream) { absent("dequantize_4bit"); }

std::vector<std::string> archs() { return {}; }
std::string unavailable_reason() { return "this libqbits was built without CUDA"; }
int driver_version() { return 0; }
int runtime_version() { return 0; }

}  // namespace qbits::cuda
