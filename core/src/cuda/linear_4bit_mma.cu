#include <array>
#include <vector>

#include "cuda/linear_4bit_kernels.h"
#include "cuda/linear_4bit_mma.cuh"
#include "ops/codebook_fit.h"

namespace qbits::cuda {
namespace {

template <class T>
inline constexpr int kSignificandBits = std::is_same_v<T, __half> ? 11 : 8;

// The fitted codebooks of the format table, computed once: a pure function of constants.
template <class T>
FittedCodebook fitted(const Format& format) {
  static const std::vector<FittedCodebook> table = [] {
    std::vector<FittedCodebook> fits(formats().size());
    for (size_t i = 0; i < fits.size(); ++i) {
      if (formats()[i].codebook.size() == 16) fits[i] = fit_codebook(formats()[i].codebook, kSignificandBits<T>);
    }
    return fits;
  }();
  for (size_t i = 0; i < table.size(); ++i) {
    if (&formats()[i] == &format) return table[i];
  }
  return fit_codebook(format.codebook, kSignificandBits<T>);
}

template <class T>
void run_mma(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  MmaArgs mma{.x = args.x,
              .bias = args.bias,
              .out = args.out,
              .products = static_cast<float*>(args.workspace),
              .m = args.m,
              .split_depth = plan.split_depth,
              .splits = plan.splits,
              .stages = plan.stages,
              .factor = 1.0F,
              .codebook = {},
              .weight = make_view(args.weight)};
  const bool affine = args.weight.is_affine();
  std::array<float, 16> values{};
  if (affine) {
    for (int code = 0; code < 16; ++code) values[code] = static_cast<float>(code) - kAffineCentre;
  } else {
    const FittedCodebook fit = fitted<T>(*args.weight.format);
    values = fit.values;
    mma.factor = fit.factor;
  }
  for (int code = 0; code < 16; ++code) {
    const T value(values[code]);
    mma.codebook[code] = std::bit_cast<uint16_t>(value);
  }
  affine ? launch_linear_4bit_mma<T, true>(mma, plan, stream) : launch_linear_4bit_mma<T, false>(mma, plan, stream);
}

}  // namespace

void linear_4bit_mma(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  args.dtype == DType::Float16 ? run_mma<__half>(args, plan, stream) : run_mma<__nv_bfloat16>(args, plan, stream);
}

}  // namespace qbits::cuda
