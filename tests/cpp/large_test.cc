#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "float_bits.h"
#include "qbits/linear.h"
#include "qbits/quantize.h"

// More than 2^31 elements: data that repeats with a period must give results that repeat with it, past every place
// where a 32-bit index would wrap.

namespace qbits {
namespace {

constexpr int64_t kCols = 4096;
constexpr int64_t kPeriodRows = 257;
constexpr int64_t kPeriod = kPeriodRows * kCols;
constexpr int64_t kRows = (int64_t{1} << 31) / kCols + 300;
constexpr int64_t kElements = kRows * kCols;
constexpr int64_t kBlock = 256;

// Memory this process has not touched yet: pages come when written.
template <class T>
std::unique_ptr<T[]> allocate(int64_t n) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(n)]);
}

// Fills `data` with copies of its first `period` elements.
template <class T>
void repeat(T* data, int64_t period, int64_t n) {
  for (int64_t done = period; done < n; done += std::min(done, n - done)) {
    std::memcpy(data + done, data, static_cast<size_t>(std::min(done, n - done)) * sizeof(T));
  }
}

// Whether `data` repeats its first `period` elements up to the end.
template <class T>
testing::AssertionResult repeats(const T* data, int64_t period, int64_t n) {
  for (int64_t start = 0; start < n; start += period) {
    const int64_t length = std::min(period, n - start);
    if (std::memcmp(data, data + start, static_cast<size_t>(length) * sizeof(T)) != 0) {
      return testing::AssertionFailure() << "differs within [" << start << ", " << start + length << ")";
    }
  }
  return testing::AssertionSuccess();
}

class Large : public testing::Test {
 protected:
  void SetUp() override {
    const int64_t available = sysconf(_SC_AVPHYS_PAGES) * sysconf(_SC_PAGESIZE);
    if (available < (int64_t{13} << 30)) GTEST_SKIP() << "less than 13 GiB of free memory";
  }
};

TEST_F(Large, RoundTripOf4BitCodes) {
  auto x = allocate<uint16_t>(kElements);
  const test::Buffer period = test::random_buffer(DType::BFloat16, kPeriod, 1);
  std::memcpy(x.get(), period.bytes.data(), period.bytes.size());
  repeat(x.get(), kPeriod, kElements);
  const Format& f = format("nf4");
  auto codes = allocate<uint8_t>(kElements / 2);
  auto absmax = allocate<float>(kElements / kBlock);
  const TensorView codes_view = TensorView::contiguous(codes.get(), DType::UInt8, {kElements / 2});
  const TensorView absmax_view = TensorView::contiguous(absmax.get(), DType::Float32, {kElements / kBlock});
  const TensorView view = TensorView::contiguous(x.get(), DType::BFloat16, {kRows, kCols});
  quantize_4bit(view, f, kBlock, codes_view, absmax_view);
  EXPECT_TRUE(repeats(codes.get(), kPeriod / 2, kElements / 2));
  EXPECT_TRUE(repeats(absmax.get(), kPeriod / kBlock, kElements / kBlock));
  std::memset(x.get(), 0xAB, kElements * sizeof(uint16_t));
  dequantize_4bit(codes_view, {.values = absmax_view}, f, kBlock, view);
  EXPECT_TRUE(repeats(x.get(), kPeriod, kElements));
  EXPECT_NE(x[kElements - 1], 0xABAB);
}

TEST_F(Large, ProductsAndRows) {
  auto codes = allocate<uint8_t>(kElements / 2);
  auto absmax = allocate<float>(kElements / kBlock);
  std::mt19937 engine(2);
  for (int64_t i = 0; i < kPeriod / 2; ++i) codes[i] = static_cast<uint8_t>(engine());
  for (int64_t i = 0; i < kPeriod / kBlock; ++i) absmax[i] = 0.5F + 1e-3F * static_cast<float>(engine() % 1000);
  repeat(codes.get(), kPeriod / 2, kElements / 2);
  repeat(absmax.get(), kPeriod / kBlock, kElements / kBlock);
  const Weight4bit weight{
      .format = &format("nf4"),
      .rows = kRows,
      .cols = kCols,
      .block_size = kBlock,
      .codes = TensorView::contiguous(codes.get(), DType::UInt8, {kElements / 2}),
      .absmax = {.values = TensorView::contiguous(absmax.get(), DType::Float32, {kElements / kBlock})}};

  test::Buffer x = test::random_buffer(DType::Float32, kCols, 3);
  std::vector<float> out(kRows, NAN);
  std::vector<uint8_t> workspace(linear_4bit_workspace(weight, 1, DType::Float32));
  linear_4bit(TensorView::contiguous(x.bytes.data(), DType::Float32, {1, kCols}), weight, std::nullopt,
              TensorView::contiguous(out.data(), DType::Float32, {1, kRows}),
              TensorView::contiguous(workspace.data(), DType::UInt8, {std::ssize(workspace)}));
  EXPECT_TRUE(repeats(out.data(), kPeriodRows, kRows));
  EXPECT_FALSE(std::isnan(out[kRows - 1]));

  std::vector<int64_t> indices = {5, kRows - 1, (kRows - 1) % kPeriodRows, kPeriodRows * 2000 + 5};
  std::vector<float> rows(indices.size() * kCols);
  embedding_4bit(TensorView::contiguous(indices.data(), DType::Int64, {4}), weight,
                 TensorView::contiguous(rows.data(), DType::Float32, {4, kCols}));
  EXPECT_EQ(std::memcmp(&rows[0], &rows[3 * kCols], kCols * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(&rows[kCols], &rows[2 * kCols], kCols * sizeof(float)), 0);
}

TEST_F(Large, RoundTripOf8BitCodes) {
  auto x = allocate<uint16_t>(kElements);
  const test::Buffer period = test::random_buffer(DType::BFloat16, kPeriod, 4);
  std::memcpy(x.get(), period.bytes.data(), period.bytes.size());
  repeat(x.get(), kPeriod, kElements);
  auto codes = allocate<uint8_t>(kElements);
  auto scales = allocate<float>(kElements / kBlock);
  auto zeros = allocate<float>(kElements / kBlock);
  std::vector<float> code(format("dynamic").codebook.begin(), format("dynamic").codebook.end());
  const TensorView view = TensorView::contiguous(x.get(), DType::BFloat16, {kRows, kCols});
  const TensorView code_view = TensorView::contiguous(code.data(), DType::Float32, {256});
  const TensorView codes_view = TensorView::contiguous(codes.get(), DType::UInt8, {kElements});
  const TensorView scales_view = TensorView::contiguous(scales.get(), DType::Float32, {kElements / kBlock});
  const TensorView zeros_view = TensorView::contiguous(zeros.get(), DType::Float32, {kElements / kBlock});
  quantize_blockwise(view, code_view, kBlock, codes_view, scales_view);
  EXPECT_TRUE(repeats(codes.get(), kPeriod, kElements));
  quantize_affine(view, format("int8_affine"), kBlock, codes_view, scales_view, zeros_view);
  EXPECT_TRUE(repeats(codes.get(), kPeriod, kElements));
  EXPECT_TRUE(repeats(zeros.get(), kPeriod / kBlock, kElements / kBlock));
  std::memset(x.get(), 0xAB, kElements * sizeof(uint16_t));
  dequantize_affine(codes_view, scales_view, zeros_view, format("int8_affine"), kBlock, view);
  EXPECT_TRUE(repeats(x.get(), kPeriod, kElements));
}

}  // namespace
}  // namespace qbits
