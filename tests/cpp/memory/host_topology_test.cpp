// SPDX-License-Identifier: Apache-2.0
#include "memory/host_topology.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>

#include "memory/numa.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kKiB = 1024;
const std::string kNodes = "sys/devices/system/node/";

/// A made-up "/" with the few files that are read.
class HostTopology : public testing::Test {
 protected:
  HostTopology()
      : root_(std::filesystem::path(testing::TempDir()) /
              ("host_topology_" + std::to_string(::getpid()) + "_" +
               testing::UnitTest::GetInstance()->current_test_info()->name())) {}
  ~HostTopology() override { std::filesystem::remove_all(root_); }

  void write(const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }

  void write_node(
      int id, const std::string& cpus, int total_kib, int free_kib, const std::string& distances) {
    const std::string folder = kNodes + "node" + std::to_string(id) + "/";
    const std::string label = "Node " + std::to_string(id) + " ";
    write(folder + "cpulist", cpus + "\n");
    write(folder + "distance", distances + "\n");
    write(folder + "meminfo",
          label + "MemTotal:       " + std::to_string(total_kib) + " kB\n" +     //
              label + "MemFree:        " + std::to_string(free_kib) + " kB\n" +  //
              label + "Active(file):   3 kB\n" + label + "Inactive(file): 4 kB\n" + label +
              "HugePages_Total:     0\n");
  }

  HostFacts read(const std::vector<int>& cpus = {0, 1}) const {
    return read_host_facts(root_, cpus, true);
  }

  std::filesystem::path root_;
};

TEST_F(HostTopology, NodesHaveCpusSizesAndDistances) {
  write_node(0, "0-1,4", 1000, 600, "10 21");
  write_node(1, "", 2000, 1900, "21 10");
  const HostFacts facts = read();
  ASSERT_EQ(facts.nodes.size(), 2U);
  const NodeFacts& first = facts.nodes[0];
  EXPECT_EQ(first.node.id, 0);
  EXPECT_EQ(first.node.cpus, (std::vector<int>{0, 1, 4}));
  EXPECT_EQ(first.node.total_bytes, 1000 * kKiB);
  EXPECT_EQ(first.node.free_bytes, 600 * kKiB);
  EXPECT_EQ(first.file_bytes, 7 * kKiB);
  EXPECT_EQ(first.available_bytes(), 607 * kKiB);
  EXPECT_EQ(first.distances, (std::map<int, int>{{0, 10}, {1, 21}}));
  EXPECT_TRUE(facts.nodes[1].node.cpus.empty());
  EXPECT_EQ(facts.find(1), &facts.nodes[1]);
  EXPECT_EQ(facts.find(2), nullptr);
}

TEST_F(HostTopology, WhatANodeCouldGiveIsReadOfItAlone) {
  write_node(1, "", 2000, 1900, "10");
  EXPECT_EQ(read_available_bytes(root_, 1), 1907 * kKiB);
  EXPECT_EQ(read_available_bytes(root_, 0), std::nullopt);
  EXPECT_EQ(read_available_bytes(root_, -2), std::nullopt);
}

TEST_F(HostTopology, NodesAreAscendingByNumberAndDistancesBelongToThoseThatAreThere) {
  write_node(10, "", 1, 1, "20 10");
  write_node(2, "0", 1, 1, "10 20");
  const HostFacts facts = read();
  ASSERT_EQ(facts.nodes.size(), 2U);
  EXPECT_EQ(facts.nodes[0].node.id, 2);
  EXPECT_EQ(facts.nodes[1].node.id, 10);
  EXPECT_EQ(facts.nodes[1].distances, (std::map<int, int>{{2, 20}, {10, 10}}));
}

TEST_F(HostTopology, WithoutNodesTheMachineIsOneWithTheCpusOfThisProcess) {
  write("proc/meminfo", "MemTotal: 500 kB\nMemFree: 300 kB\nMemAvailable: 350 kB\n");
  const HostFacts facts = read({3, 5});
  ASSERT_EQ(facts.nodes.size(), 1U);
  EXPECT_EQ(facts.nodes[0].node.id, 0);
  EXPECT_EQ(facts.nodes[0].node.cpus, (std::vector<int>{3, 5}));
  EXPECT_EQ(facts.nodes[0].node.total_bytes, 500 * kKiB);
  EXPECT_EQ(facts.nodes[0].node.free_bytes, 300 * kKiB);
  EXPECT_EQ(facts.limit_bytes, 350 * kKiB);
}

TEST_F(HostTopology, FirmwaresFiguresAreInBytesAndNanoseconds) {
  write_node(1, "", 1, 1, "10");
  const std::string folder = kNodes + "node1/access0/initiators/";
  write(folder + "node0/of", "");
  write(folder + "read_bandwidth", "30000\n");
  write(folder + "write_bandwidth", "20000\n");
  write(folder + "read_latency", "250\n");
  write(folder + "write_latency", "260\n");
  const NodePerformance told = read().nodes[0].told;
  EXPECT_EQ(told.initiators, (std::vector<int>{0}));
  EXPECT_EQ(told.read_bytes_per_second, 30'000'000'000);
  EXPECT_EQ(told.write_bytes_per_second, 20'000'000'000);
  EXPECT_EQ(told.read_latency_ns, 250);
  EXPECT_EQ(told.write_latency_ns, 260);
}

TEST_F(HostTopology, FiguresOfCpusComeBeforeThoseOfAnyDevice) {
  write_node(2, "", 1, 1, "10");
  write(kNodes + "node2/access0/initiators/node1/of", "");
  write(kNodes + "node2/access0/initiators/read_bandwidth", "400000\n");
  write(kNodes + "node2/access1/initiators/node0/of", "");
  write(kNodes + "node2/access1/initiators/read_bandwidth", "30000\n");
  const NodePerformance told = read().nodes[0].told;
  EXPECT_EQ(told.initiators, (std::vector<int>{0}));
  EXPECT_EQ(told.read_bytes_per_second, 30'000'000'000);
}

TEST_F(HostTopology, FiguresOfZeroAreNone) {
  write_node(1, "", 1, 1, "10");
  write(kNodes + "node1/access0/initiators/node0/of", "");
  write(kNodes + "node1/access0/initiators/read_bandwidth", "0\n");
  write(kNodes + "node1/access0/initiators/read_latency", "0\n");
  EXPECT_TRUE(read().nodes[0].told.initiators.empty());
}

TEST_F(HostTopology, TheDriverSaysWhichNodeIsAGpus) {
  write_node(0, "0-71", 100, 50, "10 80 80");
  write_node(1, "", 100, 50, "80 10 80");
  write_node(2, "", 100, 50, "80 80 10");
  write("proc/driver/nvidia/gpus/0009:01:00.0/numa_status", "Node: 1\nStatus: online\n");
  write("proc/driver/nvidia/gpus/0019:01:00.0/numa_status", "Node: -1\nStatus: disabled\n");
  const HostFacts facts = read();
  EXPECT_EQ(facts.nodes[0].device, "");
  EXPECT_EQ(facts.nodes[1].device, "GPU 0009:01:00.0");
  EXPECT_EQ(facts.nodes[2].device, "");
}

TEST_F(HostTopology, NodesOfGenericInitiatorsAreDevices) {
  write_node(0, "0-71", 100, 50, "10 80");
  write_node(1, "", 100, 50, "80 10");
  write(kNodes + "has_generic_initiator", "0-8\n");
  const HostFacts facts = read();
  EXPECT_EQ(facts.nodes[0].device, "") << "it has CPUs";
  EXPECT_NE(facts.nodes[1].device.find("generic initiator"), std::string::npos);
}

TEST_F(HostTopology, TheCpusetSaysWhichNodesMayBeUsed) {
  write_node(0, "0", 1, 1, "10 20");
  write_node(1, "", 1, 1, "20 10");
  write("proc/self/status", "Name:\tx\nMems_allowed:\t1\nMems_allowed_list:\t0\n");
  const HostFacts facts = read();
  EXPECT_TRUE(facts.nodes[0].allowed);
  EXPECT_FALSE(facts.nodes[1].allowed);
}

TEST_F(HostTopology, MemoryOfDevicesAndOutsideTheCpusetIsNotThisProcesss) {
  for (const int id : {0, 1, 2, 3}) write_node(id, id == 0 ? "0-71" : "", 1000, 300, "10 80 80 80");
  write("proc/driver/nvidia/gpus/0009:01:00.0/numa_status", "Node: 1\n");
  write("proc/self/status", "Mems_allowed_list:\t0-2\n");
  write("proc/meminfo", "MemAvailable: 1200 kB\n");
  const std::vector<int> others = read().nodes_of_others();
  EXPECT_EQ(others, (std::vector<int>{1, 3}));
  EXPECT_EQ(read_process_bytes(root_, others), (1200 - 2 * 307) * kKiB);
  write("proc/meminfo", "MemAvailable: 500 kB\n");
  EXPECT_EQ(read_process_bytes(root_, others), 0) << "never negative";
}

TEST_F(HostTopology, TheTightestLimitOfSystemAndControlGroupsCounts) {
  write("proc/meminfo", "MemAvailable: 350 kB\n");
  EXPECT_EQ(read().limit_bytes, 350 * kKiB);
  write("proc/self/cgroup", "0::/a\n");
  write("sys/fs/cgroup/a/memory.max", "1000\n");
  write("sys/fs/cgroup/a/memory.current", "700\n");
  EXPECT_EQ(read().limit_bytes, 300);
}

TEST_F(HostTopology, OddFoldersAndTextsAreNoNodes) {
  write(kNodes + "node/x", "");
  write(kNodes + "node1x/x", "");
  write(kNodes + "node99999999999/x", "");
  write(kNodes + "node3/cpulist", "a-b\n");
  const HostFacts facts = read();
  ASSERT_EQ(facts.nodes.size(), 1U);
  EXPECT_EQ(facts.nodes[0].node.id, 3);
  EXPECT_TRUE(facts.nodes[0].node.cpus.empty());
  EXPECT_EQ(facts.nodes[0].node.total_bytes, 0);
}

TEST(NumberList, IsReadAsLinuxWritesIt) {
  EXPECT_EQ(parse_number_list(""), (std::vector<int>{}));
  EXPECT_EQ(parse_number_list("0"), (std::vector<int>{0}));
  EXPECT_EQ(parse_number_list("\t0-3,8\n"), (std::vector<int>{0, 1, 2, 3, 8}));
  EXPECT_EQ(parse_number_list("1,3-4,x"), (std::vector<int>{1, 3, 4}));
}

TEST(HostFacts, OfThisMachineAgreeWithTheSystem) {
  const HostFacts facts = read_host_facts("/", available_cpus(), has_numa());
  ASSERT_FALSE(facts.nodes.empty());
  const std::int64_t total = std::accumulate(
      facts.nodes.begin(),
      facts.nodes.end(),
      std::int64_t{0},
      [](std::int64_t sum, const NodeFacts& node) { return sum + node.node.total_bytes; });
  EXPECT_GT(total, 0);
  // Memory that was plugged in later is not always counted by node.
  const auto physical = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  EXPECT_LE(total, physical + physical / 100);
  for (const int cpu : available_cpus()) {
    EXPECT_EQ(std::ranges::count_if(facts.nodes,
                                    [cpu](const NodeFacts& node) {
                                      return std::ranges::find(node.node.cpus, cpu) !=
                                             node.node.cpus.end();
                                    }),
              1)
        << cpu;
  }
}

}  // namespace
}  // namespace hybridgen
