// SPDX-License-Identifier: Apache-2.0
// Engines whose rows a device reads by itself, so that blocks change their tier by copies: what is
// said stays the same, every pin has its end, and what is refused is of one request.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "support/noted_pins.h"
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
using testing::RequestEnd;
using testing::run_all;
using testing::scanning;
using testing::Setting;

constexpr int kSteps = testing::kTierSteps;

class PinnedTiers : public ::testing::Test {
 protected:
  void expect_nothing_left(const Engine& engine) const {
    EXPECT_EQ(testing::used_of_host(engine), 0);
    EXPECT_EQ(nodes_.used(kDramNode) + nodes_.used(kCxlNode), 0);
    EXPECT_EQ(pins_.num_pinned(), 0U);
  }

  InventedNodes nodes_{{{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}}};
  PageCallsForTest calls_in_place_{nodes_};
  NotedPins pins_;
  PagePinsForTest pins_in_place_{&pins_};
};

TEST_F(PinnedTiers, GiveTheTokensOfDramAloneWhateverMoves) {
  std::mt19937 random(11);
  const auto draw = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  };
  std::int64_t num_switched = 0;
  for (const Setting& each : testing::settings_on_host()) {
    SCOPED_TRACE(each.name);
    Engine alone(long_model(), in_dram(each.options));
    const std::vector<Generated> expected = testing::generate(alone, long_prompts(), kSteps);
    const std::int64_t least = least_dram(each.options);
    for (int mixture = 0; mixture < (testing::tries_more() ? 6 : 1); ++mixture) {
      const EngineOptions mixed =
          in_tiers(each.options, least + draw(0, 640 * 1024), draw(8, 16) * kMiB);
      SCOPED_TRACE(message("dram ", mixed.dram_bytes, ", cxl ", mixed.tiers.cxl_bytes));
      Engine engine(long_model(), mixed);
      EXPECT_EQ(testing::generate(engine, long_prompts(), kSteps), expected);
      expect_nothing_left(engine);
      num_switched += engine.run_statistics().tiers.switches;
    }
  }
  EXPECT_GT(pins_.num_calls(), 0);
  EXPECT_GT(num_switched, 8);
}

/// Sends keys and values, so that both are pinned.
EngineOptions sending() { return testing::setting("", "flexgen").options; }

TEST_F(PinnedTiers, SayInTraceAndStatisticsWhatWasCopiedAndSwitched) {
  Engine engine(long_model(),
                in_tiers(sending(), least_dram(sending()) + 2 * kBlockBytes, 16 * kMiB));
  engine.trace().start(100000);
  static_cast<void>(run_all(engine));
  engine.trace().stop();
  const TierStatistics tiers = engine.run_statistics().tiers;
  EXPECT_GT(tiers.switches, 0);
  EXPECT_EQ(tiers.failed_moves, 0);
  EXPECT_EQ(tiers.switches, tiers.moves_down + tiers.moves_up);
  EXPECT_GT(tiers.switch_s, 0.0);
  const auto count = [spans = engine.trace().spans()](const std::string& name) {
    return std::ranges::count_if(spans, [&](const TraceSpan& span) {
      return span.lane == TraceLane::kMoves && std::string(span.name).starts_with(name);
    });
  };
  EXPECT_EQ(count("switch "), tiers.switches);
  EXPECT_GE(count("values to ") + count("keys to "), tiers.switches);
}

TEST_F(PinnedTiers, PinNoKeysThatTheHostScans) {
  Engine engine(long_model(), in_tiers(scanning(), 64 * kMiB, 64 * kMiB));
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  engine.add(long_prompts().front(), sampling);
  std::int64_t most_pinned = 0;
  while (engine.has_work()) {
    engine.step();
    EXPECT_EQ(2 * pins_.pinned_bytes(), nodes_.used(kDramNode));
    most_pinned = std::max(most_pinned, pins_.pinned_bytes());
  }
  EXPECT_GT(most_pinned, 2 * kBlockBytes);
}

/// Those that went on say what they say alone, and of the others it is said what was refused.
void expect_only_own_failures(const std::vector<RequestEnd>& ended,
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
}

TEST_F(PinnedTiers, EndOneRequestWhereACallAboutPagesFails) {
  Engine alone(long_model(), in_dram(sending()));
  const std::vector<Generated> expected = testing::generate(alone, long_prompts(), kSteps);
  const std::int64_t dram = least_dram(sending()) + 2 * kBlockBytes;
  int num_failed = 0;
  std::int64_t num_failed_moves = 0;
  using Call = InventedNodes::Call;
  for (const Call call : {Call::kReserve,
                          Call::kAllow,
                          Call::kSetRule,
                          Call::kTouch,
                          Call::kReplace,
                          Call::kFindNodes}) {
    for (std::int64_t nth = 0; nth < (testing::tries_more() ? 60 : 12); ++nth) {
      SCOPED_TRACE(message("call ", static_cast<int>(call), ", the one after ", nth));
      Engine engine(long_model(), in_tiers(sending(), dram, 16 * kMiB));
      nodes_.fail(call, nth, ENOMEM);
      const std::vector<RequestEnd> ended = run_all(engine);
      nodes_.heal();
      expect_only_own_failures(ended, expected);
      expect_nothing_left(engine);
      num_failed += static_cast<int>(
          std::ranges::count_if(ended, [](const RequestEnd& one) { return !one.error.empty(); }));
      if (call == Call::kReplace) {
        num_failed_moves += engine.run_statistics().tiers.failed_moves;
      }
      if (nth % 6 == 5) {
        EXPECT_EQ(testing::generate(engine, long_prompts(), kSteps), expected);
      }
    }
  }
  EXPECT_GT(num_failed, 10);
  EXPECT_GT(num_failed_moves, 2);
}

TEST_F(PinnedTiers, EndOneRequestWhereTheDeviceRefusesToPin) {
  Engine alone(long_model(), in_dram(sending()));
  const std::vector<Generated> expected = testing::generate(alone, long_prompts(), kSteps);
  const std::int64_t dram = least_dram(sending()) + 2 * kBlockBytes;
  int num_failed = 0;
  std::int64_t nth = 0;
  for (bool has_failed = true; has_failed; ++nth) {  // every call that such a run makes
    SCOPED_TRACE(message("the pin after ", nth));
    Engine engine(long_model(), in_tiers(sending(), dram, 16 * kMiB));
    const std::int64_t before = pins_.num_calls();
    pins_.fail(nth);
    const std::vector<RequestEnd> ended = run_all(engine);
    pins_.heal();
    expect_only_own_failures(ended, expected);
    expect_nothing_left(engine);
    const auto failed = static_cast<int>(
        std::ranges::count_if(ended, [](const RequestEnd& one) { return !one.error.empty(); }));
    EXPECT_LE(failed, 1);
    num_failed += failed;
    has_failed = pins_.num_calls() - before > nth;
    if (nth % 6 == 5) {
      EXPECT_EQ(testing::generate(engine, long_prompts(), kSteps), expected);
    }
  }
  EXPECT_GT(num_failed, 4);
  EXPECT_LT(num_failed, nth) << "one that follows a switch ends nobody";
}

TEST_F(PinnedTiers, MayLoseARequestAtAnyStep) {
  const std::int64_t dram = least_dram(sending()) + 2 * kBlockBytes;
  for (int steps = 0; steps < 12; ++steps) {
    Engine engine(long_model(), in_tiers(sending(), dram, 16 * kMiB));
    SamplingOptions sampling;
    sampling.max_tokens = 40;
    const std::int64_t ended = engine.add(long_prompts()[0], sampling);
    engine.add(long_prompts()[1], sampling);
    for (int i = 0; i < steps; ++i) engine.step();
    engine.finish(ended, FinishReason::kAbort);
    engine.step();
  }
  EXPECT_EQ(nodes_.used(kDramNode) + nodes_.used(kCxlNode), 0);
  EXPECT_EQ(pins_.num_pinned(), 0U);
}

TEST_F(PinnedTiers, HaveADiskBelowThem) {
  const TestFolder folder;
  Engine alone(long_model(), in_dram(scanning()));
  const std::vector<Generated> expected = testing::generate(alone, long_prompts(), kSteps);
  EngineOptions options = in_tiers(scanning(), 0, 3 * kBlockBytes);
  options.tiers.disk_path = folder.string();
  options.tiers.disk_bytes = 64 * kMiB;
  std::int64_t written = 0;
  std::int64_t switches = 0;
  for (const std::int64_t blocks : {10, 12, 14}) {
    options.dram_bytes = blocks * kBlockBytes;
    Engine engine(long_model(), options);
    EXPECT_EQ(testing::generate(engine, long_prompts(), kSteps), expected);
    expect_nothing_left(engine);
    written += engine.run_statistics().disk.written_bytes;
    switches += engine.run_statistics().tiers.switches;
  }
  EXPECT_GT(written, 0);
  EXPECT_GT(switches, 0);
}

}  // namespace
}  // namespace hybridgen
