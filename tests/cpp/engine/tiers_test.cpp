// SPDX-License-Identifier: Apache-2.0
// Engines whose keys and values lie in several tiers of host memory, on invented nodes: what is
// said never depends on where anything lies, and what a tier lacks ends one request only.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "support/invented_nodes.h"
#include "support/method_settings.h"

namespace hybridgen {
namespace {

using testing::Generated;
using testing::options;
using testing::prompt;
using testing::Setting;
using testing::setting;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kBlockBytes = 64 << 10;  // of 256 tokens of keys, and of values
constexpr int kSteps = 6;
constexpr int kDramNode = 0;
constexpr int kCxlNode = 1;

bool tries_more() { return std::getenv("HYBRIDGEN_LONG") != nullptr; }

ModelConfig long_config() {
  ModelConfig config = testing::tiny_config();
  config.num_layers = 2;
  config.max_positions = 2048;
  return config;
}

std::shared_ptr<DecoderModel> long_model() {
  static const auto model = testing::tiny_model(long_config());
  return model;
}

/// Of several blocks each, but for one.
const std::vector<std::vector<std::int64_t>>& long_prompts() {
  static const std::vector<std::vector<std::int64_t>> prompts{
      prompt(600, 1), prompt(300, 2), prompt(30, 3)};
  return prompts;
}

EngineOptions in_tiers(EngineOptions options,
                       std::int64_t dram,
                       std::int64_t cxl,
                       KvPlacement placement = KvPlacement::kSemantic) {
  options.dram_bytes = dram;
  options.tiers.cxl_bytes = cxl;
  options.tiers.placement = placement;
  options.test.invented_cxl_node = kCxlNode;
  options.prefill_chunk = 300;
  return options;
}

EngineOptions in_dram(EngineOptions options) {
  options.prefill_chunk = 300;
  return options;
}

std::vector<Setting> all_settings() {
  std::vector<Setting> settings = testing::approximate_settings();
  for (Setting& each : settings) each.name += "_approximate";
  for (Setting& each : testing::exact_settings()) settings.push_back(std::move(each));
  std::erase_if(settings, [](const Setting& each) {
    return each.options.method.starts_with("streaming_llm") &&
           each.name.find("host") == std::string::npos;  // nothing on the host
  });
  return settings;
}

struct Ended {
  Generated generated;
  std::string error;
};

/// Runs to the end whatever fails, and what each request came to.
std::vector<Ended> run_all(Engine& engine) {
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  std::map<std::int64_t, std::size_t> index;
  std::vector<Ended> ended(long_prompts().size());
  for (std::size_t i = 0; i < long_prompts().size(); ++i) {
    index[engine.add(long_prompts()[i], sampling)] = i;
  }
  while (engine.has_work()) {
    for (const TokenEvent& event : engine.step()) {
      Ended& one = ended[index.at(event.request_id)];
      if (event.error != nullptr) {
        try {
          std::rethrow_exception(event.error);
        } catch (const OutOfMemoryError& error) {
          one.error = error.what();
        }
        continue;
      }
      one.generated.tokens.push_back(event.token_id);
      one.generated.logprobs.push_back(event.logprob);
    }
  }
  return ended;
}

std::int64_t used_of_host(const Engine& engine) {
  std::int64_t used = 0;
  for (const TierUsage& tier : engine.memory()) {
    if (tier.tier != "device") used += tier.used_bytes;
  }
  return used;
}

/// What DRAM has to have for the longest prompt when there is as much as can be used of CXL memory,
/// as the refusal of less says.
std::int64_t least_dram(const EngineOptions& asked) {
  Engine engine(long_model(), in_tiers(asked, 1, 256 * kMiB));
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  try {
    engine.add(long_prompts().front(), sampling);
  } catch (const OutOfMemoryError& error) {
    const std::string setting = "KVConfig(dram=";
    const std::string text = error.what();
    return std::stoll(text.substr(text.find(setting) + setting.size()));
  }
  return 1;
}

bool takes(const EngineOptions& options) {
  try {
    const Engine engine(long_model(), options);
  } catch (const ConfigError&) {
    return false;
  }
  return true;
}

TEST(Tiers, EveryMixtureOfThemGivesTheTokensOfDramAlone) {
  std::mt19937 random(7);
  const auto draw = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  };
  int num_mixed = 0;
  for (Setting each : all_settings()) {
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

EngineOptions scanning() {
  EngineOptions result =
      testing::hybrid("all", QueryMode::kExact, testing::kPost, "topk", TokenCount::count(20))
          .options;
  result.device_tokens.count = 9;
  return result;
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
                              const std::vector<Ended>& ended,
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
      const std::vector<Ended> ended = run_all(engine);
      nodes.heal();
      expect_only_own_failures(engine, nodes, ended, expected);
      num_failed += static_cast<int>(
          std::ranges::count_if(ended, [](const Ended& one) { return !one.error.empty(); }));
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
      const std::vector<Ended> ended = run_all(engine);
      expect_only_own_failures(engine, nodes, ended, expected);
      for (const Ended& one : ended) (one.error.empty() ? has_passed : has_failed) = true;
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
