#include "ops/embedding_4bit.h"

#include "cuda/decoders.cuh"

namespace qbits::cuda {
namespace {

inline constexpr int kThreads = 256;
inline constexpr int kUnroll = 4;  // pieces of rows a thread has in flight

struct EmbeddingShape {
  int64_t pieces;  // of all rows to write
  Divisor pieces_a_row;
  int64_t rows;
  int64_t cols;
  bool affine;
  Divisor block_size;
  int64_t groups;  // a row, for affine formats
};

// The block of an element: of the flattened tensor for codebooks, inside the row for affine groups.
__device__ int64_t block_of(const EmbeddingShape& shape, int64_t row, int64_t col) {
  return shape.affine ? row * shape.groups + shape.block_size(col) : shape.block_size(row * shape.cols + col);
}

// Pieces are kCount elements, which is a vector of T, or 1, which takes any shape and alignment.
template <class T, class I, class Decoder, int kCount>
__global__ void __launch_bounds__(kThreads) gather_rows(const __grid_constant__ Decoder decoder, const I* indices,
                                                        const uint8_t* codes, const EmbeddingShape shape, T* out) {
  __shared__ typename Decoder::Shared shared;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kUnroll * kThreads) + threadIdx.x;
  int64_t rows[kUnroll];
  int64_t cols[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t piece = first + u * kThreads;
    if (piece >= shape.pieces) break;
    const int64_t t = shape.pieces_a_row(piece);
    cols[u] = (piece - t * shape.pieces_a_row.size) * kCount;
    rows[u] = static_cast<int64_t>(indices[t]);
  }
  decoder.prepare(shared);
  __syncthreads();

  using Packed = PackedCodes<Decoder::kBits, kCount == 1 ? 8 : kCount>;
  std::conditional_t<kCount == 1, uint32_t, Packed> packed[kUnroll];
  typename Decoder::Raw scales[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    if (first + u * kThreads >= shape.pieces) break;
    if (rows[u] < 0 || rows[u] >= shape.rows) continue;
    const int64_t i = rows[u] * shape.cols + cols[u];
    if constexpr (kCount == 1) {
      packed[u] = load_code<Decoder::kBits>(codes, i);
    } else {
      packed[u] = Packed::template load<true>(codes, i, i + kCount);
    }
    scales[u] = decoder.load(block_of(shape, rows[u], cols[u]));
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t piece = first + u * kThreads;
    if (piece >= shape.pieces) break;
    const bool valid = rows[u] >= 0 && rows[u] < shape.rows;
    const typename Decoder::Scale scale = Decoder::scale(shared, scales[u]);
    if constexpr (kCount == 1) {
      out[piece] = from_float<T>(valid ? Decoder::value(shared, scale, packed[u]) : quiet_nan());
    } else {
      reinterpret_cast<uint4*>(out)[piece] = valid ? decode_vector<T, Decoder>(shared, scale, packed[u])
                                                   : make_uint4(kNanWord<T>, kNanWord<T>, kNanWord<T>, kNanWord<T>);
    }
  }
}

template <class T, class I, class Decoder>
void run(const Embedding4bitArgs& args, const Decoder& decoder, Stream stream) {
  constexpr std::string_view op = "embedding_4bit";
  const Weight4bitArgs& weight = args.weight;
  const I* indices = static_cast<const I*>(args.indices);
  T* out = static_cast<T*>(args.out);
  constexpr int kVector = kPerVector<T>;
  const bool vectors = weight.cols % kVector == 0 && weight.block_size % kVector == 0 && is_aligned(out, 16) &&
                       is_aligned(weight.codes, kVector * Decoder::kBits / 8);
  const int64_t pieces_a_row = vectors ? weight.cols / kVector : weight.cols;
  const EmbeddingShape shape{.pieces = args.count * pieces_a_row,
                             .pieces_a_row = Divisor(pieces_a_row),
                             .rows = weight.rows,
                             .cols = weight.cols,
                             .affine = weight.is_affine(),
                             .block_size = Divisor(weight.block_size),
                             .groups = ceil_div(weight.cols, weight.block_size)};
  auto* kernel = vectors ? gather_rows<T, I, Decoder, kVector> : gather_rows<T, I, Decoder, 1>;
  const LaunchShape launch_shape{.blocks = ceil_div(shape.pieces, kUnroll * kThreads), .threads = kThreads};
  launch(op, kernel, launch_shape, stream, decoder, indices, weight.codes, shape, out);
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
