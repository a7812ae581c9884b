#include "ops/absmax.h"
#include "ops/affine.h"
#include "ops/blockwise.h"
#include "ops/check.h"
#include "ops/dequantize_4bit.h"
#include "ops/embedding_4bit.h"
#include "ops/estimate_quantiles.h"
#include "ops/grouped_linear_4bit.h"
#include "ops/int8.h"
#include "ops/linear_4bit.h"
#include "ops/optimizer_step.h"
#include "ops/pager_device.h"
#include "ops/quantize_4bit.h"
#include "ops/runtime.h"

// The CUDA entry points of a build without CUDA.

namespace qbits::cuda {
namespace {

[[noreturn]] void absent(std::string_view op) {
  check::fail(ErrorCode::Unsupported, op, "device", "a CUDA tensor",
              "a CPU tensor: this libqbits was built without CUDA");
}

}  // namespace

void optimizer_step(const OptimizerStepArgs&, Stream) { absent("optimizer_step"); }
void write_optimizer_groups(std::span<const double>, double*, Device, Stream) { absent("write_optimizer_groups"); }
std::unique_ptr<PagerDevice> make_pager_device(Device, int) { absent("pager"); }
void quantize_4bit(const Quantize4bitArgs&, Stream) { absent("quantize_4bit"); }
void dequantize_4bit(const Dequantize4bitArgs&, Stream) { absent("dequantize_4bit"); }
void quantize_absmax(const QuantizeAbsmaxArgs&, Stream) { absent("quantize_absmax"); }
void dequantize_absmax(const DequantizeAbsmaxArgs&, Stream) { absent("dequantize_absmax"); }
void quantize_affine(const QuantizeAffineArgs&, Stream) { absent("quantize_affine"); }
void dequantize_affine(const DequantizeAffineArgs&, Stream) { absent("dequantize_affine"); }
void quantize_blockwise(const QuantizeBlockwiseArgs&, Stream) { absent("quantize_blockwise"); }
void dequantize_blockwise(const DequantizeBlockwiseArgs&, Stream) { absent("dequantize_blockwise"); }
int64_t estimate_quantiles_workspace(int64_t) { absent("estimate_quantiles_workspace"); }
void estimate_quantiles(const EstimateQuantilesArgs&, Stream) { absent("estimate_quantiles"); }
void embedding_4bit(const Embedding4bitArgs&, Stream) { absent("embedding_4bit"); }
int64_t linear_4bit_workspace(const Weight4bitArgs&, int64_t, DType, Device) { absent("linear_4bit_workspace"); }
void linear_4bit(const Linear4bitArgs&, Stream) { absent("linear_4bit"); }
int64_t linear_4bit_grad_x_workspace(const Weight4bitArgs&, int64_t, DType, Device) {
  absent("linear_4bit_grad_x_workspace");
}
void linear_4bit_grad_x(const Linear4bitGradXArgs&, Stream) { absent("linear_4bit_grad_x"); }
int64_t grouped_linear_4bit_workspace(const Weight4bitArgs&, int64_t, int64_t, DType, Device) {
  absent("grouped_linear_4bit_workspace");
}
void grouped_linear_4bit(const GroupedLinear4bitArgs&, Stream) { absent("grouped_linear_4bit"); }
int64_t grouped_linear_4bit_grad_x_workspace(const Weight4bitArgs&, int64_t, int64_t, DType, Device) {
  absent("grouped_linear_4bit_grad_x_workspace");
}
void grouped_linear_4bit_grad_x(const GroupedLinear4bitGradXArgs&, Stream) { absent("grouped_linear_4bit_grad_x"); }
int64_t quantize_int8_rowwise_workspace(int64_t, int64_t, float, Device) { absent("quantize_int8_rowwise_workspace"); }
void quantize_int8_rowwise(const QuantizeInt8RowwiseArgs&, Stream) { absent("quantize_int8_rowwise"); }
int64_t quantize_int8_colwise_workspace(int64_t, int64_t, Device) { absent("quantize_int8_colwise_workspace"); }
void quantize_int8_colwise(const QuantizeInt8ColwiseArgs&, Stream) { absent("quantize_int8_colwise"); }
void dequantize_int8_rowwise(const DequantizeInt8RowwiseArgs&, Stream) { absent("dequantize_int8_rowwise"); }
int64_t linear_int8_workspace(int64_t, int64_t, int64_t, DType, float, Device) { absent("linear_int8_workspace"); }
void linear_int8(const LinearInt8Args&, Stream) { absent("linear_int8"); }
int64_t linear_int8_weight_only_workspace(int64_t, int64_t, int64_t, DType, Device) {
  absent("linear_int8_weight_only_workspace");
}
void linear_int8_weight_only(const LinearInt8WeightOnlyArgs&, Stream) { absent("linear_int8_weight_only"); }
int64_t igemm_workspace(const IgemmArgs&) { absent("igemm_workspace"); }
void igemm(const IgemmArgs&, Stream) { absent("igemm"); }
void dequantize_int8_product(const DequantizeInt8ProductArgs&, Stream) { absent("dequantize_int8_product"); }

std::vector<std::string> archs() { return {}; }
std::string unavailable_reason() { return "this libqbits was built without CUDA"; }
int driver_version() { return 0; }
int runtime_version() { return 0; }

}  // namespace qbits::cuda
