// SPDX-License-Identifier: Apache-2.0
// Engines whose keys and values lie in several tiers of host memory, on invented nodes: what is
// said never depends on where anything lies, and what a tier lacks ends one request only.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "support/invented_nodes.h"
#include "support/tiered_engines.h"

namespace hybridgen {
namespace {

using testing::Generated;
using testing::in_dram;
using testing::in_tiers;
using testing::kBlockBytes;
using testing::kCxlNode;
using testing::kDramNode;
using testing::kMiB;
using testing::least_dram;
using testing::long_model;
using testing::long_prompts;
using testing::prompt;
using testing::RequestEnd;
using testing::run_all;
using testing::scanning;
using testing::Setting;
using testing::takes;
using testing::tries_more;
using testing::used_of_host;

constexpr int kSteps = testing::kTierSteps;

TEST(Tiers, EveryMixtureOfThemGivesTheTokensOfDramAlone) {
  std::mt19937 random(7);
  const auto draw = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  };
  int num_mixed = 0;
  for (Setting each : testing::settings_on_host()) {
    SCOPED_TRACE(each.name);
    EngineOptions coded = each.options;
    coded.key_precision = KvPrecision{static_cast<std::uint8_t>(draw(0, 2))};
    coded.value_precision = KvPrecision{static_cast<std::uint8_t>(draw(0, 2))};
    if (takes(coded)) each.options = coded;
    Engine alone(long_model(), in_dram(each.options));
    const std::vector<Generated> expected = testing::generate(alone, long_prompts(), kSteps);
    const std::int64_t least = least_dram(each.options);
    for (int mixture = 0; mixture < (tries_more() ? 6 : 1); ++mixture) {
      InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
      const PageCallsForTest in_place(nodes);
      const EngineOptions mixed = in_tiers(each.options,
                                           least + draw(0, 640 * 1024),
                                           draw(8, 16) * kMiB,
                                           KvPlacement{static_cast<std::uint8_t>(draw(0, 2))});
      SCOPED_TRACE(message("dram ",
                           mixed.dram_bytes,
                           ", cxl ",
                           mixed.tiers.cxl_bytes,
                           ", placement ",
                           static_cast<int>(mixed.tiers.placement)));
      Engine engine(long_model(), mixed);
      EXPECT_EQ(testing::generate(engine, long_prompts(), kSteps), expected);
      EXPECT_EQ(used_of_host(engine), 0);
      EXPECT_EQ(nodes.used(kDramNode) + nodes.used(kCxlNode), 0);
      const RunStatistics statistics = engine.run_statistics();
      num_mixed += statistics.pipeline.cxl_key_bytes + statistics.pipeline.cxl_value_bytes > 0;
    }
  }
  EXPECT_GT(num_mixed, 8);
}

TEST(Tiers, KeysStayInDramAndValuesGoBelowOnceBothAreTooMany) {
  const std::int64_t least = least_dram(scanning());
  InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
  const PageCallsForTest in_place(nodes);
  // 600 tokens take 3 blocks of 64 KiB of each side.
  Engine engine(long_model(), in_tiers(scanning(), least + 4 * kBlockBytes, 16 * kMiB));
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  engine.trace().start(100000);
  engine.add(long_prompts().front(), sampling);
  std::int64_t most_in_cxl = 0;
  while (engine.has_work()) {
    engine.step();
    most_in_cxl = std::max(most_in_cxl, nodes.used(kCxlNode));
  }
  engine.trace().stop();
  EXPECT_GT(most_in_cxl, 0);
  const RunStatistics statistics = engine.run_statistics();
  EXPECT_EQ(statistics.pipeline.cxl_key_bytes, 0);
  EXPECT_GT(statistics.pipeline.cxl_value_bytes, 0);
  EXPECT_GT(statistics.pipeline.host_key_bytes, 0);
  const std::vector<TraceSpan> spans = engine.trace().spans();
  const auto moves = std::ranges::count(spans, TraceLane::kMoves, &TraceSpan::lane);
  EXPECT_EQ(moves, statistics.tiers.moves_down + statistics.tiers.moves_up);
}

TEST(Tiers, PagesOfInterleavedBlocksLieByTurnsInBoth) {
  InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
  const PageCallsForTest in_place(nodes);
  Engine engine(long_model(), in_tiers(scanning(), 64 * kMiB, 64 * kMiB, KvPlacement::kInterleave));
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  engine.add(long_prompts().front(), sampling);
  std::int64_t most = 0;
  while (engine.has_work()) {
    engine.step();
    EXPECT_EQ(nodes.used(kDramNode), nodes.used(kCxlNode));
    most = std::max(most, nodes.used(kCxlNode));
  }
  EXPECT_GT(most, 2 * kBlockBytes);  // half of six, of which two are short
}

TEST(Tiers, WhatNoTierHasRoomForIsRefusedWithTheirNames) {
  Engine engine(long_model(), in_tiers(scanning(), kMiB, kMiB / 8));
  try {
    engine.add(prompt(2000), {});
    FAIL() << "it cannot fit";
  } catch (const OutOfMemoryError& error) {
    EXPECT_NE(std::string(error.what()).find("of dram and cxl"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("KVConfig(dram="), std::string::npos) << error.what();
  }
}

/// Whatever became of the requests: those that went on say what they say alone, nothing is left
/// behind, and the engine works as before.
void expect_only_own_failures(Engine& engine,
                              InventedNodes& nodes,
                              const std::vector<RequestEnd>& ended,
                              const std::vector<Generated>& expected) {
  for (std::size_t i = 0; i < ended.size(); ++i) {
    SCOPED_TRACE(message("request ", i));
    if (ended[i].error.empty()) {
      EXPECT_EQ(ended[i].generated, expected[i]);
    } else {
      const bool names_it = ended[i].error.find(" tier") != std::string::npos ||
                            ended[i].error.find("[reserve addresses]") == 0;
      EXPECT_TRUE(names_it) << ended[i].error;
    }
  }
  EXPECT_EQ(used_of_host(engine), 0);
  EXPECT_EQ(nodes.used(kDramNode) + nodes.used(kCxlNode), 0);
}

TEST(Tiers, AFailureOfAnyCallAboutPagesIsOfTheRequestThatCannotGoOn) {
  Engine alone(long_model(), in_dram(scanning()));
  const std::vector<Generated> expected = testing::generate(alone, long_prompts(), kSteps);
  const std::int64_t least = least_dram(scanning());
  InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
  const PageCallsForTest in_place(nodes);
  int num_failed = 0;
  using Call = InventedNodes::Call;
  for (const Call call :
       {Call::kReserve, Call::kAllow, Call::kSetRule, Call::kTouch, Call::kFindNodes}) {
    for (std::int64_t nth = 0; nth < (tries_more() ? 60 : 12); ++nth) {
      SCOPED_TRACE(message("call ", static_cast<int>(call), ", the one after ", nth));
      Engine engine(long_model(), in_tiers(scanning(), least + 4 * kBlockBytes, 16 * kMiB));
      nodes.fail(call, nth, ENOMEM);
      const std::vector<RequestEnd> ended = run_all(engine);
      nodes.heal();
      expect_only_own_failures(engine, nodes, ended, expected);
      num_failed += static_cast<int>(
          std::ranges::count_if(ended, [](const RequestEnd& one) { return !one.error.empty(); }));
      if (nth % 6 == 5) {
        EXPECT_EQ(testing::generate(engine, long_prompts(), kSteps), expected);
      }
    }
  }
  EXPECT_GT(num_failed, 10);
}

TEST(Tiers, NodesWithLessMemoryThanTheBudgetsSayEndTheRequestsThatHaveNone) {
  Engine alone(long_model(), in_dram(scanning()));
  const std::vector<Generated> expected = testing::generate(alone, long_prompts(), kSteps);
  bool has_failed = false;
  bool has_passed = false;
  for (const std::int64_t dram : {256, 512, 1024, 4096}) {
    for (const std::int64_t cxl : {0, 512, 4096}) {
      SCOPED_TRACE(message("dram node ", dram, " KiB, cxl node ", cxl, " KiB"));
      InventedNodes nodes({{kDramNode, dram * 1024}, {kCxlNode, cxl * 1024}});
      const PageCallsForTest in_place(nodes);
      Engine engine(long_model(), in_tiers(scanning(), 64 * kMiB, 64 * kMiB));
      const std::vector<RequestEnd> ended = run_all(engine);
      expect_only_own_failures(engine, nodes, ended, expected);
      for (const RequestEnd& one : ended) (one.error.empty() ? has_passed : has_failed) = true;
    }
  }
  EXPECT_TRUE(has_failed);
  EXPECT_TRUE(has_passed);
}

TEST(Tiers, ARequestMayBeEndedAtAnyStep) {
  const std::int64_t least = least_dram(scanning());
  InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
  const PageCallsForTest in_place(nodes);
  for (int steps = 0; steps < 12; ++steps) {
    Engine engine(long_model(), in_tiers(scanning(), least + 4 * kBlockBytes, 16 * kMiB));
    SamplingOptions sampling;
    sampling.max_tokens = 40;
    const std::int64_t ended = engine.add(long_prompts()[0], sampling);
    engine.add(long_prompts()[1], sampling);
    for (int i = 0; i < steps; ++i) engine.step();
    engine.finish(ended, FinishReason::kAbort);
    engine.step();
  }
  EXPECT_EQ(nodes.used(kDramNode) + nodes.used(kCxlNode), 0);
}

}  // namespace
}  // namespace hybridgen
