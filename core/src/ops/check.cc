#include "ops/check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "ops/ceil_div.h"

namespace qbits::check {
namespace {

std::string list(std::initializer_list<DType> dtypes) {
  std::string text;
  for (DType dtype : dtypes) {
    if (!text.empty()) text += ", ";
    text += name(dtype);
  }
  return text;
}

std::string join_sizes(const Format& format) {
  std::string text;
  for (int64_t size : format.block_sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  if (format.whole_rows) text += text.empty() ? "0 for whole rows" : " or 0 for whole rows";
  return text;
}

bool contains(std::span<const DType> dtypes, DType dtype) {
  for (DType d : dtypes) {
    if (d == dtype) return true;
  }
  return false;
}

}  // namespace

void fail(ErrorCode code, std::string_view op, std::string_view what, const std::string& got, const std::string& want) {
  std::string text = "[";
  text.append(op).append("] ").append(what).append(": got ").append(got).append(", want ").append(want);
  throw Error(code, text);
}

void tensor(std::string_view op, std::string_view what, const TensorView& t, std::initializer_list<DType> dtypes,
            Device device) {
  bool known = false;
  for (DType dtype : dtypes) known |= t.dtype == dtype;
  require(known, ErrorCode::InvalidType, op, what, [&] { return t.describe(); }, [&] { return list(dtypes); });
  require(
      t.device == device, ErrorCode::InvalidArgument, op, what, [&] { return t.describe(); },
      [&] { return "a tensor on " + to_string(device); });
  require(
      t.is_contiguous(), ErrorCode::InvalidArgument, op, what, [&] { return t.describe() + " with gaps"; },
      "a contiguous tensor");
  require(t.data != nullptr || t.numel() == 0, ErrorCode::InvalidArgument, op, what, "a tensor without data",
          "a tensor with data");
}

void floating(std::string_view op, std::string_view what, const TensorView& t, Device device) {
  tensor(op, what, t, {DType::Float32, DType::BFloat16, DType::Float16}, device);
}

void numel(std::string_view op, std::string_view what, const TensorView& t, int64_t want) {
  require(
      t.numel() == want, ErrorCode::InvalidArgument, op, what, [&] { return t.describe(); },
      [&] { return std::to_string(want) + " elements"; });
}

void at_least(std::string_view op, std::string_view what, const TensorView& t, int64_t want) {
  require(
      t.numel() >= want, ErrorCode::InvalidArgument, op, what, [&] { return t.describe(); },
      [&] { return "at least " + std::to_string(want) + " elements"; });
}

void workspace(std::string_view op, const TensorView& t, int64_t bytes, Device device) {
  constexpr std::string_view what = "workspace";
  tensor(op, what, t, {DType::UInt8}, device);
  at_least(op, what, t, bytes);
  require(bytes == 0 || device.type == DeviceType::Cpu || reinterpret_cast<uintptr_t>(t.data) % 16 == 0,
          ErrorCode::InvalidArgument, op, what, "an address off 16-byte boundaries", "one on them");
}

int64_t rows_of(std::string_view op, std::string_view what, const TensorView& t, int64_t cols) {
  require(
      t.ndim >= 1 && t.shape[t.ndim - 1] == cols, ErrorCode::InvalidArgument, op, what, [&] { return t.describe(); },
      [&] { return "a last dimension of " + std::to_string(cols); });
  int64_t rows = 1;
  for (int d = 0; d + 1 < t.ndim; ++d) rows *= t.shape[d];
  return rows;
}

void rows(std::string_view op, std::string_view what, const TensorView& t, int64_t rows, int64_t cols) {
  const int64_t got = rows_of(op, what, t, cols);
  require(
      got == rows, ErrorCode::InvalidArgument, op, what, [&] { return t.describe(); },
      [&] { return std::to_string(rows) + " rows of " + std::to_string(cols); });
}

void block_size(std::string_view op, std::string_view what, const Format& format, int64_t got) {
  bool known = format.whole_rows && got == 0;
  for (int64_t size : format.block_sizes) known |= size == got;
  require(
      known, ErrorCode::InvalidArgument, op, what, [&] { return std::to_string(got); },
      [&] { return join_sizes(format); });
}

void codebook_4bit(std::string_view op, const Format& format) {
  require(format.is_4bit() && format.coding == Coding::Codebook, ErrorCode::InvalidArgument, op, "format",
          std::string(format.name), "a 4-bit codebook format (nf4, fp4)");
}

void affine(std::string_view op, const Format& format) {
  require(format.coding == Coding::Affine, ErrorCode::InvalidArgument, op, "format", std::string(format.name),
          "an affine format (int4, int8_affine)");
}

void code_block_size(std::string_view op, int64_t got) {
  require(
      got >= 16 && got <= 4096 && std::has_single_bit(static_cast<uint64_t>(got)), ErrorCode::InvalidArgument, op,
      "block size", [&] { return std::to_string(got); }, "a power of two from 16 to 4096");
}

void code256(std::string_view op, std::string_view what, const TensorView& t, Device device) {
  tensor(op, what, t, {DType::Float32}, device);
  numel(op, what, t, 256);
}

void ascending(std::string_view op, std::string_view what, const TensorView& t) {
  if (t.device.type != DeviceType::Cpu) return;
  const float* value = t.as<const float>();
  for (int64_t i = 0; i < t.numel(); ++i) {
    require(
        std::isfinite(value[i]) && (i == 0 || value[i - 1] <= value[i]), ErrorCode::InvalidArgument, op, what,
        [&] { return std::to_string(value[i]) + " at index " + std::to_string(i); },
        "finite values in ascending order");
  }
}

Matrix matrix(const TensorView& t) {
  const int64_t cols = t.ndim == 0 ? 1 : t.shape[t.ndim - 1];
  return {.rows = cols == 0 ? 0 : t.numel() / cols, .cols = cols};
}

void affine_scales(std::string_view op, const Format& format, const TensorView& scales, const TensorView& zeros,
                   int64_t groups, Device device) {
  floating(op, "scales", scales, device);
  require(
      contains(format.scale_dtypes, scales.dtype), ErrorCode::InvalidType, op, "scales",
      [&] { return scales.describe(); }, "a scale dtype of the format");
  numel(op, "scales", scales, groups);
  tensor(op, "zeros", zeros, {scales.dtype}, device);
  numel(op, "zeros", zeros, groups);
}

AbsmaxArgs absmax(std::string_view op, const Absmax& absmax, int64_t blocks, Device device) {
  AbsmaxArgs args{.values = absmax.values.data};
  const bool nested = absmax.nested_absmax.has_value();
  require(nested == absmax.nested_code.has_value() && nested == absmax.offset.has_value(), ErrorCode::InvalidArgument,
          op, "double-quantized absmax", "only some of nested_absmax, nested_code and offset", "all three or none");
  tensor(op, "absmax", absmax.values, {nested ? DType::UInt8 : DType::Float32}, device);
  numel(op, "absmax", absmax.values, blocks);
  if (nested) {
    tensor(op, "nested_absmax", *absmax.nested_absmax, {DType::Float32}, device);
    numel(op, "nested_absmax", *absmax.nested_absmax, ceil_div(blocks, kNestedBlockSize));
    tensor(op, "nested_code", *absmax.nested_code, {DType::Float32}, device);
    numel(op, "nested_code", *absmax.nested_code, 256);
    tensor(op, "offset", *absmax.offset, {DType::Float32}, device);
    numel(op, "offset", *absmax.offset, 1);
    args.nested_absmax = absmax.nested_absmax->as<const float>();
    args.nested_code = absmax.nested_code->as<const float>();
    args.offset = absmax.offset->as<const float>();
  }
  return args;
}

void int8_threshold(std::string_view op, float threshold) {
  require(
      std::isfinite(threshold) && threshold >= 0, ErrorCode::InvalidArgument, op, "threshold",
      [&] { return std::to_string(threshold); }, "a finite number of at least 0");
}

SizeInt8 weight_int8(std::string_view op, const WeightInt8& weight, Device device) {
  const TensorView& codes = weight.codes;
  tensor(op, "weight codes", codes, {DType::Int8}, device);
  require(
      codes.ndim == 2, ErrorCode::InvalidArgument, op, "weight codes", [&] { return codes.describe(); },
      "2 dimensions");
  tensor(op, "weight scales", weight.scales, {DType::Float32}, device);
  numel(op, "weight scales", weight.scales, codes.shape[0]);
  return {codes.shape[0], codes.shape[1]};
}

void int8_scales(std::string_view op, const TensorView& scales) {
  if (scales.device.type != DeviceType::Cpu) return;
  const float* const values = scales.as<const float>();
  for (int64_t i = 0; i < scales.numel(); ++i) {
    require(
        values[i] >= 0, ErrorCode::InvalidArgument, op, "weight scales",
        [&] { return std::to_string(values[i]) + " at " + std::to_string(i); }, "numbers of at least 0");
  }
}

void int8_sizes(std::string_view op, int64_t rows, int64_t cols) {
  int64_t product = 0;
  require(
      rows >= 0 && cols >= 0 && cols <= INT32_MAX &&
          !__builtin_mul_overflow(rows, std::max<int64_t>(cols, 1), &product) && product < int64_t{1} << 59,
      ErrorCode::InvalidArgument, op, "sizes",
      [&] { return std::to_string(rows) + " rows of " + std::to_string(cols); },
      "sizes of at least 0, columns below 2^31, that fit");
}

void cuda_device(std::string_view op, const std::optional<CudaDevice>& device) {
  require(
      !device || (device->compute_capability >= 75 && device->sm_count >= 1), ErrorCode::InvalidArgument, op, "device",
      [&] {
        return "compute capability " + std::to_string(device->compute_capability) + " with " +
               std::to_string(device->sm_count) + " multiprocessors";
      },
      "75 (7.5) or later with at least 1");
}

Weight4bitArgs weight_4bit(std::string_view op, const Weight4bit& weight, Device device) {
  require(weight.format != nullptr && weight.format->is_4bit(), ErrorCode::InvalidArgument, op, "format",
          weight.format ? std::string(weight.format->name) : "none", "a 4-bit format");
  const Format& format = *weight.format;
  int64_t n = 0;
  require(
      weight.rows >= 0 && weight.cols >= 0 && !__builtin_mul_overflow(weight.rows, weight.cols, &n),
      ErrorCode::InvalidArgument, op, "weight shape",
      [&] { return "[" + std::to_string(weight.rows) + ", " + std::to_string(weight.cols) + "]"; },
      "sizes of at least 0 with a product below 2^63");
  block_size(op, "block size", format, weight.block_size);
  tensor(op, "codes", weight.codes, {DType::UInt8}, device);
  numel(op, "codes", weight.codes, codes_size(format, n));

  Weight4bitArgs args{.format = &format,
                      .rows = weight.rows,
                      .cols = weight.cols,
                      .block_size = weight.block_size,
                      .codes = weight.codes.as<const uint8_t>()};
  const int64_t scales = num_scales(format, weight.rows, weight.cols, weight.block_size);
  if (format.coding == Coding::Codebook) {
    args.absmax = absmax(op, weight.absmax, scales, device);
    return args;
  }
  require(weight.scales && weight.zeros, ErrorCode::InvalidArgument, op, "affine weight", "no scales or no zeros",
          "both");
  affine_scales(op, format, *weight.scales, *weight.zeros, scales, device);
  if (args.block_size == 0) args.block_size = std::max<int64_t>(weight.cols, 1);  // kernels divide by it
  args.scales = weight.scales->data;
  args.zeros = weight.zeros->data;
  args.scale_dtype = weight.scales->dtype;
  return args;
}

}  // namespace qbits::check
