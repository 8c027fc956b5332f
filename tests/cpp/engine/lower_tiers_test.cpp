// SPDX-License-Identifier: Apache-2.0
#include "engine/lower_tiers.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

HostTiers one_node() {
  HostFacts facts;
  facts.usable_cpus = {0, 1};
  facts.nodes.resize(1);
  facts.nodes[0].node = {.id = 0, .cpus = {0, 1}, .total_bytes = 1 << 30, .free_bytes = 1 << 29};
  return classify(facts);
}

std::string refusal(const std::function<void(LowerTierOptions&)>& ask) {
  EngineOptions options;
  ask(options.tiers);
  try {
    check_lower_tiers(options, make_method(options), lower_tiers(options, one_node()));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(LowerTiers, WhatNobodyAskedForIsNotMissed) {
  EXPECT_EQ(refusal([](LowerTierOptions&) {}), "");
  EXPECT_EQ(refusal([](LowerTierOptions& tiers) { tiers.cxl_bytes = 0; }), "");
}

TEST(LowerTiers, MemoryThatTheMachineLacksIsRefusedWithTheWayOut) {
  EXPECT_EQ(refusal([](LowerTierOptions& tiers) { tiers.cxl_bytes = std::int64_t{128} << 30; }),
            "[KVConfig] cxl is 128.0 GiB; allowed: \"auto\" or 0, because no memory node is slower "
            "than the CPUs' own: node 0 (dram, 512.0 MiB of 1.0 GiB available: has CPUs that this "
            "process uses); leave the option out, or name a node by cxl_node");
  EXPECT_EQ(
      refusal([](LowerTierOptions& tiers) { tiers.cxl_node = 1; }),
      "[KVConfig] cxl_node is 1, which is no memory node of this machine; allowed: None, or a "
      "node with memory beside DRAM that is no device's, of node 0 (dram, 512.0 MiB of 1.0 "
      "GiB available: has CPUs that this process uses); choose one of these, or leave the "
      "option out");
}

/// 1 GiB with CPUs, half of it free; 4 GiB of a GPU's; 2 GiB of slower memory.
HostFacts many_kinds() {
  HostFacts facts;
  facts.usable_cpus = {0, 1};
  facts.nodes.resize(3);
  facts.nodes[0].node = {.id = 0, .cpus = {0, 1}, .total_bytes = 1 << 30, .free_bytes = 1 << 29};
  facts.nodes[1].node = {.id = 1, .cpus = {}, .total_bytes = kGiB * 4, .free_bytes = kGiB * 4};
  facts.nodes[1].device = "GPU 0009:01:00.0";
  facts.nodes[2].node = {.id = 2, .cpus = {}, .total_bytes = kGiB * 2, .free_bytes = kGiB * 2};
  facts.nodes[0].told = {.initiators = {0}, .read_bytes_per_second = 200};
  facts.nodes[2].told = {.initiators = {0}, .read_bytes_per_second = 20};
  return facts;
}

TEST(LowerTiers, AutomaticDramIsWhatItsNodesHave) {
  const LowerTiers tiers = lower_tiers({}, classify(many_kinds()));
  EXPECT_EQ(tiers.dram_bytes, 1 << 29);
  EXPECT_EQ(tiers.cxl_bytes, kGiB * 2);
  EXPECT_EQ(tiers.places().dram.nodes, std::vector<int>{0});
  EXPECT_EQ(tiers.places().cxl.nodes, std::vector<int>{2});
}

TEST(LowerTiers, MemoryThatIsNoTiersIsKeptFromOffloadedTokens) {
  EngineOptions without_cxl;
  without_cxl.tiers.cxl_bytes = 0;
  HostFacts facts = many_kinds();
  EXPECT_EQ(lower_tiers(without_cxl, classify(facts)).places().dram.nodes, std::vector<int>{0})
      << "cxl=0 leaves node 2 out";
  facts.nodes.pop_back();
  EXPECT_EQ(lower_tiers({}, classify(facts)).places().dram.nodes, std::vector<int>{0})
      << "nothing may spill over into a GPU's memory";
  facts.nodes[1].allowed = false;
  EXPECT_TRUE(lower_tiers({}, classify(facts)).places().dram.nodes.empty())
      << "the system itself keeps pages inside the cpuset";
  facts.nodes[1].allowed = true;
  facts.can_place = false;
  EXPECT_TRUE(lower_tiers({}, classify(facts)).places().dram.nodes.empty())
      << "nothing can be placed";
  facts.nodes.pop_back();
  facts.can_place = true;
  EXPECT_TRUE(lower_tiers({}, classify(facts)).places().dram.nodes.empty()) << "all memory is DRAM";
}

TEST(LowerTiers, PlacementWithoutATierToPlaceInIsRefused) {
  for (const KvPlacement placement : {KvPlacement::kInterleave, KvPlacement::kFirstTouch}) {
    EXPECT_NE(refusal([=](LowerTierOptions& tiers) { tiers.placement = placement; }), "");
  }
}

}  // namespace
}  // namespace hybridgen
