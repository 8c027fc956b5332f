// SPDX-License-Identifier: Apache-2.0
#include "memory/numa_division.h"

#include <gtest/gtest.h>

#include <numeric>

namespace hybridgen {
namespace {

using Heads = std::vector<std::int64_t>;

/// Heads of each part; checks that they follow each other from 0 to `num_kv_heads`.
Heads heads_of(const NumaDivision& division, std::int64_t num_kv_heads) {
  Heads heads;
  std::int64_t first = 0;
  for (const NumaPart& part : division.parts) {
    EXPECT_EQ(part.first_head, first);
    EXPECT_GE(part.num_heads, 0);
    first += part.num_heads;
    heads.push_back(part.num_heads);
  }
  EXPECT_EQ(first, num_kv_heads);
  return heads;
}

const std::vector<NumaNode> kTwoNodes = {{0, {0, 1, 2, 3}, 1, 1}, {1, {4, 5, 6, 7}, 1, 1}};

TEST(NumaDivision, GivesEveryNodeContiguousHeadsAndItsWorkers) {
  const NumaDivision division = divide_heads(kTwoNodes, {2, 6, 3, 7}, 8);
  EXPECT_EQ(heads_of(division, 8), (Heads{4, 4}));
  EXPECT_EQ(division.parts[0].node, 0);
  EXPECT_EQ(division.parts[1].node, 1);
  EXPECT_EQ(division.parts[0].cpus, (std::vector<int>{2, 3}));
  EXPECT_EQ(division.parts[1].cpus, (std::vector<int>{6, 7}));
  EXPECT_EQ(division.part_of_worker, (std::vector<int>{0, 1, 0, 1}));
}

TEST(NumaDivision, IsInProportionToTheWorkersOfANode) {
  EXPECT_EQ(heads_of(divide_heads(kTwoNodes, {1, 2, 3, 4}, 8), 8), (Heads{6, 2}));
  EXPECT_EQ(heads_of(divide_heads(kTwoNodes, {3, 4, 5, 6, 7}, 8), 8), (Heads{2, 6}));
}

TEST(NumaDivision, OfHeadsThatDoNotComeOutEvenGivesEachAtMostOneMoreThanItsShare) {
  EXPECT_EQ(heads_of(divide_heads(kTwoNodes, {3, 7}, 3), 3), (Heads{2, 1}));
  for (std::int64_t num_nodes = 2; num_nodes <= 8; ++num_nodes) {
    std::vector<NumaNode> nodes(static_cast<std::size_t>(num_nodes));
    std::vector<int> cpus(nodes.size());
    std::iota(cpus.begin(), cpus.end(), 0);
    for (std::size_t i = 0; i < nodes.size(); ++i) nodes[i] = {static_cast<int>(i), {cpus[i]}};
    for (std::int64_t num_kv_heads = 1; num_kv_heads <= 40; ++num_kv_heads) {
      for (const std::int64_t heads :
           heads_of(divide_heads(nodes, cpus, num_kv_heads), num_kv_heads)) {
        EXPECT_GE(heads, num_kv_heads / num_nodes);
        EXPECT_LE(heads, (num_kv_heads + num_nodes - 1) / num_nodes);
      }
    }
  }
}

TEST(NumaDivision, LeavesNodesWithoutHeadsWhereThereAreFewerHeadsThanNodes) {
  EXPECT_EQ(heads_of(divide_heads(kTwoNodes, {3, 7}, 1), 1), (Heads{1, 0}));
}

TEST(NumaDivision, PassesOverNodesWithoutCpusOrWithoutWorkers) {
  const std::vector<NumaNode> nodes = {
      {0, {0, 1}, 1, 1}, {2, {}, 1, 1}, {5, {8, 9}, 1, 1}, {7, {2, 3}, 1, 1}};
  // Node 5 is outside the affinity mask, so that no worker is there.
  const NumaDivision division = divide_heads(nodes, {1, 2}, 4);
  EXPECT_EQ(heads_of(division, 4), (Heads{2, 2}));
  EXPECT_EQ(division.parts[0].node, 0);
  EXPECT_EQ(division.parts[1].node, 7);
  EXPECT_EQ(division.part_of_worker, (std::vector<int>{0, 1}));
}

TEST(NumaDivision, IsEmptyWhereAllWorkersAreOfOneNode) {
  for (const NumaDivision& division : {divide_heads(kTwoNodes, {1, 2, 3}, 8),
                                       divide_heads({kTwoNodes[0]}, {0, 1}, 8),
                                       divide_heads({}, {0, 1}, 8),
                                       divide_heads(kTwoNodes, {}, 8)}) {
    EXPECT_TRUE(division.parts.empty());
    EXPECT_TRUE(division.part_of_worker.empty());
  }
}

TEST(NumaDivision, IsEmptyWhereAWorkerMayRunOnAnyNode) {
  EXPECT_TRUE(divide_heads(kTwoNodes, {-1, -1}, 8).parts.empty());
  EXPECT_TRUE(divide_heads(kTwoNodes, {3, 7, -1}, 8).parts.empty());
  EXPECT_TRUE(divide_heads(kTwoNodes, {3, 7, 99}, 8).parts.empty());
}

}  // namespace
}  // namespace hybridgen
