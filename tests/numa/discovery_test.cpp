// SPDX-License-Identifier: Apache-2.0
// What discovery says of a real kernel's nodes, against libnuma and what the emulated machine's
// firmware was told to say.
#include <numa.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "hybridgen/core/error.h"
#include "memory/host_topology.h"
#include "memory/node_read_rate.h"
#include "two_nodes.h"

namespace hybridgen {
namespace {

using Discovery = TwoNodes;

HostFacts facts() { return read_host_facts("/", available_cpus(), has_numa()); }

/// A figure that tests/numa/run.py gives to the machine that it emulates; 0: another machine.
std::int64_t emulated(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::strtoll(text, nullptr, 10);
}

TEST_F(Discovery, TheNodeWithoutCpusIsTheCxlTierAndTheCpusNodeIsDram) {
  for (const ClassifiedNode& node : tiers_.nodes) {
    std::cout << "node " << node.id << ": " << name_of(node.use) << ", " << node.why << '\n';
  }
  EXPECT_FALSE(find_numa_node(dram_).cpus.empty());
  EXPECT_TRUE(find_numa_node(slow_).cpus.empty());
}

TEST_F(Discovery, SizesAndDistancesAreThoseOfLibnuma) {
  const HostFacts found = facts();
  for (const NodeFacts& node : found.nodes) {
    long long free = 0;
    const long long total = numa_node_size64(node.node.id, &free);
    EXPECT_EQ(node.node.total_bytes, total);
    EXPECT_NEAR(static_cast<double>(node.node.free_bytes), static_cast<double>(free), 64.0 * kMiB);
    for (const NodeFacts& other : found.nodes) {
      EXPECT_EQ(node.distances.at(other.node.id), numa_distance(node.node.id, other.node.id));
    }
  }
}

TEST_F(Discovery, FirmwaresFiguresArriveInBytesAndNanoseconds) {
  if (emulated("HYBRIDGEN_NUMA_SLOW_NS") == 0) GTEST_SKIP() << "not the emulated machine";
  const HostFacts found = facts();
  // qemu means 1024 MB by a GB/s, and the kernel says MB/s.
  const std::int64_t gigabyte = 1024 * 1'000'000LL;
  const NodePerformance& dram = found.find(dram_)->told;
  const NodePerformance& slow = found.find(slow_)->told;
  EXPECT_EQ(dram.read_bytes_per_second, emulated("HYBRIDGEN_NUMA_DRAM_GBS") * gigabyte);
  EXPECT_EQ(slow.read_bytes_per_second, emulated("HYBRIDGEN_NUMA_SLOW_GBS") * gigabyte);
  EXPECT_EQ(dram.read_latency_ns, emulated("HYBRIDGEN_NUMA_DRAM_NS"));
  EXPECT_EQ(slow.read_latency_ns, emulated("HYBRIDGEN_NUMA_SLOW_NS"));
  EXPECT_EQ(slow.initiators, (std::vector<int>{dram_}));
  EXPECT_NE(tiers_.nodes[static_cast<std::size_t>(slow_)].why.find("(HMAT)"), std::string::npos);
}

TEST_F(Discovery, WithoutFirmwaresFiguresBothNodesCanBeMeasured) {
  HostFacts found = facts();
  for (NodeFacts& node : found.nodes) node.told = {};
  const std::vector<RateQuestion> wanted = rates_wanted(found);
  ASSERT_EQ(wanted.size(), 1U);
  EXPECT_EQ(wanted[0].node, slow_);
  EXPECT_EQ(wanted[0].own_node, dram_);
  const std::int64_t free_before = free_bytes(slow_);
  for (const int node : {dram_, slow_}) {
    const double rate = node_read_rate(node, available_cpus());
    std::cout << "node " << node << " reads " << rate / 1e9 << " GB/s (emulated: no meaning)\n";
    EXPECT_GT(rate, 0.0);
  }
  EXPECT_NEAR(static_cast<double>(free_bytes(slow_)), static_cast<double>(free_before), 16.0 * kMiB)
      << "what was read is given back";
}

TEST_F(Discovery, ANamedNodeMayBeTheCxlTierButNotTheOnlyDram) {
  LowerTierOptions options;
  options.cxl_node = slow_;
  EXPECT_EQ(choose_tiers(tiers_, options).nodes_of(TierKind::kCxl), (std::vector<int>{slow_}));
  if (tiers_.nodes_of(TierKind::kDram).size() == 1) {
    options.cxl_node = dram_;
    EXPECT_THROW(choose_tiers(tiers_, options), ConfigError);
  }
}

}  // namespace
}  // namespace hybridgen
