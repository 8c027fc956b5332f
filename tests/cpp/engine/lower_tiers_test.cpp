// SPDX-License-Identifier: Apache-2.0
#include "engine/lower_tiers.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

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

TEST(LowerTiers, PlacementWithoutATierToPlaceInIsRefused) {
  for (const KvPlacement placement : {KvPlacement::kInterleave, KvPlacement::kFirstTouch}) {
    EXPECT_NE(refusal([=](LowerTierOptions& tiers) { tiers.placement = placement; }), "");
  }
}

}  // namespace
}  // namespace hybridgen
