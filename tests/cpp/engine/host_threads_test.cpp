// SPDX-License-Identifier: Apache-2.0
#include "engine/host_threads.h"

#include <gtest/gtest.h>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

using Cpus = std::vector<int>;

TEST(WorkerCpus, HostWorkersTakeTheLastCoresAndLeaveTheRestToTheDriver) {
  EXPECT_EQ(worker_cpus({0, 1, 2, 3}, {0, 1, 2, 3}, /*threads=*/2, /*helpers=*/0), (Cpus{2, 3}));
}

TEST(WorkerCpus, HelpersOfTheDeviceTakeCoresThatHostWorkersLeave) {
  EXPECT_EQ(worker_cpus({0, 1, 2, 3}, {0, 1, 2, 3}, 2, 1), (Cpus{2, 3, 1}));
  EXPECT_EQ(worker_cpus({0, 1}, {0, 1}, 0, 1), (Cpus{1}));
}

TEST(WorkerCpus, HelpersNeedNotBeOnTheHostWorkersNode) {
  EXPECT_EQ(worker_cpus({0, 1, 2, 3}, {0, 1}, 2, 1), (Cpus{0, 1, 3}));
}

TEST(WorkerCpus, NobodyIsPinnedWhereNoCoreWouldBeLeftForTheDriver) {
  EXPECT_EQ(worker_cpus({0, 1}, {0, 1}, 2, 0), (Cpus{-1, -1}));
  EXPECT_EQ(worker_cpus({0, 1, 2}, {0, 1, 2}, 1, 2), (Cpus{-1, -1, -1}));
}

TEST(WorkerCpus, RefusesMoreHostWorkersThanTheChosenNodeHasCores) {
  EXPECT_THROW(worker_cpus({0, 1, 2, 3}, {0, 1}, 3, 0), ConfigError);
}

const std::vector<NumaNode> kTwoNodes = {{0, {0, 1, 2, 3}, 1, 1}, {1, {4, 5, 6, 7}, 1, 1}};

TEST(SpreadOverNodes, LeavesTheCoresOfOneNodeInOrder) {
  EXPECT_EQ(spread_over_nodes({0, 1, 3}, {kTwoNodes[0]}), (Cpus{0, 1, 3}));
  EXPECT_EQ(spread_over_nodes({0, 1, 3}, {}), (Cpus{0, 1, 3}));
}

TEST(SpreadOverNodes, TakesTurnsFromTheEnd) {
  EXPECT_EQ(spread_over_nodes({0, 1, 2, 3, 4, 5, 6, 7}, kTwoNodes), (Cpus{0, 4, 1, 5, 2, 6, 3, 7}));
  EXPECT_EQ(spread_over_nodes({0, 2, 3, 7}, kTwoNodes), (Cpus{0, 2, 3, 7}));
  EXPECT_EQ(spread_over_nodes({1, 5, 6, 7}, kTwoNodes), (Cpus{5, 6, 1, 7}));
}

TEST(SpreadOverNodes, MakesFewWorkersUseAllNodes) {
  const Cpus cores = spread_over_nodes({0, 1, 2, 3, 4, 5, 6, 7}, kTwoNodes);
  EXPECT_EQ(worker_cpus(cores, cores, /*threads=*/2, /*helpers=*/0), (Cpus{3, 7}));
  EXPECT_EQ(worker_cpus(cores, cores, 4, 2), (Cpus{2, 6, 3, 7, 1, 5}));
  EXPECT_EQ(worker_cpus(cores, cores, 7, 0), (Cpus{4, 1, 5, 2, 6, 3, 7}));
}

TEST(InventedNodes, HaveWorkersByTurns) {
  const NumaDivision division = divide_over_invented_nodes(2, 5, 4);
  EXPECT_EQ(division.part_of_worker, (std::vector<int>{0, 1, 0, 1, 0}));
  ASSERT_EQ(division.parts.size(), 2U);
  EXPECT_EQ(division.parts[0].num_heads, 2);
  EXPECT_EQ(division.parts[1].num_heads, 2);
  EXPECT_TRUE(divide_over_invented_nodes(2, 1, 4).parts.empty());
}

}  // namespace
}  // namespace hybridgen
