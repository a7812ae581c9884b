#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "ops/args.h"
#include "qbits/error.h"
#include "qbits/format.h"
#include "qbits/int8.h"
#include "qbits/linear.h"
#include "qbits/tensor.h"

// The argument checks of every op, each with the message "[op] what: got X, want Y".

namespace qbits::check {

[[noreturn]] void fail(ErrorCode code, std::string_view op, std::string_view what, const std::string& got,
                       const std::string& want);

// Throws unless `ok`. `got` and `want` are built only on failure where they are lambdas.
template <class Got, class Want>
void require(bool ok, ErrorCode code, std::string_view op, std::string_view what, Got&& got, Want&& want) {
  if (ok) [[likely]] {
    return;
  }
  auto text = [](auto& t) -> std::string {
    if constexpr (std::is_invocable_v<decltype(t)>) {
      return t();
    } else {
      return std::string(t);
    }
  };
  fail(code, op, what, text(got), text(want));
}

// A contiguous tensor with data, of one of `dtypes`, on `device`.
void tensor(std::string_view op, std::string_view what, const TensorView& t, std::initializer_list<DType> dtypes,
            Device device);

// A float32, bfloat16 or float16 tensor, contiguous, on `device`.
void floating(std::string_view op, std::string_view what, const TensorView& t, Device device);

// Exactly `want` elements.
void numel(std::string_view op, std::string_view what, const TensorView& t, int64_t want);

// At least `want` elements.
void at_least(std::string_view op, std::string_view what, const TensorView& t, int64_t want);

// The argument "workspace": at least `bytes` of uint8 on `device` and, where CUDA uses it, on a 16-byte boundary.
void workspace(std::string_view op, const TensorView& t, int64_t bytes, Device device);

// [.., cols]; returns the number of rows, the product of the leading dimensions.
int64_t rows_of(std::string_view op, std::string_view what, const TensorView& t, int64_t cols);

// [.., cols] with exactly `rows` rows.
void rows(std::string_view op, std::string_view what, const TensorView& t, int64_t rows, int64_t cols);

// One of the format's block sizes (0 too where the format allows whole rows).
void block_size(std::string_view op, std::string_view what, const Format& format, int64_t got);

// A format that is 4-bit with a codebook, affine, or any of 4 bits.
void codebook_4bit(std::string_view op, const Format& format);
void affine(std::string_view op, const Format& format);

// Block sizes of 8-bit codes: powers of two from 16 to 4096.
void code_block_size(std::string_view op, int64_t got);

// float32[256].
void code256(std::string_view op, std::string_view what, const TensorView& t, Device device);

// Finite values in ascending order, where the CPU can read them: on CUDA looking would synchronise.
void ascending(std::string_view op, std::string_view what, const TensorView& t);

// The last dimension as columns and the others, multiplied, as rows.
struct Matrix {
  int64_t rows;
  int64_t cols;
};
Matrix matrix(const TensorView& t);

// Scales and zeros of `groups` groups, in one of the format's scale dtypes.
void affine_scales(std::string_view op, const Format& format, const TensorView& scales, const TensorView& zeros,
                   int64_t groups, Device device);

// Absmax of `blocks` blocks, plain or complete in its nested parts; returns the raw pointers.
AbsmaxArgs absmax(std::string_view op, const Absmax& absmax, int64_t blocks, Device device);

// Where outliers of LLM.int8() begin: 0, for none, or above.
void int8_threshold(std::string_view op, float threshold);

// The sizes of a weight of int8 rows, whose parts must fit each other.
struct SizeInt8 {
  int64_t n;
  int64_t k;
};
SizeInt8 weight_int8(std::string_view op, const WeightInt8& weight, Device device);

// Numbers of at least 0, where the CPU can read them: on CUDA looking would synchronise.
void int8_scales(std::string_view op, const TensorView& scales);

// Rows and columns of an int8 product's operand: at least 0, columns below 2^31, the elements 8 times in memory.
void int8_sizes(std::string_view op, int64_t rows, int64_t cols);

// A device that has kernels, where one is named.
void cuda_device(std::string_view op, const std::optional<CudaDevice>& device);

// A whole weight; returns the raw pointers.
Weight4bitArgs weight_4bit(std::string_view op, const Weight4bit& weight, Device device);

}  // namespace qbits::check
