// SPDX-License-Identifier: Apache-2.0
// Which memory nodes are which tier of host memory, and why. Deciding is pure: classify() sees
// facts only; host_tiers() reads them of this machine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hybridgen/core/tiers.h"
#include "memory/host_topology.h"

namespace hybridgen {

/// What a node's memory is good for.
enum class NodeUse : std::uint8_t {
  kDram,    ///< the CPUs' own, or as fast
  kCxl,     ///< slower than the CPUs' own
  kFaster,  ///< faster, such as HBM in flat mode: known, left to the system
  kIgnored  ///< never used
};
/// "dram", "cxl", "faster" or "ignored".
std::string_view name_of(NodeUse use);

struct ClassifiedNode {
  int id = 0;
  NodeUse use = NodeUse::kDram;
  std::string why;        ///< one sentence, without its full stop
  bool usable = true;     ///< whether memory can be placed there, if KVConfig(cxl_node=...) says so
  bool reachable = true;  ///< the system may put pages there that nobody placed
  std::int64_t total_bytes = 0;
  std::int64_t available_bytes = 0;  ///< free, or used for file pages that can be dropped
};

struct HostTiers {
  std::vector<ClassifiedNode> nodes;  ///< all of the machine, ascending
  std::int64_t available_bytes = 0;   ///< of the process: what it can still take of all nodes

  /// Numbers of the tier's nodes, ascending; none for a tier that is no host memory.
  std::vector<int> nodes_of(TierKind tier) const;
  /// What the process can still take of the tier's nodes.
  std::int64_t available_bytes_of(TierKind tier) const;
};

/// What each node is. CPUs' own nodes are those with CPUs that this process may use; another one is
/// compared with the nearest of them, by what firmware tells (bandwidth; where that is the same,
/// latency), else by measured rates. Without either it is ignored.
HostTiers classify(const HostFacts& facts);

/// A node to measure, and the one with this process's CPUs that it is compared with.
struct RateQuestion {
  int node = 0;
  int own_node = 0;
};

/// What classify() cannot tell without measuring; empty: firmware and the CPUs say enough.
std::vector<RateQuestion> rates_wanted(const HostFacts& facts);

/// What the user decides about tiers, upon what `found` says: cxl_node is the only node of that
/// tier, and cxl_bytes == 0 means none. Throws ConfigError, with a list of what there is, if
/// that node is not there or cannot serve, and for cxl_bytes > 0 where no node is of that tier.
HostTiers choose_tiers(HostTiers found, const LowerTierOptions& options);

/// This machine's, for threads on `cpus`. Rates that classify() needs are measured once per
/// process, which takes a fraction of a second and happens only where memory that is not those
/// CPUs' own comes without figures.
HostTiers host_tiers(const std::vector<int>& cpus);

}  // namespace hybridgen
