#include <algorithm>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_int8_kernels.h"
#include "cuda/quantize_int8_rowwise.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "linear_int8";

// Parts of the workspace, each on a 16-byte boundary.
struct Parts {
  int64_t scales;
  int64_t columns;
  int64_t count;
  int64_t values;  // of the first outlier columns
  int64_t quantizer;
  int64_t end;

  Parts(int64_t m, int64_t k, DType dtype, float threshold, Device device) {
    m = std::min(m, int64_t{1} << 52);  // more rows do not exist, and their bytes might not fit 64 bits
    const auto after = [](int64_t begin, int64_t bytes) { return begin + ceil_div(bytes, int64_t{16}) * 16; };
    scales = m * linear_int8_pitch(k);
    columns = after(scales, m * 4);
    count = after(columns, threshold > 0 ? k * 4 : 0);
    values = after(count, threshold > 0 ? 4 : 0);
    quantizer = after(values, threshold > 0 ? m * kOutlierValues * itemsize(dtype) : 0);
    end = after(quantizer, quantize_int8_rowwise_workspace(m, k, threshold, device));
  }
};

}  // namespace

LinearInt8Problem problem_of(const LinearInt8Args& args) {
  const DeviceFacts& facts = device_facts(args.device, kOp);
  return {.n = args.n,
          .k = args.k,
          .m = args.m,
          .dtype = args.dtype,
          .outliers = args.threshold > 0,
          .aligned = all_on_16_bytes(args.codes, args.out),
          .x_aligned = is_aligned(args.x, 4),
          .compute_capability = facts.compute_capability,
          .sm_count = facts.sm_count};
}

void run(const LinearInt8Args& args, const LinearInt8Plan& plan, Stream stream) {
  const Parts parts(args.m, args.k, args.dtype, args.threshold, args.device);
  uint8_t* const base = static_cast<uint8_t*>(args.workspace);
  const bool outliers = args.threshold > 0;
  const QuantizeInt8RowwiseArgs quantizer{
      .x = args.x,
      .x_dtype = args.dtype,
      .rows = args.m,
      .cols = args.k,
      .threshold = args.threshold,
      .codes = reinterpret_cast<int8_t*>(base),
      .scales = reinterpret_cast<float*>(base + parts.scales),
      .outlier_columns = outliers ? reinterpret_cast<int32_t*>(base + parts.columns) : nullptr,
      .outlier_count = outliers ? reinterpret_cast<int32_t*>(base + parts.count) : nullptr,
      .workspace = base + parts.quantizer,
      .device = args.device};
  QuantizedX x{quantizer.codes, quantizer.scales, quantizer.outlier_columns, quantizer.outlier_count,
               outliers ? base + parts.values : nullptr};
  x.marks = quantize_int8_rowwise(quantizer,
                                  {.pitch = linear_int8_pitch(args.k),
                                   .product_follows = true,
                                   .outlier_values = x.values,
                                   .marks_alone = plan.lists},
                                  stream);
  switch (plan.kernel) {
    case LinearInt8Kernel::Simt:
      return linear_int8_simt(args, x, plan, stream);
    case LinearInt8Kernel::Mma:
      return linear_int8_mma(args, x, plan, stream);
    case LinearInt8Kernel::Wgmma:
      return linear_int8_wgmma(args, x, plan, stream);
  }
}

int64_t linear_int8_workspace(int64_t m, int64_t, int64_t k, DType x, float threshold, Device device) {
  return Parts(m, k, x, threshold, device).end;
}

void linear_int8(const LinearInt8Args& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  run(args, linear_int8_plan(problem_of(args)), stream);
}

}  // namespace qbits::cuda
