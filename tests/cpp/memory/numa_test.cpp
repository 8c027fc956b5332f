// SPDX-License-Identifier: Apache-2.0
#include "memory/numa.h"

#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <set>
#include <string>

#include "hybridgen/core/error.h"
#include "memory/host_buffer.h"
#include "memory/memory_budget.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

/// The text of the ConfigError that `action` throws; empty if it throws none.
template <typename Action>
std::string refusal(const Action& action) {
  try {
    action();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

/// What the kernel itself says about the page at `address`, without libnuma in between.
struct Placement {
  Placement() = default;
  explicit Placement(const void* address) {
    syscall(SYS_get_mempolicy, &node, nullptr, 0, address, MPOL_F_NODE | MPOL_F_ADDR);
    syscall(SYS_get_mempolicy, &mode, mask.data(), mask.size() * kBits, address, MPOL_F_ADDR);
  }
  bool may_come_from(int id) const {
    const auto bit = static_cast<std::size_t>(id);
    return (mask[bit / kBits] >> (bit % kBits) & 1UL) != 0;
  }

  static constexpr std::size_t kBits = sizeof(unsigned long) * CHAR_BIT;
  int node = -1;
  int mode = -1;
  std::array<unsigned long, 64> mask{};
};

void expect_bound(const std::byte* data, std::size_t bytes, int node) {
  for (std::size_t offset = 0; offset < bytes; offset += 4096) {
    const Placement placement(data + offset);
    ASSERT_EQ(placement.node, node) << "page at " << offset;
    ASSERT_EQ(placement.mode, MPOL_BIND) << "page at " << offset;
    ASSERT_TRUE(placement.may_come_from(node));
  }
}

/// Nodes with room whose memory this process's cpuset permits.
std::vector<NumaNode> nodes_with_memory() {
  Placement allowed;
  syscall(SYS_get_mempolicy,
          nullptr,
          allowed.mask.data(),
          allowed.mask.size() * Placement::kBits,
          nullptr,
          MPOL_F_MEMS_ALLOWED);
  std::vector<NumaNode> nodes = numa_nodes();
  std::erase_if(nodes, [&allowed](const NumaNode& node) {
    return !allowed.may_come_from(node.id) || node.free_bytes < std::int64_t{64} << 20;
  });
  return nodes;
}

class NumaBinding : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_numa()) GTEST_SKIP() << "no libnuma, or the kernel forbids its use";
  }
};

TEST(Numa, NodesCoverTheAffinityMask) {
  const std::vector<NumaNode> nodes = numa_nodes();
  ASSERT_FALSE(nodes.empty());
  std::set<int> cpus;
  for (const NumaNode& node : nodes) {
    EXPECT_TRUE(std::ranges::is_sorted(node.cpus));
    for (const int cpu : node.cpus) EXPECT_TRUE(cpus.insert(cpu).second) << cpu << " is in two";
  }
  for (const int cpu : available_cpus()) EXPECT_TRUE(cpus.contains(cpu)) << cpu;
}

TEST(Numa, NodesAreAscendingAndFreeIsPartOfTotal) {
  const std::vector<NumaNode> nodes = numa_nodes();
  EXPECT_TRUE(std::ranges::is_sorted(nodes, {}, &NumaNode::id));
  std::int64_t total = 0;
  for (const NumaNode& node : nodes) {
    EXPECT_GE(node.free_bytes, 0);
    EXPECT_LE(node.free_bytes, node.total_bytes);
    total += node.total_bytes;
  }
  EXPECT_GT(total, 0);
}

TEST(Numa, TheSystemsChoiceHasAllAvailableMemory) { EXPECT_GT(available_node_bytes(-1), 0); }

TEST(Numa, CpusOfANodeAreThoseOfTheMask) {
  const NumaNode node{3, {4, 5, 6, 7}, 1, 1};
  EXPECT_EQ(cpus_of_node(node, {1, 5, 7, 9}), (std::vector<int>{5, 7}));
}

TEST(Numa, ANodeWithoutCpusCannotRunWorkers) {
  const std::string text = refusal([] { cpus_of_node({2, {}, 1, 1}, {0, 1}); });
  EXPECT_NE(text.find("[numa] node is 2"), std::string::npos) << text;
  EXPECT_NE(text.find("no CPUs"), std::string::npos) << text;
}

TEST(Numa, ANodeOutsideTheMaskCannotRunWorkers) {
  const std::string text = refusal([] { cpus_of_node({1, {8, 9}, 1, 1}, {0, 1}); });
  EXPECT_NE(text.find("this process may use"), std::string::npos) << text;
}

TEST(Numa, WithoutSupportThereIsOneNodeAndBindingSaysWhatToDo) {
  if (has_numa()) GTEST_SKIP() << "supported here";
  ASSERT_EQ(numa_nodes().size(), 1U);
  EXPECT_EQ(numa_nodes().front().id, 0);
  EXPECT_EQ(numa_nodes().front().cpus, available_cpus());
  HostBuffer buffer(4096);
  const std::string text = refusal([&] { bind_to_node(buffer.data(), 4096, 0); });
  EXPECT_TRUE(text.find("install libnuma-dev") != std::string::npos ||
              text.find("CAP_SYS_NICE") != std::string::npos)
      << text;
  EXPECT_THROW(HostBuffer(4096, 0), ConfigError);
}

TEST_F(NumaBinding, PutsThePagesOnTheNode) {
  for (const NumaNode& node : nodes_with_memory()) {
    HostBuffer buffer(5 * 4096 + 1);
    bind_to_node(buffer.data(), buffer.size_bytes(), node.id);
    std::memset(buffer.data(), 1, buffer.size_bytes());
    expect_bound(buffer.data(), buffer.size_bytes(), node.id);
  }
}

TEST_F(NumaBinding, LeavesOtherBuffersToTheSystem) {
  HostBuffer buffer(4096);
  std::memset(buffer.data(), 1, buffer.size_bytes());
  int process_mode = -1;
  ASSERT_EQ(syscall(SYS_get_mempolicy, &process_mode, nullptr, 0, nullptr, 0), 0);
  EXPECT_EQ(Placement(buffer.data()).mode, process_mode);
}

TEST_F(NumaBinding, OfABufferHoldsForSmallAndHugePages) {
  for (const NumaNode& node : nodes_with_memory()) {
    for (const std::size_t bytes : {std::size_t{100}, std::size_t{3} * kMiB + 5}) {
      HostBuffer buffer(bytes, node.id);
      std::memset(buffer.data(), 1, buffer.size_bytes());
      expect_bound(buffer.data(), buffer.size_bytes(), node.id);
    }
  }
}

TEST_F(NumaBinding, ToAnUnknownNodeNamesTheExistingOnes) {
  HostBuffer buffer(4096);
  for (const int node : {-2, -1, 1 << 20}) {
    const std::string text = refusal([&] { bind_to_node(buffer.data(), 4096, node); });
    const std::string expected = message("node is ", node, "; allowed: ", numa_nodes().front().id);
    EXPECT_NE(text.find(expected), std::string::npos) << text;
  }
  EXPECT_THROW(HostBuffer(4096, 1 << 20), ConfigError);
  EXPECT_THROW(find_numa_node(1 << 20), ConfigError);
  EXPECT_THROW(available_node_bytes(1 << 20), ConfigError);
}

TEST_F(NumaBinding, CarriesTheKernelsReason) {
  HostBuffer buffer(8192);
  const int node = numa_nodes().front().id;
  const std::string text = refusal([&] { bind_to_node(buffer.data() + 1, 4096, node); });
  EXPECT_NE(text.find(std::strerror(EINVAL)), std::string::npos) << text;
}

TEST_F(NumaBinding, OfNothingChecksTheNodeOnly) {
  EXPECT_NO_THROW(bind_to_node(nullptr, 0, numa_nodes().front().id));
  EXPECT_THROW(bind_to_node(nullptr, 0, 1 << 20), ConfigError);
}

TEST_F(NumaBinding, LeavesNoMoreMemoryThanTheMachineHas) {
  for (const NumaNode& node : nodes_with_memory()) {
    EXPECT_GT(available_node_bytes(node.id), 0);
    EXPECT_LE(available_node_bytes(node.id), node.total_bytes);
  }
}

}  // namespace
}  // namespace hybridgen
