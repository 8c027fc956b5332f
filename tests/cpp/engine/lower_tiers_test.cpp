// SPDX-License-Identifier: Apache-2.0
#include "engine/lower_tiers.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

const NumaNode kOwn{.id = 0, .cpus = {0, 1}, .total_bytes = 1 << 30, .free_bytes = 1 << 29};

std::string refusal(const std::function<void(LowerTierOptions&)>& ask) {
  EngineOptions options;
  ask(options.tiers);
  try {
    check_lower_tiers(options, {kOwn});
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
            "[KVConfig] cxl is 137438953472; allowed: 'auto' or 0; this machine has no memory that "
            "is slower than its CPUs' own (see: python -m hybridgen info); pass cxl_node=N, or "
            "leave it out");
  EXPECT_EQ(refusal([](LowerTierOptions& tiers) { tiers.cxl_node = 1; }),
            "[KVConfig] cxl_node is 1; allowed: None, or a node with memory; see numa_nodes in: "
            "python -m hybridgen info");
}

TEST(LowerTiers, PlacementWithoutATierToPlaceInIsRefused) {
  for (const KvPlacement placement : {KvPlacement::kInterleave, KvPlacement::kFirstTouch}) {
    EXPECT_NE(refusal([=](LowerTierOptions& tiers) { tiers.placement = placement; }), "");
  }
}

}  // namespace
}  // namespace hybridgen
