// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/engine_options.h"

#include <gtest/gtest.h>

#include <array>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

struct Resolved {
  std::int64_t available;
  std::int64_t tokens;
};

TEST(TokenCount, UsuallyIs256TokensOrAnEighthWhicheverIsMore) {
  constexpr std::array<Resolved, 12> kTable = {{{0, 0},
                                                {1, 1},
                                                {255, 255},
                                                {256, 256},
                                                {257, 256},
                                                {2048, 256},
                                                {2055, 256},
                                                {2056, 257},
                                                {2063, 257},
                                                {8000, 1000},
                                                {131072, 16384},
                                                {std::int64_t{1} << 40, std::int64_t{1} << 37}}};
  for (const auto& [available, tokens] : kTable) {
    EXPECT_EQ(TokenCount::usual().resolve(available), tokens) << available;
  }
  EXPECT_EQ(EngineOptions{}.hybridgen.k, TokenCount::usual());
}

TEST(TokenCount, TheLargerOfACountAndAShareNeverFallsAndIsBoundedByBoth) {
  for (const auto& [count, share] : {std::pair{1, 0.5}, {7, 0.1}, {100, 0.001}, {5, 0.999}}) {
    const TokenCount both = TokenCount::larger_of(count, share);
    for (std::int64_t n = 1; n < 400; ++n) {
      EXPECT_EQ(both.resolve(n),
                std::max(TokenCount::count(count).resolve(n), TokenCount::share(share).resolve(n)));
      EXPECT_GE(both.resolve(n), both.resolve(n - 1));
    }
  }
}

TEST(TokenCount, SaysWhatItIs) {
  EXPECT_EQ(TokenCount::all().text(), "all");
  EXPECT_EQ(TokenCount::count(128).text(), "128");
  EXPECT_EQ(TokenCount::share(0.05).text(), "0.05");
  EXPECT_EQ(TokenCount::usual().text(), "max(256, 0.125)");
}

TEST(TokenCount, OfBothRefusesWhatEitherRefuses) {
  EXPECT_THROW(TokenCount::larger_of(0, 0.5), ConfigError);
  EXPECT_THROW(TokenCount::larger_of(5, 1.0), ConfigError);
  EXPECT_THROW(TokenCount::larger_of(5, 0.0), ConfigError);
}

WindowSetting share(double value) { return {std::nullopt, value}; }

TEST(WindowSetting, AShareNeverMeansFewerThan256TokensAndNothingIsNothing) {
  constexpr std::array<Resolved, 8> kTable = {{{1, 256},
                                               {30, 256},
                                               {2559, 256},
                                               {2560, 256},
                                               {2570, 257},
                                               {2579, 257},
                                               {10'000, 1000},
                                               {1'000'000, 100'000}}};
  for (const auto& [prompt, tokens] : kTable) {
    EXPECT_EQ(share(0.1).resolve(prompt), tokens) << prompt;
    EXPECT_EQ(share(0.0).resolve(prompt), 0) << prompt;
    EXPECT_EQ((WindowSetting{3, std::nullopt}).resolve(prompt), 3) << prompt;
    EXPECT_EQ(share(1.0).resolve(prompt), std::max<std::int64_t>(256, prompt));
    EXPECT_EQ(WindowSetting{}.resolve(prompt), std::nullopt) << prompt;
  }
}

TEST(EngineOptions, RescoreByDefaultWithAFixedK) {
  const EngineOptions options;
  EXPECT_EQ(options.hybridgen.query.mode, QueryMode::kRescore);
  EXPECT_EQ(options.hybridgen.strategy, SelectionStrategy::kPostQkt);
  EXPECT_FALSE(options.hybridgen.scheduler);
  EXPECT_EQ(options.device_tokens, WindowSetting{});
}

}  // namespace
}  // namespace hybridgen
