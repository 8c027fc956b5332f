// SPDX-License-Identifier: Apache-2.0
#include "core/names.h"

#include <gtest/gtest.h>

namespace hybridgen {
namespace {

TEST(NearestName, AcceptsTwoEditsOrAThirdOfTheName) {
  const std::vector<std::string> names = {"hybridgen", "full"};
  EXPECT_EQ(nearest_name("hybridgen", names), "hybridgen");
  EXPECT_EQ(nearest_name("hybrdgn", names), "hybridgen");    // two edits
  EXPECT_EQ(nearest_name("hybridxyz", names), "hybridgen");  // three edits, nine letters
  EXPECT_EQ(nearest_name("ful", names), "full");
  EXPECT_EQ(nearest_name("fxyz", names), "");  // three edits, four letters
  EXPECT_EQ(nearest_name("full", {}), "");
}

TEST(NearestName, TheFirstOfEquallyNearOnesWins) {
  EXPECT_EQ(nearest_name("bat", {"cat", "hat"}), "cat");
}

}  // namespace
}  // namespace hybridgen
