// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <memory>
#include <span>

#include "hybridgen/core/error.h"
#include "retention_test_support.h"

namespace hybridgen::test {
namespace {

std::unique_ptr<RetentionPolicy> make(std::int64_t sinks, std::int64_t window) {
  return make_sinks_window_retention({}, sinks, window);
}

Positions kept_of_prompt(RetentionPolicy& policy, std::int64_t num_tokens) {
  const std::span<const std::int32_t> positions =
      policy.keep_after_prefill(0, 0, num_tokens, std::span<const float>());
  return {positions.begin(), positions.end()};
}

std::int64_t decode(RetentionPolicy& policy, std::int64_t position) {
  return policy.replace(0, 0, position, nullptr, 0);
}

TEST(SinksWindowRetention, KeepsTheFirstTokensAndTheLastOnes) {
  const auto policy = make(4, 3);
  EXPECT_EQ(policy->budget(), 7);
  EXPECT_FALSE(policy->wants_weights());
  EXPECT_EQ(kept_of_prompt(*policy, 10), (Positions{0, 1, 2, 3, 7, 8, 9}));
}

TEST(SinksWindowRetention, DropsNothingAtTheBudgetAndTheOldestOfTheWindowAboveIt) {
  const auto policy = make(4, 3);
  EXPECT_EQ(kept_of_prompt(*policy, 7), (Positions{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(kept_of_prompt(*policy, 8), (Positions{0, 1, 2, 3, 5, 6, 7}));
}

TEST(SinksWindowRetention, DecodingDropsTheTokensThatALongerPromptWouldHaveLost) {
  for (const std::int64_t sinks : {0, 1, 4}) {
    for (const std::int64_t window : {1, 3, 5}) {
      for (std::int64_t prompt = 0; prompt < 20; ++prompt) {
        const auto policy = make(sinks, window);
        kept_of_prompt(*policy, prompt);
        for (std::int64_t position = prompt; position < prompt + 20; ++position) {
          const std::int64_t slot = decode(*policy, position);
          ASSERT_EQ(policy->positions(0, 0)[static_cast<std::size_t>(slot)], position);
          const auto other = make(sinks, window);
          ASSERT_EQ(kept(*policy), kept_of_prompt(*other, position + 1))
              << sinks << " sinks, window " << window << ", prompt " << prompt;
        }
      }
    }
  }
}

// The public code makes room for a further turn of m tokens before it, by evict_for_space; here
// each of them takes the oldest one's place. Of the tokens before them the same remain.
TEST(SinksWindowRetention, AFurtherTurnLeavesTheOldTokensThatMakingRoomForItWouldLeave) {
  const auto after_turn = [](std::int64_t cached, std::int64_t m) {
    const auto policy = make(4, 3);
    kept_of_prompt(*policy, cached);
    for (std::int64_t position = cached; position < cached + m; ++position) {
      decode(*policy, position);
    }
    Positions old = kept(*policy);
    std::erase_if(old, [&](std::int32_t position) { return position >= cached; });
    return old;
  };
  EXPECT_EQ(after_turn(7, 2), (Positions{0, 1, 2, 3, 6}));
  EXPECT_EQ(after_turn(7, 0), (Positions{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(after_turn(20, 1), (Positions{0, 1, 2, 3, 18, 19}));
  EXPECT_EQ(after_turn(20, 3), (Positions{0, 1, 2, 3}));
  EXPECT_EQ(after_turn(20, 100), (Positions{0, 1, 2, 3}));  // more than the window
}

TEST(SinksWindowRetention, ATokenStaysInItsSlotUntilANewerOneTakesIt) {
  const auto policy = make(2, 3);
  kept_of_prompt(*policy, 3);
  EXPECT_EQ(decode(*policy, 3), 3);
  EXPECT_EQ(decode(*policy, 4), 4);
  EXPECT_EQ(decode(*policy, 5), 2);
  EXPECT_EQ(decode(*policy, 6), 3);
  EXPECT_EQ(decode(*policy, 7), 4);
  EXPECT_EQ(decode(*policy, 8), 2);
  const std::span<const std::int32_t> positions = policy->positions(0, 0);
  EXPECT_EQ(Positions(positions.begin(), positions.end()), (Positions{0, 1, 8, 6, 7}));
}

TEST(SinksWindowRetention, NeedsNoPrompt) {
  const auto policy = make(1, 2);
  EXPECT_TRUE(kept_of_prompt(*policy, 0).empty());
  for (std::int64_t position = 0; position < 5; ++position) decode(*policy, position);
  EXPECT_EQ(kept(*policy), (Positions{0, 3, 4}));
}

TEST(SinksWindowRetention, RejectsCountsOutOfRange) {
  constexpr const char* kName = "[sinks and window retention]";
  expect_error<ConfigError>([] { make(-1, 3); }, {kName, "sinks is -1", "allowed: 0 to ", "pass"});
  expect_error<ConfigError>([] { make(4, 0); }, {kName, "window is 0", "allowed: 1 to ", "pass"});
  expect_error<ConfigError>([] { make(std::int64_t{1} << 31, 1); }, {kName, "2147483648"});
  expect_error<ConfigError>([] { make(1, std::int64_t{1} << 62); }, {kName, "to 2147483647"});
}

}  // namespace
}  // namespace hybridgen::test
