// SPDX-License-Identifier: Apache-2.0
#include "engine/host_threads.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "hybridgen/core/error.h"
#include "runtime/cpus.h"

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

TEST(ResolveThreads, WhatIsAskedForIsTaken) {
  const ThreadCounts counts = resolve_threads({3, 2}, /*device_is_cpu=*/true, true, 8);
  EXPECT_EQ(counts.host, 3);
  EXPECT_EQ(counts.device, 2);
}

TEST(ResolveThreads, WithoutOffloadingTheDeviceHasEverything) {
  const std::int64_t cores = available_parallelism();
  EXPECT_EQ(resolve_threads({5, 0}, true, /*offloads=*/false, 8).host, 0);
  EXPECT_EQ(resolve_threads({}, true, false, 8).device, cores);
  EXPECT_EQ(resolve_threads({}, /*device_is_cpu=*/false, false, 8).device, 1);
}

TEST(ResolveThreads, AGpuLeavesAllCoresButOneToTheHost) {
  const std::int64_t cores = available_parallelism();
  const ThreadCounts counts = resolve_threads({}, false, true, cores);
  EXPECT_EQ(counts.host, std::max<std::int64_t>(1, cores - 1));
  EXPECT_EQ(counts.device, 1);
}

TEST(ResolveThreads, ACpuDeviceSharesTheMachineWithTheHost) {
  const std::int64_t cores = available_parallelism();
  const ThreadCounts counts = resolve_threads({}, true, true, cores);
  EXPECT_EQ(counts.host, std::max<std::int64_t>(1, cores / 2));
  EXPECT_EQ(counts.device, std::max<std::int64_t>(1, cores - counts.host));
  EXPECT_EQ(resolve_threads({}, true, true, /*host_cores=*/1).host, 1);
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
