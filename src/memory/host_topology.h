// SPDX-License-Identifier: Apache-2.0
// Facts about this machine's memory nodes, as the kernel tells them. What follows from them is
// host_tiers.h's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/numa.h"

namespace hybridgen {

/// What firmware says of a node's memory (ACPI HMAT, or CDAT of a CXL device), as CPUs of
/// `initiators` see it. 0: not told.
struct NodePerformance {
  std::vector<int> initiators;  ///< the nodes for whose CPUs it holds; empty: nothing is told
  std::int64_t read_bytes_per_second = 0;
  std::int64_t write_bytes_per_second = 0;
  std::int64_t read_latency_ns = 0;
  std::int64_t write_latency_ns = 0;
};

struct NodeFacts {
  NumaNode node;
  std::int64_t file_bytes = 0;   ///< file pages, which the kernel drops when memory is wanted
  std::map<int, int> distances;  ///< by the other node's number; 10: the node itself
  bool allowed = true;           ///< by this process's cpuset
  std::string device;            ///< whose own memory it is ("GPU 0009:01:00.0"); empty: nobody's
  NodePerformance told;
  double measured_bytes_per_second = 0.0;  ///< reading, by CPUs that this process uses; 0: not done

  std::int64_t available_bytes() const { return node.free_bytes + file_bytes; }
  /// Whether this process may ever use it: neither a device's own nor outside its cpuset.
  bool is_ours() const { return device.empty() && allowed; }
};

struct HostFacts {
  std::vector<NodeFacts> nodes;  ///< ascending; at least one
  std::vector<int> usable_cpus;  ///< this process's
  bool can_place = true;         ///< whether memory can be given a node at all: has_numa()
  /// What the system and control groups leave this process, of all nodes together.
  std::optional<std::int64_t> limit_bytes;

  const NodeFacts* find(int id) const;
  /// Numbers of the nodes whose memory the system counts as available but that are not ours.
  std::vector<int> nodes_of_others() const;
};

/// Nodes with all facts but measured rates, below `root` ("/", or a folder of a test). A machine
/// that tells of no nodes is one node 0 with `usable_cpus`.
HostFacts read_host_facts(const std::filesystem::path& root,
                          const std::vector<int>& usable_cpus,
                          bool can_place);

/// What the node could give: free, or used for file pages, which the kernel drops when memory is
/// wanted. Of one file; nothing where there is no such node.
std::optional<std::int64_t> read_available_bytes(const std::filesystem::path& root, int node);

/// What the system and control groups leave this process, of all nodes together but those
/// `without`; nothing where they do not say.
std::optional<std::int64_t> read_process_bytes(const std::filesystem::path& root,
                                               std::span<const int> without = {});

/// "0-3,8" and the like, as Linux lists CPUs and nodes; what is no number ends the list.
std::vector<int> parse_number_list(const std::string& text);

}  // namespace hybridgen
