// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/types.h"

#include <gtest/gtest.h>

#include <string>

#include "hybridgen/core/error.h"
#include "hybridgen/core/tiers.h"

namespace hybridgen {
namespace {

TEST(DType, NameAndValueAreInversesOfEachOther) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
  }
}

TEST(DType, UnknownNameListsTheAllowedOnes) {
  try {
    dtype_from_name("int8");
    FAIL() << "accepted int8";
  } catch (const ConfigError& error) {
    const std::string text = error.what();
    for (const char* part : {"int8", "float32", "float16", "bfloat16"}) {
      EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
    }
  }
}

TEST(DType, Float32TakesFourBytesAndTheOthersTwo) {
  EXPECT_EQ(size_of(DType::kFloat32), 4U);
  EXPECT_EQ(size_of(DType::kFloat16), 2U);
  EXPECT_EQ(size_of(DType::kBFloat16), 2U);
}

TEST(Names, EveryEnumeratorHasItsOwn) {
  EXPECT_EQ(name_of(TierKind::kDevice), "device");
  EXPECT_EQ(name_of(TierKind::kDram), "dram");
  EXPECT_EQ(name_of(TierKind::kCxl), "cxl");
  EXPECT_EQ(name_of(TierKind::kDisk), "disk");
  EXPECT_EQ(name_of(SelectionStrategy::kPostQkt), "post");
  EXPECT_EQ(name_of(SelectionStrategy::kPreQkt), "pre");
  EXPECT_EQ(name_of(QueryMode::kExact), "exact");
  EXPECT_EQ(name_of(QueryMode::kSpeculative), "speculative");
  EXPECT_EQ(name_of(QueryMode::kRescore), "rescore");
}

TEST(TokenRange, ContainsItsBeginButNotItsEnd) {
  constexpr TokenRange range{3, 5};
  EXPECT_EQ(range.size(), 2);
  EXPECT_FALSE(range.empty());
  EXPECT_FALSE(range.contains(2));
  EXPECT_TRUE(range.contains(3));
  EXPECT_TRUE(range.contains(4));
  EXPECT_FALSE(range.contains(5));
  EXPECT_TRUE((TokenRange{4, 4}.empty()));
}

}  // namespace
}  // namespace hybridgen
