#include "ops/embedding_4bit.h"

#include "cuda/decoders.cuh"

namespace qbits::cuda {
namespace {

inline constexpr int kThreads = 256;

struct EmbeddingShape {
  int64_t count;  // indices
  int64_t rows;
  int64_t cols;
  bool affine;
  BlockDivisor divisor;
  int64_t groups;  // a row, for affine formats
};

// The block of an element: of the flattened tensor for codebooks, inside the row for affine groups.
__device__ int64_t block_of(const EmbeddingShape& shape, int64_t row, int64_t col) {
  return shape.affine ? row * shape.groups + shape.divisor(col) : shape.divisor(row * shape.cols + col);
}

template <class I>
__device__ bool row_of(const I* indices, int64_t t, int64_t rows, int64_t& row) {
  row = static_cast<int64_t>(indices[t]);
  return row >= 0 && row < rows;
}

// A thread writes kCount elements of a row; kCount = 1 takes any shape and alignment.
template <class T, class I, class Decoder, int kCount>
__global__ void __launch_bounds__(kThreads) gather_rows(const __grid_constant__ Decoder decoder, const I* indices,
                                                        const uint8_t* codes, const EmbeddingShape shape, T* out) {
  __shared__ typename Decoder::Shared shared;
  decoder.prepare(shared);
  __syncthreads();
  const int64_t per_row = shape.cols / kCount;
  const int64_t work = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (work >= shape.count * per_row) return;
  const int64_t t = work / per_row;
  const int64_t col = (work - t * per_row) * kCount;
  T* destination = out + t * shape.cols + col;
  int64_t row = 0;
  const bool valid = row_of(indices, t, shape.rows, row);
  if constexpr (kCount == 1) {
    *destination = from_float<T>(valid ? Decoder::value(shared, decoder.load(block_of(shape, row, col)),
                                                        load_code<Decoder::kBits>(codes, row * shape.cols + col))
                                       : quiet_nan());
  } else {
    uint4 vector = make_uint4(kNanWord<T>, kNanWord<T>, kNanWord<T>, kNanWord<T>);
    if (valid) {
      const int64_t i = row * shape.cols + col;
      const auto packed = PackedCodes<Decoder::kBits, kCount>::template load<true>(codes, i, i + kCount);
      vector = decode_vector<T, Decoder>(shared, decoder.load(block_of(shape, row, col)), packed);
    }
    *reinterpret_cast<uint4*>(destination) = vector;
  }
}

template <class T, class I, class Decoder>
void run(const Embedding4bitArgs& args, const Decoder& decoder, Stream stream) {
  constexpr std::string_view op = "embedding_4bit";
  const Weight4bitArgs& weight = args.weight;
  const EmbeddingShape shape{.count = args.count,
                             .rows = weight.rows,
                             .cols = weight.cols,
                             .affine = weight.is_affine(),
                             .divisor = BlockDivisor(weight.block_size),
                             .groups = ceil_div(weight.cols, weight.block_size)};
  const I* indices = static_cast<const I*>(args.indices);
  T* out = static_cast<T*>(args.out);
  constexpr int kVector = kPerVector<T>;
  const bool vectors = weight.cols % kVector == 0 && weight.block_size % kVector == 0 && is_aligned(out, 16) &&
                       is_aligned(weight.codes, kVector * Decoder::kBits / 8);
  const int64_t work = args.count * (vectors ? weight.cols / kVector : weight.cols);
  const LaunchShape launch_shape{.blocks = ceil_div(work, kThreads), .threads = kThreads};
  if (vectors) {
    launch(op, gather_rows<T, I, Decoder, kVector>, launch_shape, stream, decoder, indices, weight.codes, shape, out);
  } else {
    launch(op, gather_rows<T, I, Decoder, 1>, launch_shape, stream, decoder, indices, weight.codes, shape, out);
  }
}

template <class T, class I>
void run(const Embedding4bitArgs& args, Stream stream) {
  const Weight4bitArgs& weight = args.weight;
  if (weight.is_affine()) {
    dispatch_float(weight.scale_dtype, "embedding_4bit", [&](auto tag) {
      using S = typename decltype(tag)::type;
      const AffineDecoder<4, S> decoder{static_cast<const S*>(weight.scales), static_cast<const S*>(weight.zeros)};
      run<T, I>(args, decoder, stream);
    });
  } else {
    dispatch_bool(weight.absmax.is_nested(),
                  [&](auto nested) { run<T, I>(args, make_decoder<nested>(*weight.format, weight.absmax), stream); });
  }
}

}  // namespace

void embedding_4bit(const Embedding4bitArgs& args, Stream stream) {
  constexpr std::string_view op = "embedding_4bit";
  const DeviceGuard guard(args.device, op);
  dispatch_float(args.out_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.index_dtype == DType::Int32 ? run<T, int32_t>(args, stream) : run<T, int64_t>(args, stream);
  });
}

}  // namespace qbits::cuda
