#include <gtest/gtest.h>

#include <algorithm>

#include "float_bits.h"
#include "qbits/error.h"
#include "qbits/quantize.h"
#include "qbits/runtime.h"
#include "refusal.h"

namespace qbits {
namespace {

using test::Buffer;

constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};

TensorView view(Buffer& buffer, int64_t n) { return TensorView::contiguous(buffer.bytes.data(), buffer.dtype, {n}); }

std::vector<float> estimate(Buffer& x, int64_t n, double offset, int64_t q) {
  std::vector<float> quantiles(q, -7);
  std::vector<uint8_t> workspace(estimate_quantiles_workspace(view(x, n)), 0xCD);
  estimate_quantiles(view(x, n), offset, TensorView::contiguous(quantiles.data(), DType::Float32, {q}),
                     TensorView::contiguous(workspace.data(), DType::UInt8, {std::ssize(workspace)}));
  return quantiles;
}

// Every quantile lies within 0.5 % of its rank: the wanted rank is at most that far outside the ranks of equal values.
void expect_ranks(Buffer& x, int64_t n, double offset, int64_t q, const std::string& where) {
  std::vector<float> sorted;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isnan(x.get(i))) sorted.push_back(x.get(i));
  }
  std::sort(sorted.begin(), sorted.end());
  const std::vector<float> quantiles = estimate(x, n, offset, q);
  const auto m = static_cast<double>(sorted.size());
  for (int64_t i = 0; i < q; ++i) {
    const double rank = q == 1 ? 0.5 : offset + static_cast<double>(i) * (1 - 2 * offset) / static_cast<double>(q - 1);
    const auto below =
        static_cast<double>(std::lower_bound(sorted.begin(), sorted.end(), quantiles[i]) - sorted.begin());
    const auto upto =
        static_cast<double>(std::upper_bound(sorted.begin(), sorted.end(), quantiles[i]) - sorted.begin());
    ASSERT_LE(below / m, rank + 0.005 + 1 / m) << where << " quantile " << i << " = " << quantiles[i];
    ASSERT_GE(upto / m, rank - 0.005 - 1 / m) << where << " quantile " << i << " = " << quantiles[i];
    if (i > 0) {
      ASSERT_GE(quantiles[i], quantiles[i - 1]) << where;
    }
  }
  ASSERT_GE(quantiles.front(), sorted.front()) << where;
  ASSERT_LE(quantiles.back(), sorted.back()) << where;
}

TEST(EstimateQuantiles, RanksOfRandomData) {
  for (DType dtype : kFloats) {
    for (int64_t n : {1, 2, 3, 255, 256, 1000, 65537, 300000}) {
      Buffer x = test::random_buffer(dtype, n, static_cast<uint32_t>(n), 3.0F);
      for (int64_t q : {1, 2, 16, 256, 1000}) {
        for (double offset : {0.0, 1.0 / 512, 0.25, 0.49}) expect_ranks(x, n, offset, q, std::string(name(dtype)));
      }
    }
  }
}

TEST(EstimateQuantiles, CrowdedAndRepeatedValues) {
  const int64_t n = 100000;
  std::mt19937 engine(1);
  auto random = [&](uint32_t first, uint32_t count) {
    return std::bit_cast<float>(first + static_cast<uint32_t>(engine() % count));
  };
  auto crowd = [&](auto value) {
    Buffer x(DType::Float32, n);
    for (int64_t i = 0; i < n; ++i) x.set(i, value(i));
    expect_ranks(x, n, 1.0 / 512, 256, "crowd");
  };
  crowd([](int64_t) { return 0.3F; });
  crowd([](int64_t i) { return i % 3 ? 0.0F : -0.0F; });
  crowd([](int64_t i) { return static_cast<float>(i % 5); });
  crowd([&](int64_t) { return random(0x3f800000U, 40000); });  // all in one top bucket
  crowd([&](int64_t) { return random(0x3f800000U, 200); });    // all in one part of it
  crowd([&](int64_t) { return random(0xbf800000U, 70000); });
  crowd([&](int64_t) { return random(0, 60000); });  // subnormal
  crowd([&](int64_t i) { return i % 100 ? 1e-3F * static_cast<float>(engine() % 1000) : 1e30F; });
}

TEST(EstimateQuantiles, NaNIsIgnoredAndInfinityCounts) {
  for (DType dtype : kFloats) {
    Buffer x = test::random_buffer(dtype, 5000, 4);
    for (int64_t i = 0; i < 5000; i += 7) x.set(i, i % 2 ? NAN : -NAN);
    for (int64_t i = 1; i < 5000; i += 70) x.set(i, INFINITY);
    for (int64_t i = 2; i < 5000; i += 70) x.set(i, -INFINITY);
    expect_ranks(x, 5000, 0.0, 64, std::string(name(dtype)));
    for (int64_t i = 0; i < 5000; ++i) x.set(i, NAN);
    for (float q : estimate(x, 5000, 0.0, 64)) ASSERT_EQ(std::bit_cast<uint32_t>(q), 0x7fc00000U);
  }
}

TEST(EstimateQuantiles, LargeInputsInAnyNumberOfThreads) {
  const int64_t n = (int64_t{1} << 24) + 12345;
  Buffer x(DType::Float32, n);
  uint32_t state = 1;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 1664525 + 1013904223;
    x.set(i, static_cast<float>(state >> 8) * 0x1p-24F);
  }
  const int threads = num_threads();
  set_num_threads(1);
  const std::vector<float> one = estimate(x, n, 1.0 / 512, 256);
  set_num_threads(3);
  EXPECT_EQ(estimate(x, n, 1.0 / 512, 256), one);
  set_num_threads(threads);
  for (int i = 0; i < 256; ++i) {  // uniform data: each quantile is its own rank
    EXPECT_NEAR(one[i], 1.0 / 512 + i * (1 - 2.0 / 512) / 255, 0.005);
  }
}

TEST(EstimateQuantiles, RefusesBadArgumentsBeforeWriting) {
  Buffer x = test::random_buffer(DType::Float32, 100, 1), quantiles(DType::Float32, 70000);
  quantiles.set(0, -7);
  std::vector<uint8_t> workspace(estimate_quantiles_workspace(view(x, 100)));
  auto w = [&](int64_t n) { return TensorView::contiguous(workspace.data(), DType::UInt8, {n}); };
  const TensorView v = view(x, 100), enough = w(std::ssize(workspace));
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_TRUE(message.starts_with("[estimate_quantiles] ")) << message;
  };
  for (double offset : {-0.1, 0.5, 1.0, static_cast<double>(NAN)}) {
    refused(ErrorCode::InvalidArgument, [&] { estimate_quantiles(v, offset, view(quantiles, 16), enough); });
  }
  refused(ErrorCode::InvalidArgument, [&] { estimate_quantiles(view(x, 0), 0, view(quantiles, 16), enough); });
  refused(ErrorCode::InvalidArgument, [&] { estimate_quantiles(v, 0, view(quantiles, 0), enough); });
  refused(ErrorCode::InvalidArgument, [&] { estimate_quantiles(v, 0, view(quantiles, 65537), enough); });
  refused(ErrorCode::InvalidArgument, [&] { estimate_quantiles(v, 0, view(quantiles, 16), w(100)); });
  refused(ErrorCode::InvalidType, [&] { estimate_quantiles(enough, 0, view(quantiles, 16), enough); });
  refused(ErrorCode::InvalidType, [&] { estimate_quantiles(v, 0, enough, enough); });
  EXPECT_EQ(quantiles.get(0), -7);
}

}  // namespace
}  // namespace qbits
