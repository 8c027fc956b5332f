// SPDX-License-Identifier: Apache-2.0
// What tests need of a machine that has a memory node without CPUs, be it emulated or not.
#pragma once

#include <gtest/gtest.h>
#include <numaif.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"
#include "memory/host_tiers.h"
#include "memory/numa.h"
#include "memory/placed_memory.h"
#include "runtime/cpus.h"

namespace hybridgen {

inline constexpr std::int64_t kMiB = std::int64_t{1} << 20;
inline constexpr std::size_t kPage = 4096;

/// Bytes by the node that the kernel says the pages lie on, asked without the code under test;
/// pages that are not there are not counted.
inline std::map<int, std::int64_t> bytes_by_node(const std::byte* data, std::size_t bytes) {
  constexpr std::size_t kAtATime = 512;
  std::map<int, std::int64_t> found;
  for (std::size_t at = 0; at < bytes; at += kAtATime * kPage) {
    std::array<void*, kAtATime> pages{};
    std::array<int, kAtATime> nodes{};
    std::size_t count = 0;
    for (; count < kAtATime && at + count * kPage < bytes; ++count) {
      pages[count] = const_cast<std::byte*>(data) + at + count * kPage;
    }
    if (move_pages(0, count, pages.data(), nullptr, nodes.data(), 0) != 0) return {};
    for (std::size_t i = 0; i < count; ++i) {
      if (nodes[i] >= 0) found[nodes[i]] += std::int64_t{kPage};
    }
  }
  return found;
}

/// For what the log says: "node 0: 3 MiB, node 1: 5 MiB".
inline std::string in_words(const std::map<int, std::int64_t>& bytes) {
  std::string words;
  for (const auto& [node, count] : bytes) {
    words += (words.empty() ? "node " : ", node ") + std::to_string(node) + ": " +
             std::to_string(count / kMiB) + " MiB";
  }
  return words;
}

inline ByteRange all_of(const PlacedMemory& memory) { return {0, memory.size_bytes()}; }

inline void take(PlacedMemory& memory, const PagePlace& place) {
  const ByteRange range = all_of(memory);
  memory.take(std::span(&range, 1), place, "test");
}

/// Takes memory of the place piece by piece until it is full; what the last refusal says.
inline std::string fill(const PagePlace& place,
                        std::size_t piece,
                        std::vector<PlacedMemory>& taken) {
  for (;;) {
    PlacedMemory memory(piece);
    try {
      take(memory, place);
    } catch (const OutOfMemoryError& error) {
      return error.what();
    }
    taken.push_back(std::move(memory));
  }
}

/// What became of a forked child: its exit status, or 1000 + the signal that ended it.
inline int status_of_child(const std::function<int()>& work) {
  const pid_t child = fork();
  if (child == 0) {
    // If somebody has to go, it is the child.
    std::ofstream("/proc/self/oom_score_adj") << 1000;
    _exit(work());
  }
  int status = -1;
  if (waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/// Tests that need both a DRAM node and a slower one.
class TwoNodes : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_numa()) GTEST_SKIP() << "no libnuma, or the kernel forbids its use";
    tiers_ = host_tiers(available_cpus());
    if (tiers_.nodes_of(TierKind::kCxl).empty()) {
      GTEST_SKIP() << "this machine has no memory node that is slower than its CPUs' own: "
                      "tests/numa/run.py emulates one";
    }
    dram_ = tiers_.nodes_of(TierKind::kDram).front();
    slow_ = tiers_.nodes_of(TierKind::kCxl).front();
  }

  static std::int64_t free_bytes(int node) { return find_numa_node(node).free_bytes; }

  /// Filling a node takes long and disturbs others unless it is as small as an emulated one's.
  static bool is_small(int node) { return find_numa_node(node).total_bytes <= 2048 * kMiB; }

  PagePlace dram_place() const {
    return {.nodes = {dram_}, .tier = TierKind::kDram, .setting = "KVConfig(dram=...)"};
  }
  PagePlace slow_place() const {
    return {.nodes = {slow_}, .tier = TierKind::kCxl, .setting = "KVConfig(cxl=...)"};
  }

  HostTiers tiers_;
  int dram_ = -1;
  int slow_ = -1;
};

/// Ends a test that would fill a node of a machine that others use.
#define HYBRIDGEN_SKIP_UNLESS_SMALL(node)                       \
  if (!is_small(node))                                          \
  GTEST_SKIP() << "node " << (node) << " has more than 2 GiB: " \
               << "tests/numa/run.py emulates small ones"

}  // namespace hybridgen
