// SPDX-License-Identifier: Apache-2.0
// Memory of offloaded tokens through the engine: it comes as tokens come, goes with the request,
// and where there is none the one request ends that cannot go on.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <fstream>
#include <memory>
#include <string>

#include "hybridgen/core/error.h"
#include "memory/page_calls.h"
#include "support/invented_nodes.h"
#include "support/run_to_end.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::Ended;
using testing::message_of;
using testing::prompt;
using testing::run_to_end;
using testing::step;
using testing::tiny_model;
using Call = InventedNodes::Call;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kWindow = 9;

ModelConfig long_config(std::int64_t max_positions) {
  ModelConfig config = testing::tiny_config();
  config.max_positions = max_positions;
  return config;
}

EngineOptions short_window() {
  EngineOptions options = testing::options("hybridgen");
  options.device_tokens.count = kWindow;
  options.hybridgen.k = TokenCount::count(6);
  return options;
}

SamplingOptions tokens(int count) {
  SamplingOptions sampling;
  sampling.max_tokens = count;
  return sampling;
}

TierUsage dram_of(const Engine& engine) {
  for (TierUsage& tier : engine.memory(/*looks_at_pages=*/true)) {
    if (tier.tier == "dram") return tier;
  }
  return {};
}

std::int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t size = 0;
  std::int64_t resident = 0;
  file >> size >> resident;
  return resident * static_cast<std::int64_t>(page_bytes());
}

TEST(HostMemory, OfAShortRequestUnderALongLimitIsThatOfItsTokens) {
  Engine engine(tiny_model(long_config(65536)), short_window());
  EXPECT_EQ(dram_of(engine).found_bytes, 0);
  const std::int64_t id = engine.add(prompt(1000), tokens(60000));
  for (int i = 0; i < 3; ++i) engine.step();
  const TierUsage dram = dram_of(engine);
  // K and V of two heads in four layers, 16 floats each.
  const std::int64_t needed = (1000 - kWindow) * 2 * 2 * 4 * 16 * 4;
  EXPECT_GE(dram.found_bytes, needed);
  EXPECT_LE(static_cast<double>(dram.found_bytes), 1.1 * static_cast<double>(needed));
  EXPECT_GE(dram.used_bytes, 60 * needed);  // what it may need is set aside all the same
  std::int64_t on_nodes = 0;
  for (const auto& [node, bytes] : dram.bytes_by_node) on_nodes += bytes;
  EXPECT_EQ(on_nodes, dram.found_bytes);
  EXPECT_GE(dram.huge_page_share, 0.0);
  EXPECT_LE(dram.huge_page_share, 1.0);
  engine.release(id);
  EXPECT_EQ(dram_of(engine).found_bytes, 0);
}

TEST(HostMemory, IsNotAskedAboutUnlessWanted) {
  Engine engine(tiny_model(), short_window());
  engine.add(prompt(100), tokens(8));
  for (int i = 0; i < 3; ++i) engine.step();
  for (const TierUsage& tier : engine.memory()) EXPECT_EQ(tier.found_bytes, 0);
}

TEST(HostMemory, OfHundredsOfShortRequestsStaysFlat) {
  Engine engine(tiny_model(long_config(65536)), short_window());
  const auto run = [&](std::uint64_t requests) {
    for (std::uint64_t i = 0; i < requests; ++i) {
      const std::int64_t id = engine.add(prompt(40, i), tokens(65000));
      for (int turn = 0; turn < 2; ++turn) engine.step();
      engine.release(id);
    }
  };
  run(50);
  const std::int64_t before = resident_bytes();
  run(300);
  EXPECT_LE(resident_bytes() - before, 4 * kMiB);
}

/// Two requests beside each other, each alone.
struct Expected {
  testing::Generated first;
  testing::Generated second;
};

Expected expected_of(const std::shared_ptr<DecoderModel>& model) {
  Engine engine(model, short_window());
  const std::int64_t first = engine.add(prompt(255, 1), tokens(24));
  const std::int64_t second = engine.add(prompt(100, 2), tokens(24));
  const Ended ended = run_to_end(engine);
  return {ended.generated.at(first), ended.generated.at(second)};
}

TEST(HostMemory, ThatIsGoneWhileItDecodesEndsTheOneRequestThatNeedsMore) {
  const auto model = tiny_model(long_config(1024));
  const Expected expected = expected_of(model);
  InventedNodes nodes({{0, 64 * kMiB}});
  const PageCallsForTest in_place(nodes);
  {
    Engine engine(model, short_window());
    const std::int64_t first = engine.add(prompt(255, 1), tokens(24));
    const std::int64_t second = engine.add(prompt(100, 2), tokens(24));
    Ended ended;
    for (int i = 0; i < 4; ++i) step(engine, ended);
    nodes.boast(-128 * kMiB);  // others took it; the first request soon fills its 256 slots
    while (engine.has_work()) step(engine, ended);
    ASSERT_EQ(ended.errors.size(), 1U);
    const std::string text = message_of<OutOfMemoryError>(ended.errors.at(first));
    EXPECT_NE(text.find("[grow the KV cache] the dram tier is full"), std::string::npos) << text;
    EXPECT_LT(ended.generated.at(first).tokens.size(), 24U);
    EXPECT_EQ(ended.generated.at(second), expected.second);
    for (const TierUsage& tier : engine.memory()) EXPECT_EQ(tier.used_bytes, 0) << tier.tier;
    nodes.boast(0);
    const std::int64_t again = engine.add(prompt(255, 1), tokens(24));
    EXPECT_EQ(run_to_end(engine).generated.at(again), expected.first);
  }
  EXPECT_EQ(nodes.num_reserved(), 0U);
}

TEST(HostMemory, ThatIsGoneWhileAPromptIsReadEndsItAlone) {
  const auto model = tiny_model(long_config(1024));
  const Expected expected = expected_of(model);
  InventedNodes nodes({{0, 64 * kMiB}});
  const PageCallsForTest in_place(nodes);
  {
    Engine engine(model, short_window());
    const std::int64_t second = engine.add(prompt(100, 2), tokens(24));
    Ended ended;
    for (int i = 0; i < 4; ++i) step(engine, ended);
    nodes.boast(-128 * kMiB);
    const std::int64_t first = engine.add(prompt(255, 1), tokens(24));
    while (engine.has_work()) step(engine, ended);
    EXPECT_NE(message_of<OutOfMemoryError>(ended.errors.at(first)), "another exception");
    EXPECT_EQ(ended.generated.at(second), expected.second);
    for (const TierUsage& tier : engine.memory()) EXPECT_EQ(tier.used_bytes, 0) << tier.tier;
  }
  EXPECT_EQ(nodes.num_reserved(), 0U);
}

TEST(HostMemory, AddressesThatAreRefusedEndTheRequestThatIsAdmittedAndLeaveNothing) {
  const auto model = tiny_model(long_config(1024));
  const Expected expected = expected_of(model);
  for (const Call call : {Call::kReserve, Call::kAllow}) {
    for (const std::int64_t nth : {0, 1}) {  // of K, of V
      InventedNodes nodes({{0, 64 * kMiB}});
      const PageCallsForTest in_place(nodes);
      {
        Engine engine(model, short_window());
        Ended ended;
        const std::int64_t second = engine.add(prompt(100, 2), tokens(24));
        for (int i = 0; i < 4; ++i) step(engine, ended);
        nodes.fail(call, nth, ENOMEM);
        const std::int64_t first = engine.add(prompt(255, 1), tokens(24));
        while (engine.has_work()) step(engine, ended);
        const std::string text = message_of<OutOfMemoryError>(ended.errors.at(first));
        EXPECT_NE(text.find("[reserve addresses]"), std::string::npos) << text;
        EXPECT_EQ(ended.generated.at(second), expected.second);
        for (const TierUsage& tier : engine.memory()) EXPECT_EQ(tier.used_bytes, 0) << tier.tier;
      }
      EXPECT_EQ(nodes.num_reserved(), 0U);
    }
  }
}

}  // namespace
}  // namespace hybridgen
