#include <gtest/gtest.h>

#include "qbits/error.h"
#include "qbits/linear.h"
#include "qbits/quantize.h"
#include "refusal.h"
#include "weights_4bit.h"

namespace qbits {
namespace {

using test::Buffer;
using test::RandomWeight;
using test::Scales;
using test::view_of;

constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};

TEST(Embedding4bit, RowsMatchTheDefinitionToTheBit) {
  struct Shape {
    int64_t n, k, block_size;
  };
  const Shape shapes[] = {{1, 1, 16}, {5, 3, 16}, {9, 33, 32}, {6, 80, 64}, {7, 2049, 256}, {4, 576, 4096}};
  for (const Shape& s : shapes) {
    test::for_each_weight(s.n, s.k, s.block_size, [&](const RandomWeight& w, const std::string& where) {
      std::vector<int64_t> indices;
      for (int64_t i = 0; i < 2 * s.n + 1; ++i) indices.push_back((i * 7 + 3) % s.n);
      std::vector<int32_t> narrow(indices.begin(), indices.end());
      const int64_t count = std::ssize(indices);
      for (DType dtype : kFloats) {
        for (bool wide : {true, false}) {
          Buffer out(dtype, count * s.k);
          const TensorView at = wide ? TensorView::contiguous(indices.data(), DType::Int64, {count})
                                     : TensorView::contiguous(narrow.data(), DType::Int32, {count});
          embedding_4bit(at, w.weight, view_of(out, {count, s.k}));
          for (int64_t i = 0; i < count * s.k; ++i) {
            const float want = test::rounded(w.at(indices[i / s.k], i % s.k), dtype);
            ASSERT_EQ(out.get(i), want) << where << " dtype " << name(dtype) << " at " << i;
          }
        }
      }
    });
  }
}

TEST(Embedding4bit, WholeRowGroups) {
  const RandomWeight w("int4", Scales::AffineBFloat16, 5, 101, 0, 1);
  std::vector<int64_t> indices = {4, 0, 3};
  Buffer out(DType::Float32, 303);
  embedding_4bit(TensorView::contiguous(indices.data(), DType::Int64, {3, 1}), w.weight, view_of(out, {3, 1, 101}));
  for (int64_t i = 0; i < 303; ++i) EXPECT_EQ(out.get(i), w.at(indices[i / 101], i % 101));
}

TEST(Embedding4bit, EmptyDoesNothing) {
  const RandomWeight w("nf4", Scales::Plain, 5, 64, 64, 1);
  const TensorView none = TensorView::contiguous(nullptr, DType::Int64, {0});
  embedding_4bit(none, w.weight, TensorView::contiguous(nullptr, DType::Float32, {0, 64}));
  const RandomWeight narrow("nf4", Scales::Plain, 5, 0, 64, 1);
  std::vector<int64_t> indices = {4};
  embedding_4bit(TensorView::contiguous(indices.data(), DType::Int64, {1}), narrow.weight,
                 TensorView::contiguous(nullptr, DType::Float32, {1, 0}));
}

TEST(Embedding4bit, RefusesBadArgumentsBeforeWriting) {
  const RandomWeight w("nf4", Scales::Plain, 5, 64, 64, 1);
  Buffer out(DType::Float32, 128);
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_TRUE(message.starts_with("[embedding_4bit] ")) << message;
  };
  auto gather = [&](std::vector<int64_t> indices) {
    embedding_4bit(TensorView::contiguous(indices.data(), DType::Int64, {std::ssize(indices)}), w.weight,
                   view_of(out, {2, 64}));
  };
  refused(ErrorCode::InvalidIndex, [&] { gather({0, 5}); });
  refused(ErrorCode::InvalidIndex, [&] { gather({0, -1}); });
  refused(ErrorCode::InvalidArgument, [&] { gather({0}); });
  refused(ErrorCode::InvalidType, [&] { embedding_4bit(view_of(out, {2}), w.weight, view_of(out, {2, 64})); });
  for (uint8_t byte : out.bytes) ASSERT_EQ(byte, 0xAB);
}

}  // namespace
}  // namespace qbits
