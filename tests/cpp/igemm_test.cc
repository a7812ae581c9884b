#include <gtest/gtest.h>

#include <algorithm>

#include "qbits/error.h"
#include "qbits/runtime.h"
#include "refusal.h"
#include "rows_int8.h"

namespace qbits {
namespace {

using test::view_of;
using test::workspace_of;

struct Problem {
  int64_t batch, m, n, k;  // batch 0: matrices
};

std::vector<int8_t> random_codes(int64_t n, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<int8_t> codes(static_cast<size_t>(n));
  for (int8_t& code : codes) code = static_cast<int8_t>(engine() % 256 - 128);
  return codes;
}

// [rows, cols] of each matrix, or its transpose.
TensorView operand(std::vector<int8_t>& codes, int64_t batch, int64_t rows, int64_t cols, bool transposed) {
  if (transposed) std::swap(rows, cols);
  return batch == 0 ? view_of(codes, DType::Int8, {rows, cols}) : view_of(codes, DType::Int8, {batch, rows, cols});
}

std::vector<int32_t> multiply(const Problem& p, std::vector<int8_t>& a, bool transpose_a, std::vector<int8_t>& b,
                              bool transpose_b) {
  const TensorView left = operand(a, p.batch, p.m, p.k, transpose_a);
  const TensorView right = operand(b, p.batch, p.k, p.n, transpose_b);
  const int64_t batch = std::max<int64_t>(p.batch, 1);
  std::vector<int32_t> out(static_cast<size_t>(batch * p.m * p.n), -7);
  // At any address: the op finds its own aligned start.
  std::vector<uint8_t> bytes(static_cast<size_t>(igemm_workspace(left, transpose_a, right, transpose_b)) + 1, 0xCD);
  const TensorView scratch = TensorView::contiguous(bytes.data() + 1, DType::UInt8, {std::ssize(bytes) - 1});
  const TensorView result =
      p.batch == 0 ? view_of(out, DType::Int32, {p.m, p.n}) : view_of(out, DType::Int32, {p.batch, p.m, p.n});
  igemm(left, transpose_a, right, transpose_b, result, scratch);
  return out;
}

// The sums in 64 bits, cut to 32.
std::vector<int32_t> expected(const Problem& p, const std::vector<int8_t>& a, bool transpose_a,
                              const std::vector<int8_t>& b, bool transpose_b) {
  const int64_t batch = std::max<int64_t>(p.batch, 1);
  std::vector<int32_t> want;
  for (int64_t s = 0; s < batch; ++s) {
    const int8_t* const left = a.data() + s * p.m * p.k;
    const int8_t* const right = b.data() + s * p.k * p.n;
    for (int64_t m = 0; m < p.m; ++m) {
      for (int64_t n = 0; n < p.n; ++n) {
        int64_t sum = 0;
        for (int64_t k = 0; k < p.k; ++k) {
          const int64_t x = left[transpose_a ? k * p.m + m : m * p.k + k];
          sum += x * right[transpose_b ? n * p.k + k : k * p.n + n];
        }
        want.push_back(static_cast<int32_t>(static_cast<uint32_t>(sum)));
      }
    }
  }
  return want;
}

void expect_product(const Problem& p, std::vector<int8_t>& a, std::vector<int8_t>& b) {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      EXPECT_EQ(multiply(p, a, transpose_a, b, transpose_b), expected(p, a, transpose_a, b, transpose_b))
          << "batch " << p.batch << " M " << p.m << " N " << p.n << " K " << p.k << " transposed " << transpose_a
          << transpose_b;
    }
  }
}

TEST(Igemm, EveryShapeBothWays) {
  for (const Problem& p :
       {Problem{0, 1, 1, 1}, {0, 1, 33, 7},   {0, 2, 5, 8},       {0, 3, 4, 15},   {0, 5, 31, 16},
        {0, 7, 32, 17},      {0, 8, 9, 63},   {0, 13, 65, 64},    {0, 6, 34, 65},  {0, 64, 3, 127},
        {0, 65, 66, 128},    {0, 130, 7, 31}, {0, 131, 100, 333}, {0, 4, 5, 4096}, {0, 3, 6, 4097},
        {0, 2, 3, 8231},     {1, 5, 6, 7},    {3, 9, 10, 70},     {17, 1, 2, 33},  {2, 67, 35, 130}}) {
    const int64_t batch = std::max<int64_t>(p.batch, 1);
    std::vector<int8_t> a = random_codes(batch * p.m * p.k, static_cast<uint32_t>(p.m + p.k));
    std::vector<int8_t> b = random_codes(batch * p.k * p.n, static_cast<uint32_t>(p.n * p.k + 1));
    expect_product(p, a, b);
  }
}

TEST(Igemm, NothingToMultiply) {
  std::vector<int8_t> none, some = random_codes(6, 1);
  expect_product({0, 0, 3, 2}, none, some);
  expect_product({0, 3, 0, 2}, some, none);
  expect_product({0, 3, 2, 0}, none, none);
  expect_product({4, 3, 2, 0}, none, none);
  EXPECT_EQ(multiply({0, 3, 2, 0}, none, false, none, true), std::vector<int32_t>(6, 0));
  std::vector<int8_t> a, b;
  const TensorView left = view_of(a, DType::Int8, {0, 2, 3}), right = view_of(b, DType::Int8, {0, 3, 4});
  std::vector<int32_t> out;
  igemm(left, false, right, false, view_of(out, DType::Int32, {0, 2, 4}),
        TensorView::contiguous(nullptr, DType::UInt8, {0}));
}

// Where products of bytes do not fit 16 bits, and sums not 32.
TEST(Igemm, ExtremeCodesAndSumsModulo32Bits) {
  for (const int64_t k : {2, 63, 64, 4096, 4097, 9000, 131071, 131072, 133144, 133145, 300001}) {
    for (const int8_t x : {-128, 127}) {
      for (const int8_t w : {-128, 127}) {
        std::vector<int8_t> a(static_cast<size_t>(2 * k), x), b(static_cast<size_t>(3 * k), w);
        const Problem p{0, 2, 3, k};
        const std::vector<int32_t> out = multiply(p, a, false, b, true);
        EXPECT_EQ(out, expected(p, a, false, b, true)) << "K " << k << " codes " << int{x} << " " << int{w};
        // What the header says of exact sums.
        const int64_t exact = k * x * w;
        const bool kept = k <= 131071 || (x > -128 && w > -128 && k <= 133144);
        if (kept) {
          EXPECT_EQ(out[0], exact);
        } else if (x == w) {
          EXPECT_NE(out[0], exact);
        }
      }
    }
  }
}

TEST(Igemm, SameSumsForAnyNumberOfThreads) {
  const int threads = num_threads();
  const Problem p{2, 150, 90, 1003};
  std::vector<int8_t> a = random_codes(p.batch * p.m * p.k, 1), b = random_codes(p.batch * p.k * p.n, 2);
  for (const int count : {1, 3}) {
    set_num_threads(count);
    expect_product(p, a, b);
  }
  set_num_threads(threads);
}

TEST(Igemm, WorkspaceOfMoreRowsThanFitIsNoSmallNumber) {
  int8_t code = 0;
  const TensorView a = TensorView::contiguous(&code, DType::Int8, {int64_t{1} << 29, int64_t{1} << 29, 1});
  const TensorView b = TensorView::contiguous(&code, DType::Int8, {int64_t{1} << 29, 1, 1});
  EXPECT_GT(igemm_workspace(a, false, b, false), int64_t{1} << 58);
}

TEST(Igemm, RefusesBadArgumentsBeforeWriting) {
  std::vector<int8_t> a = random_codes(24, 1), b = random_codes(24, 2);
  std::vector<int32_t> out(24, -7);
  std::vector<uint8_t> bytes(4096, 0xCD);
  std::vector<float> floats(24, 0.0F);
  const TensorView x = view_of(a, DType::Int8, {2, 3}), w = view_of(b, DType::Int8, {3, 4});
  const TensorView o = view_of(out, DType::Int32, {2, 4}), s = workspace_of(bytes);
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_NE(message.find("igemm"), std::string::npos) << message;
  };
  const auto invalid = ErrorCode::InvalidArgument, type = ErrorCode::InvalidType;
  refused(invalid, [&] { igemm(x, true, w, false, o, s); });
  refused(invalid, [&] { igemm(x, false, w, true, o, s); });
  refused(invalid, [&] { igemm(x, false, w, false, view_of(out, DType::Int32, {4, 2}), s); });
  refused(invalid, [&] { igemm(x, false, w, false, view_of(out, DType::Int32, {1, 2, 4}), s); });
  refused(invalid, [&] { igemm(x, false, view_of(b, DType::Int8, {1, 3, 4}), false, o, s); });
  refused(invalid, [&] {
    igemm(view_of(a, DType::Int8, {2, 2, 3}), false, view_of(b, DType::Int8, {1, 3, 4}), false,
          view_of(out, DType::Int32, {2, 2, 4}), s);
  });
  refused(invalid, [&] {
    igemm(view_of(a, DType::Int8, {2, 2, 3}), false, view_of(b, DType::Int8, {2, 3, 4}), false,
          view_of(out, DType::Int32, {1, 2, 4}), s);
  });
  refused(invalid, [&] { igemm(view_of(a, DType::Int8, {3}), false, w, false, o, s); });
  refused(invalid, [&] { igemm(view_of(a, DType::Int8, {1, 1, 2, 3}), false, w, false, o, s); });
  refused(invalid, [&] { igemm(x, false, w, false, o, view_of(bytes, DType::UInt8, {8})); });
  refused(type, [&] { igemm(view_of(floats, DType::Float32, {2, 3}), false, w, false, o, s); });
  refused(type, [&] { igemm(x, false, view_of(b, DType::UInt8, {3, 4}), false, o, s); });
  refused(type, [&] { igemm(x, false, w, false, view_of(floats, DType::Float32, {2, 4}), s); });
  refused(type, [&] { igemm_workspace(view_of(floats, DType::Float32, {2, 3}), false, w, false); });
  refused(invalid, [&] { igemm_workspace(x, false, w, true); });
  const int64_t large = int64_t{1} << 31;
  refused(invalid, [&] {
    igemm_workspace(view_of(a, DType::Int8, {large, large / 8, 0}), false, view_of(b, DType::Int8, {large, 0, 4}),
                    false);
  });
  refused(invalid, [&] { igemm_workspace(view_of(a, DType::Int8, {2, large}), false, w, false); });
  EXPECT_EQ(out, std::vector<int32_t>(24, -7));
  EXPECT_EQ(bytes, std::vector<uint8_t>(4096, 0xCD));
}

}  // namespace
}  // namespace qbits
