#include "ops/affine.h"
#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

void dequantize_affine(const TensorView& codes, const TensorView& scales, const TensorView& zeros, const Format& format,
                       int64_t group_size, const TensorView& out, Stream stream) {
  constexpr std::string_view op = "dequantize_affine";
  const int64_t n = out.numel();
  check::affine(op, format);
  check::block_size(op, "group size", format, group_size);
  check::floating(op, "out", out, codes.device);
  check::tensor(op, "codes", codes, {DType::UInt8}, codes.device);
  check::numel(op, "codes", codes, codes_size(format, n));
  const check::Matrix shape = check::matrix(out);
  const int64_t groups = num_scales(format, shape.rows, shape.cols, group_size);
  check::affine_scales(op, format, scales, zeros, groups, codes.device);
  if (n == 0) return;

  const DequantizeAffineArgs args{.codes = codes.as<const uint8_t>(),
                                  .scales = scales.data,
                                  .zeros = zeros.data,
                                  .scale_dtype = scales.dtype,
                                  .format = &format,
                                  .group_size = group_size == 0 ? shape.cols : group_size,
                                  .rows = shape.rows,
                                  .cols = shape.cols,
                                  .out = out.data,
                                  .out_dtype = out.dtype,
                                  .device = codes.device};
  codes.device.type == DeviceType::Cpu ? cpu::dequantize_affine(args) : cuda::dequantize_affine(args, stream);
}

}  // namespace qbits
