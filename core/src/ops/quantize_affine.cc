#include "ops/affine.h"
#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

void quantize_affine(const TensorView& x, const Format& format, int64_t group_size, const TensorView& codes,
                     const TensorView& scales, const TensorView& zeros, Stream stream) {
  constexpr std::string_view op = "quantize_affine";
  const int64_t n = x.numel();
  check::affine(op, format);
  check::block_size(op, "group size", format, group_size);
  check::floating(op, "x", x, x.device);
  check::tensor(op, "codes", codes, {DType::UInt8}, x.device);
  check::numel(op, "codes", codes, codes_size(format, n));
  const check::Matrix shape = check::matrix(x);
  check::affine_scales(op, format, scales, zeros, num_scales(format, shape.rows, shape.cols, group_size), x.device);
  if (n == 0) return;

  const QuantizeAffineArgs args{.x = x.data,
                                .x_dtype = x.dtype,
                                .rows = shape.rows,
                                .cols = shape.cols,
                                .format = &format,
                                .group_size = group_size == 0 ? shape.cols : group_size,
                                .codes = codes.as<uint8_t>(),
                                .scales = scales.data,
                                .zeros = zeros.data,
                                .scale_dtype = scales.dtype,
                                .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::quantize_affine(args) : cuda::quantize_affine(args, stream);
}

}  // namespace qbits
