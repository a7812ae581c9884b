#include "ops/embedding_4bit.h"

#include "ops/check.h"
#include "qbits/linear.h"

namespace qbits {
namespace {

// On the CPU the indices can be read before anything is written.
template <class Index>
void check_indices(std::string_view op, const TensorView& indices, int64_t rows) {
  const auto* index = indices.as<const Index>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    check::require(
        index[i] >= 0 && index[i] < rows, ErrorCode::InvalidIndex, op, "index",
        [&] { return std::to_string(index[i]) + " at " + std::to_string(i); },
        [&] { return "0 to " + std::to_string(rows - 1); });
  }
}

}  // namespace

void embedding_4bit(const TensorView& indices, const Weight4bit& weight, const TensorView& out, Stream stream) {
  constexpr std::string_view op = "embedding_4bit";
  const int64_t count = indices.numel();
  check::tensor(op, "indices", indices, {DType::Int64, DType::Int32}, indices.device);
  const Weight4bitArgs w = check::weight_4bit(op, weight, indices.device);
  check::floating(op, "out", out, indices.device);
  check::rows(op, "out", out, count, w.cols);
  const bool on_cpu = indices.device.type == DeviceType::Cpu;
  if (on_cpu) {
    indices.dtype == DType::Int64 ? check_indices<int64_t>(op, indices, w.rows)
                                  : check_indices<int32_t>(op, indices, w.rows);
  }
  if (count == 0 || w.cols == 0) return;

  const Embedding4bitArgs args{.indices = indices.data,
                               .index_dtype = indices.dtype,
                               .count = count,
                               .weight = w,
                               .out = out.data,
                               .out_dtype = out.dtype,
                               .device = indices.device};
  on_cpu ? cpu::embedding_4bit(args) : cuda::embedding_4bit(args, stream);
}

}  // namespace qbits
