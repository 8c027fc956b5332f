// SPDX-License-Identifier: Apache-2.0
// Memory nodes of this machine, and memory bound to one of them. A node without CPUs, such as CXL
// memory, is a node like any other here; it only runs no threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hybridgen {

struct NumaNode {
  int id = 0;
  std::vector<int> cpus;         ///< ascending, whether this process may use them or not
  std::int64_t total_bytes = 0;  ///< 0: the node has no memory
  std::int64_t free_bytes = 0;   ///< used for nothing, not even for file pages
};

/// Whether this build has libnuma and the kernel lets this process use it.
bool has_numa();

/// All nodes, ascending. Without has_numa() one node 0 with all CPUs this process may use.
std::vector<NumaNode> numa_nodes();

/// The node of that number, for use. Throws ConfigError without has_numa() or for an unknown node.
NumaNode find_numa_node(int id);

/// Those of `cpus` that belong to the node: they may run its threads. Throws ConfigError if none.
std::vector<int> cpus_of_node(const NumaNode& node, const std::vector<int>& cpus);

/// Like available_host_bytes(), of one node; -1: of all of them.
std::int64_t available_node_bytes(int node);

/// Pages of [data, data + bytes) that are touched from now on come from `node` alone: when it is
/// full, the kernel ends the process rather than take another one's memory. `data` must be
/// page-aligned. Throws ConfigError without has_numa(), for an unknown node and for memory or a
/// node that the kernel refuses, OutOfMemoryError if the kernel has no memory for the rule itself.
void bind_to_node(void* data, std::size_t bytes, int node);

/// Pages of [data, data + bytes) that are touched from now on come from `node` as long as it has
/// free ones, then from others. Advice only: where the kernel does not take it, nothing happens.
void prefer_node(void* data, std::size_t bytes, int node);

}  // namespace hybridgen
