#include "ops/estimate_quantiles.h"

#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

int64_t estimate_quantiles_workspace(const TensorView& x) {
  return x.device.type == DeviceType::Cpu ? cpu::estimate_quantiles_workspace(x.numel())
                                          : cuda::estimate_quantiles_workspace(x.numel());
}

void estimate_quantiles(const TensorView& x, double offset, const TensorView& quantiles, const TensorView& workspace,
                        Stream stream) {
  constexpr std::string_view op = "estimate_quantiles";
  const int64_t q = quantiles.numel();
  check::floating(op, "x", x, x.device);
  check::require(x.numel() > 0, ErrorCode::InvalidArgument, op, "x", "no elements", "at least one");
  check::require(
      offset >= 0.0 && offset < 0.5, ErrorCode::InvalidArgument, op, "offset", [&] { return std::to_string(offset); },
      "a number in [0, 0.5)");
  check::tensor(op, "quantiles", quantiles, {DType::Float32}, x.device);
  check::require(
      q >= 1 && q <= 65536, ErrorCode::InvalidArgument, op, "quantiles", [&] { return quantiles.describe(); },
      "1 to 65536 elements");
  check::workspace(op, workspace, estimate_quantiles_workspace(x), x.device);

  const EstimateQuantilesArgs args{.x = x.data,
                                   .x_dtype = x.dtype,
                                   .n = x.numel(),
                                   .offset = offset,
                                   .quantiles = quantiles.as<float>(),
                                   .num_quantiles = q,
                                   .workspace = workspace.data,
                                   .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::estimate_quantiles(args) : cuda::estimate_quantiles(args, stream);
}

}  // namespace qbits
