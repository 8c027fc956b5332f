// SPDX-License-Identifier: Apache-2.0
// Tiers of host memory beside a device of its own memory and streams, which pins what it is sent:
// it gives the same bits as without pins, in DRAM alone and while blocks change their tier.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "emulated/backend.h"
#include "support/emulated_cuda.h"
#include "support/tiered_engines.h"

namespace hybridgen {
namespace {

using emulated::Mode;
using testing::EmulatedCuda;
using testing::Generated;
using testing::in_dram;
using testing::in_tiers;
using testing::kBlockBytes;
using testing::kCxlNode;
using testing::kDramNode;
using testing::kMiB;
using testing::long_model;
using testing::long_prompts;
using testing::Setting;

constexpr int kSteps = testing::kTierSteps;
const auto kName = [](const auto& info) { return info.param.name; };

class PinnedTiersOnDevice : public ::testing::TestWithParam<Setting> {};

// Requests that wait for room are in other batches than in DRAM alone, whose sums LibTorch adds up
// in another order.
TEST_P(PinnedTiersOnDevice, GiveTheBitsOfUnpinnedOnesAndTheTokensOfDramAlone) {
  auto device_options = EmulatedCuda::options(Mode::kLazy);
  device_options.uploads_wait = false;
  const EmulatedCuda device(device_options);
  const EngineOptions& options = GetParam().options;
  const auto run = [&](const EngineOptions& asked) {
    InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
    const PageCallsForTest in_place(nodes);
    std::vector<Generated> generated;
    {
      Engine engine(long_model(device.name()), asked);
      generated = testing::generate(engine, long_prompts(), kSteps);
    }
    EXPECT_EQ(emulated::num_pinned(), 0U);
    EXPECT_EQ(nodes.used(kDramNode) + nodes.used(kCxlNode), 0);
    return generated;
  };
  const auto run_unpinned = [&](const EngineOptions& asked) {
    const PagePinsForTest nobody(nullptr);
    return run(asked);
  };
  const std::vector<Generated> in_dram_alone = run_unpinned(in_dram(options));
  EXPECT_EQ(run(in_dram(options)), in_dram_alone);
  const std::int64_t least = testing::least_dram(options, device.name());
  for (const std::int64_t more : {2, 4}) {
    SCOPED_TRACE(more);
    const EngineOptions mixed = in_tiers(options, least + more * kBlockBytes, 16 * kMiB);
    const std::vector<Generated> pinned = run(mixed);
    EXPECT_EQ(pinned, run_unpinned(mixed));
    testing::expect_same(pinned, in_dram_alone);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods,
                         PinnedTiersOnDevice,
                         ::testing::ValuesIn(testing::settings_on_host()),
                         kName);

TEST(TiersOfADevice, ArePinnedWhereItIsSentRowsAndMoveByCopies) {
  const EmulatedCuda device(Mode::kThreads);
  const EngineOptions sending = testing::setting("", "flexgen").options;
  const std::int64_t dram = testing::least_dram(sending, device.name()) + 2 * kBlockBytes;
  InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
  const PageCallsForTest in_place(nodes);
  Engine engine(long_model(device.name()), in_tiers(sending, dram, 16 * kMiB));
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  for (const auto& prompt : long_prompts()) engine.add(prompt, sampling);
  std::size_t most_pinned = 0;
  while (engine.has_work()) {
    engine.step();
    most_pinned = std::max(most_pinned, emulated::num_pinned());
  }
  EXPECT_GT(most_pinned, 0U);
  EXPECT_EQ(emulated::num_pinned(), 0U);
  const TierStatistics tiers = engine.run_statistics().tiers;
  EXPECT_GT(tiers.switches, 0);
  EXPECT_EQ(tiers.switches, tiers.moves_down + tiers.moves_up);
}

TEST(TiersOfADevice, GiveAPromptsChunksTheirRowsWithoutTheHost) {
  EmulatedCuda device(Mode::kEager);  // what is counted is done
  const auto prompt_read = [&] {
    Engine engine(long_model(device.name()), in_dram(testing::setting("", "flexgen").options));
    engine.add(long_prompts().front(), {});
    DeviceContext(device.name()).synchronize();
    device.reset_counters();
    while (engine.step().empty()) {
    }
    return device.counters();
  };
  static_cast<void>(prompt_read());  // the model's table of angles grows once
  const emulated::Counters in_place = prompt_read();
  const PagePinsForTest nobody(nullptr);
  const emulated::Counters staged = prompt_read();
  EXPECT_EQ(in_place.bytes_to_device, staged.bytes_to_device);
  // The second chunk's keys and values, in each of two layers, are copies that wait no more.
  EXPECT_EQ(in_place.blocking_copies, staged.blocking_copies - 2 * 2);
}

TEST(TiersOfADevice, AreNotPinnedWhereTheHostAttends) {
  const EmulatedCuda device(Mode::kEager);
  Engine engine(long_model(device.name()),
                in_dram(testing::setting("", "hgca", {{"beta", 0.0}}).options));
  engine.add(long_prompts().front(), {});
  for (int step = 0; step < 4; ++step) engine.step();
  EXPECT_EQ(emulated::num_pinned(), 0U);
}

TEST(EmulatedPins, MakeHostMemoryPinnedOnce) {
  std::vector<std::byte> memory(8192);
  const std::size_t before = emulated::num_pinned();
  ASSERT_TRUE(emulated::pin(memory.data() + 1024, 4096));
  EXPECT_EQ(emulated::num_pinned(), before + 1);
  EXPECT_FALSE(emulated::is_pinned(memory.data() + 1023));
  EXPECT_TRUE(emulated::is_pinned(memory.data() + 1024));
  EXPECT_TRUE(emulated::is_pinned(memory.data() + 5119));
  EXPECT_FALSE(emulated::is_pinned(memory.data() + 5120));
  for (const int begin : {0, 1024, 2048, 5119}) {
    EXPECT_FALSE(emulated::pin(memory.data() + begin, 2048)) << begin;
  }
  EXPECT_TRUE(emulated::pin(memory.data(), 1024));
  EXPECT_TRUE(emulated::pin(memory.data() + 5120, 1024));
  for (const int begin : {0, 1024, 5120}) emulated::unpin(memory.data() + begin);
  EXPECT_EQ(emulated::num_pinned(), before);
  EXPECT_FALSE(emulated::is_pinned(memory.data() + 1024));
}

}  // namespace
}  // namespace hybridgen
