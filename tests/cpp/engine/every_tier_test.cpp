// SPDX-License-Identifier: Apache-2.0
// Engines whose keys and values lie in DRAM, in CXL memory (invented) and on a disk at once: tokens
// and log probabilities are those of DRAM alone, bit by bit, and bytes went to all three.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "hybridgen/core/error.h"
#include "support/invented_nodes.h"
#include "support/method_settings.h"
#include "support/tier_use.h"

namespace hybridgen {
namespace {

using testing::Generated;
using testing::Setting;
using testing::used_of;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kBlockBytes = 32 << 10;  // of 256 tokens of keys, and of values
constexpr int kSteps = 4;
constexpr int kDramNode = 0;
constexpr int kCxlNode = 1;

std::shared_ptr<DecoderModel> model() {
  static const std::shared_ptr<DecoderModel> shared = [] {
    ModelConfig config = testing::tiny_config();
    config.num_layers = 2;
    config.head_dim = 8;
    config.max_positions = 4096;
    return testing::tiny_model(config);
  }();
  return shared;
}

/// Four whole blocks, none, and five.
std::vector<std::vector<std::int64_t>> prompts() {
  return {testing::prompt(1100, 1), testing::prompt(40, 2), testing::prompt(1500, 3)};
}

/// The most that lay in each tier: by the pages of invented nodes, and by what was written.
struct Outcome {
  std::vector<Generated> generated;
  std::int64_t dram_budget = 0;  ///< the most that was held of it
  std::int64_t on_dram_node = 0;
  std::int64_t on_cxl_node = 0;
  DiskStatistics disk;
  bool uses_every_tier() const {
    return std::min(on_dram_node, on_cxl_node) > 0 && disk.written_bytes > 0 && disk.read_bytes > 0;
  }
};

Outcome run(const EngineOptions& options, const InventedNodes& nodes) {
  Engine engine(model(), options);
  Outcome outcome;
  outcome.generated = testing::generate(engine, prompts(), kSteps, [&](const auto& outputs) {
    if (testing::is_any_at(outputs, kSteps / 2)) {
      testing::wait_for_a_write(engine, std::chrono::milliseconds(50));
    }
    outcome.dram_budget = std::max(outcome.dram_budget, used_of(engine, "dram"));
    outcome.on_dram_node = std::max(outcome.on_dram_node, nodes.used(kDramNode));
    outcome.on_cxl_node = std::max(outcome.on_cxl_node, nodes.used(kCxlNode));
  });
  for (const char* tier : {"dram", "cxl", "disk"}) EXPECT_EQ(used_of(engine, tier), 0) << tier;
  outcome.disk = engine.run_statistics().disk;
  return outcome;
}

/// Where pages lie by turns, and a request's last block has an odd number for a head, half a page
/// more than half may lie on one node: of K and V, of each layer and head.
std::int64_t odd_pages(KvPlacement placement) {
  if (placement != KvPlacement::kInterleave) return 0;
  const ModelConfig& config = model()->config();
  return static_cast<std::int64_t>(prompts().size()) * 2 * config.num_layers * config.num_kv_heads *
         static_cast<std::int64_t>(page_bytes()) / 2;
}

bool can_have_a_disk(EngineOptions options) {
  const TestFolder folder;
  options.tiers.disk_path = folder.string();
  options.tiers.disk_bytes = kMiB;
  try {
    const Engine engine(model(), options);
  } catch (const ConfigError&) {
    return false;
  }
  return true;
}

/// Of every method that can have a disk, exact and not.
const std::vector<Setting>& settings() {
  static const std::vector<Setting> all = [] {
    std::vector<Setting> found = testing::all_settings();
    std::erase_if(found, [](const Setting& each) { return !can_have_a_disk(each.options); });
    for (Setting& each : found) each.options.prefill_chunk = 96;
    return found;
  }();
  return all;
}

class EveryTier : public ::testing::TestWithParam<Setting> {};

INSTANTIATE_TEST_SUITE_P(Methods, EveryTier, ::testing::ValuesIn(settings()), [](const auto& each) {
  return each.param.name;
});

TEST_P(EveryTier, AtOnceGivesTheBitsOfDramAloneWhateverTheBudgets) {
  InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
  const PageCallsForTest in_place(nodes);
  std::mt19937 random(static_cast<unsigned>(std::hash<std::string>{}(GetParam().name)));
  const auto draw = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  };
  const int wanted = std::getenv("HYBRIDGEN_LONG") != nullptr ? 8 : 1;
  const Outcome alone = run(GetParam().options, nodes);
  int in_every_tier = 0;
  for (int draws = 0; draws < 12 * wanted && in_every_tier < wanted; ++draws) {
    const TestFolder folder;
    EngineOptions options = GetParam().options;
    options.tiers.cxl_bytes = kBlockBytes * draw(1, 5);
    options.tiers.disk_path = folder.string();
    options.tiers.disk_bytes = 32 * kMiB;
    options.tiers.placement = KvPlacement{static_cast<std::uint8_t>(draw(0, 2))};
    options.test.invented_cxl_node = kCxlNode;
    options.dram_bytes =
        testing::least_dram(model(), options, prompts().back(), kSteps) + draw(0, kBlockBytes);
    SCOPED_TRACE(message("dram ",
                         options.dram_bytes,
                         ", cxl ",
                         options.tiers.cxl_bytes,
                         ", placement ",
                         static_cast<int>(options.tiers.placement)));
    const Outcome mixed = run(options, nodes);
    EXPECT_EQ(mixed.generated, alone.generated);
    EXPECT_LE(mixed.dram_budget, options.dram_bytes);
    EXPECT_LE(mixed.on_cxl_node, options.tiers.cxl_bytes + odd_pages(options.tiers.placement));
    EXPECT_EQ(nodes.used(kDramNode) + nodes.used(kCxlNode), 0);
    EXPECT_EQ(folder.names(), std::vector<std::string>{});
    in_every_tier += mixed.uses_every_tier() ? 1 : 0;
  }
  EXPECT_EQ(in_every_tier, wanted) << "the draws prove nothing";
}

TEST(EveryTierTogether, IsTriedWithAllMethodsThatOffloadWithoutWritingOverOldTokens) {
  std::set<std::string> methods;
  for (const Setting& each : settings()) methods.insert(each.options.method);
  EXPECT_EQ(methods,
            (std::set<std::string>{"flexgen", "hgca", "hybridgen", "infinigen", "moe_lightning"}));
}

}  // namespace
}  // namespace hybridgen
