#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "qbits/dtype.h"
#include "qbits/export.h"
#include "qbits/tensor.h"

namespace qbits {

// How a code becomes a number.
enum class Coding : uint8_t {
  Codebook,   // value = codebook[code] * absmax of the block
  Affine,     // value = (code - zero) * scale of the group: r = s (q - z), Jacob et al. 2018
  Symmetric,  // value = code * scale / 127 of the row, the code signed: LLM.int8(), arXiv 2208.07339
};

// Where a value exactly between two codebook entries goes.
enum class Ties : uint8_t {
  Lower,       // to the smaller value
  TowardZero,  // to the smaller magnitude
  Even,        // to the even code
};

// One row of the format table, the only place where a format's facts stand.
struct Format {
  std::string_view name;
  std::string_view summary;  // one line for documentation and tables
  int bits;                  // per code: 4 (two a byte, first element in the high nibble) or 8
  Coding coding;
  // Value of each code in [-1, 1], indexed by code. Empty for affine and symmetric formats and for
  // "quantile", whose 256 values come from the data.
  std::span<const float> codebook;
  Ties ties;  // codebook formats
  // Elements that share one scale, ascending. Codebook blocks run over the flattened tensor and may
  // straddle rows; affine groups stay inside a row, whose last group may be shorter. Empty for symmetric
  // formats.
  std::span<const int64_t> block_sizes;
  bool whole_rows;                      // block size 0 means one group per row: affine and symmetric formats
  std::span<const DType> scale_dtypes;  // accepted for scales and zeros; the first is the default
  // The tensors a quantized weight of this format consists of, in order.
  std::span<const std::string_view> tensors;

  bool is_4bit() const { return bits == 4; }
};

// Every format, in the order tables print them.
QBITS_API std::span<const Format> formats();

// The row called `name`. Throws InvalidArgument, listing the known names.
QBITS_API const Format& format(std::string_view name);

// Bytes of codes for `numel` elements: 4-bit codes are packed two a byte, the last nibble of an odd
// count holds the code of zero.
QBITS_API int64_t codes_size(const Format& format, int64_t numel);

// Number of scales for a tensor of `rows` rows of `cols` elements: ceil(rows * cols / block_size)
// for codebook formats, rows * ceil(cols / block_size) for affine ones, rows for symmetric ones.
QBITS_API int64_t num_scales(const Format& format, int64_t rows, int64_t cols, int64_t block_size);

// Blocks of double quantization: scales that share one second-level absmax (QLoRA, arXiv 2305.14314).
inline constexpr int64_t kNestedBlockSize = 256;

// The absmax of each block of a 4-bit codebook weight, plain or double-quantized.
//   plain:  values float32[blocks]; nested_* absent.
//   double: values uint8[blocks] and absmax[i] = nested_code[values[i]] * nested_absmax[i / 256] + offset,
//           evaluated in float32 as one rounded product and one rounded sum.
struct Absmax {
  TensorView values;
  std::optional<TensorView> nested_absmax;  // float32[ceil(blocks / 256)]
  std::optional<TensorView> nested_code;    // float32[256]
  std::optional<TensorView> offset;         // float32, one element: the mean absmax
};

// A matrix of `rows` (N, outputs or vocabulary) by `cols` (K, inputs) in a 4-bit format.
struct Weight4bit {
  const Format* format = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t block_size = 0;
  TensorView codes;                  // uint8[ceil(rows * cols / 2)]
  Absmax absmax;                     // codebook formats
  std::optional<TensorView> scales;  // affine formats: [rows, groups] in one of format->scale_dtypes
  std::optional<TensorView> zeros;   // affine formats: as scales
};

// The 256-entry maps of 8-bit block-wise quantization, ascending, as bitsandbytes builds them.
// `out` receives 256 floats. Source: Dettmers et al., 8-bit optimizers, arXiv 2110.02861.
QBITS_API void create_dynamic_map(bool is_signed, int max_exponent_bits, int total_bits, std::span<float> out);
QBITS_API void create_linear_map(bool is_signed, int total_bits, bool add_zero, std::span<float> out);
QBITS_API void create_fp8_map(bool is_signed, int exponent_bits, int precision_bits, int total_bits,
                              std::span<float> out);
QBITS_API void create_normal_map(double offset, bool use_extra_value, std::span<float> out);

}  // namespace qbits
