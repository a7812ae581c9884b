#include "qbits/format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>

#include "qbits/error.h"

namespace qbits {
namespace {

TEST(Format, RowsAreConsistent) {
  std::set<std::string_view> names;
  for (const Format& row : formats()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_TRUE(row.bits == 4 || row.bits == 8) << row.name;
    EXPECT_TRUE(std::is_sorted(row.block_sizes.begin(), row.block_sizes.end())) << row.name;
    if (row.coding == Coding::Codebook && row.name != "quantile") {
      ASSERT_EQ(row.codebook.size(), size_t{1} << row.bits) << row.name;
      EXPECT_EQ(*std::max_element(row.codebook.begin(), row.codebook.end()), 1.0F) << row.name;
      EXPECT_NE(std::find(row.codebook.begin(), row.codebook.end(), 0.0F), row.codebook.end()) << row.name;
    }
    EXPECT_EQ(row.block_sizes.empty(), row.coding == Coding::Symmetric) << row.name;
    EXPECT_TRUE(row.whole_rows || !row.block_sizes.empty()) << row.name;
    if (row.bits == 8) {
      EXPECT_TRUE(std::is_sorted(row.codebook.begin(), row.codebook.end())) << row.name;
    }
    EXPECT_EQ(&format(row.name), &row);
  }
}

TEST(Format, UnknownNameListsTheKnownOnes) {
  try {
    format("nf5");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
    EXPECT_NE(std::string(error.what()).find("got nf5, want one of nf4"), std::string::npos) << error.what();
  }
}

TEST(Format, Sizes) {
  EXPECT_EQ(codes_size(format("nf4"), 5), 3);
  EXPECT_EQ(codes_size(format("int8"), 5), 5);
  EXPECT_EQ(codes_size(format("int8_affine"), 5), 5);
  EXPECT_EQ(num_scales(format("nf4"), 3, 50, 64), 3);
  EXPECT_EQ(num_scales(format("int4"), 3, 50, 32), 6);
  EXPECT_EQ(num_scales(format("int4"), 3, 50, 0), 3);
  EXPECT_EQ(num_scales(format("int8"), 3, 50, 0), 3);
  EXPECT_EQ(num_scales(format("int8"), 3, 0, 0), 3);  // a row of no columns has the scale 0
  EXPECT_EQ(num_scales(format("nf4"), 0, 50, 64), 0);
  EXPECT_EQ(num_scales(format("nf4"), 1LL << 20, 1LL << 20, 64), 1LL << 34);
  EXPECT_EQ(num_scales(format("nf4"), 1, INT64_MAX, 64), int64_t{1} << 57);
  EXPECT_THROW(num_scales(format("nf4"), 1, 50, 0), Error);
  EXPECT_THROW(num_scales(format("nf4"), 1, 50, 48), Error);
  EXPECT_THROW(num_scales(format("int8"), 1, 50, 64), Error);
  EXPECT_THROW(num_scales(format("nf4"), 1LL << 32, 1LL << 32, 64), Error);
}

TEST(Format, NormalMapReachesFarTails) {
  float out[256];
  for (double offset : {0.51, 0.9, 0.9677083, 0.9999, 0.9999999}) {
    create_normal_map(offset, true, out);
    EXPECT_TRUE(std::is_sorted(out, out + 256)) << offset;
    EXPECT_EQ(out[255], 1.0F) << offset;
    EXPECT_EQ(out[0], -1.0F) << offset;
    EXPECT_EQ(out[128], 0.0F) << offset;
  }
}

TEST(Format, MapsRefuseBadArguments) {
  float out[256];
  EXPECT_THROW(create_dynamic_map(true, 8, 8, out), Error);
  EXPECT_THROW(create_dynamic_map(true, 7, 9, out), Error);
  EXPECT_THROW(create_fp8_map(true, 5, 3, 8, out), Error);
  EXPECT_THROW(create_linear_map(true, 1, true, out), Error);
  EXPECT_THROW(create_normal_map(0.4, true, out), Error);
  EXPECT_THROW(create_dynamic_map(true, 7, 8, std::span<float>(out, 16)), Error);
}

}  // namespace
}  // namespace qbits
