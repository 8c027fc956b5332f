// SPDX-License-Identifier: Apache-2.0
#include "engine/window_shrinking.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace hybridgen {
namespace {

using Windows = std::vector<ShrinkableWindow>;
using Tokens = std::vector<std::int64_t>;

/// With `room` tokens for all of them.
std::optional<Tokens> shrunk(const Windows& windows, std::int64_t room) {
  return shrink_windows(windows, [room](const Tokens& tokens) {
    return std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}) <= room;
  });
}

struct Case {
  const char* name;
  Windows windows;
  std::int64_t room;
  std::optional<Tokens> expected;
};

class ShrinkWindows : public ::testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(
    Table,
    ShrinkWindows,
    ::testing::Values(
        Case{"NobodyGivesUpWhatIsNotNeeded", {{500, 256}, {300, 256}}, 800, Tokens{500, 300}},
        Case{"TheWidestGivesUpFirst", {{900, 256}, {300, 256}}, 1000, Tokens{700, 300}},
        Case{"AllAreEquallyWideIfThatIsNeeded",
             {{900, 256}, {300, 256}, {800, 256}},
             900,
             Tokens{300, 300, 300}},
        Case{"NobodyGoesBelowItsLeast",
             {{900, 256}, {600, 500}, {300, 256}},
             1056,
             Tokens{278, 500, 278}},
        Case{"AUsersIntegerIsNotTouched", {{900, 900}, {900, 256}}, 1200, Tokens{900, 300}},
        Case{"ExactlyTheLeastIsEnough", {{900, 256}, {600, 256}}, 512, Tokens{256, 256}},
        Case{"BelowTheLeastOfAllNothingHappens", {{900, 256}, {600, 256}}, 511, std::nullopt},
        Case{"ASmallWindowStaysAsItIs", {{40, 40}, {600, 256}}, 300, Tokens{40, 260}},
        Case{"WhereThereIsNoneThereIsNothingToDo", {}, 5, Tokens{}}),
    [](const auto& each) { return each.param.name; });

TEST_P(ShrinkWindows, AsTheTableSays) {
  EXPECT_EQ(shrunk(GetParam().windows, GetParam().room), GetParam().expected);
}

TEST(ShrinkWindows, LeavesNoRoomForAnotherTokenOfEach) {
  const Windows windows = {{1000, 256}, {700, 256}, {2000, 300}, {256, 256}};
  for (std::int64_t room = 1068; room < 3956; room += 37) {
    const Tokens tokens = shrunk(windows, room).value();
    const std::int64_t all = std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0});
    EXPECT_LE(all, room);
    EXPECT_GT(all, room - std::ssize(windows));
  }
}

}  // namespace
}  // namespace hybridgen
