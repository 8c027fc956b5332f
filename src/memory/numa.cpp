// SPDX-License-Identifier: Apache-2.0
#include "memory/numa.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "hybridgen/core/error.h"
#include "memory/host_topology.h"
#include "memory/memory_budget.h"
#include "runtime/cpus.h"

#if defined(HYBRIDGEN_HAS_NUMA)
#include <numa.h>
#include <numaif.h>
#endif

namespace hybridgen {

namespace {

/// Where the system lets no memory be placed, the whole machine is one node.
NumaNode only_node() {
  const std::int64_t page = sysconf(_SC_PAGESIZE);
  return {0,
          available_cpus(),
          page * std::int64_t{sysconf(_SC_PHYS_PAGES)},
          page * std::int64_t{sysconf(_SC_AVPHYS_PAGES)}};
}

#if defined(HYBRIDGEN_HAS_NUMA)

struct FreeBitmask {
  void operator()(bitmask* mask) const { numa_bitmask_free(mask); }
};
using Bitmask = std::unique_ptr<bitmask, FreeBitmask>;

/// Whether the kernel took it; errno says why not.
bool set_rule(void* data, std::size_t bytes, int node, int rule) {
  const Bitmask nodes(numa_allocate_nodemask());
  numa_bitmask_setbit(nodes.get(), static_cast<unsigned>(node));
  // The kernel reads one bit less than it is told.
  return ::mbind(data, bytes, rule, nodes->maskp, nodes->size + 1, 0) == 0;
}

#endif

}  // namespace

bool has_numa() {
#if defined(HYBRIDGEN_HAS_NUMA)
  return numa_available() >= 0;
#else
  return false;
#endif
}

std::vector<NumaNode> numa_nodes() {
  if (!has_numa()) return {only_node()};
  std::vector<NumaNode> nodes;
  for (const NodeFacts& facts : read_host_facts("/", available_cpus(), true).nodes) {
    nodes.push_back(facts.node);
  }
  return nodes;
}

NumaNode find_numa_node(int id) {
  if (!has_numa()) {
#if defined(HYBRIDGEN_HAS_NUMA)
    constexpr const char* kWayOut =
        "the kernel has no NUMA support or forbids its use, as containers do without CAP_SYS_NICE; "
        "leave the node to the system";
#else
    constexpr const char* kWayOut =
        "this build has no libnuma; install libnuma-dev and build again, or leave the node to the "
        "system";
#endif
    throw ConfigError(message("[numa] node is ", id, "; allowed: \"auto\"; ", kWayOut));
  }
  std::string known;
  for (NumaNode& node : numa_nodes()) {
    if (node.id == id) return std::move(node);
    known += (known.empty() ? "" : ", ") + std::to_string(node.id);
  }
  throw ConfigError(message("[numa] node is ",
                            id,
                            "; allowed: ",
                            known,
                            "; choose one of these or leave it to the system"));
}

std::vector<int> cpus_of_node(const NumaNode& node, const std::vector<int>& cpus) {
  std::vector<int> usable;
  std::ranges::copy_if(cpus, std::back_inserter(usable), [&node](int cpu) {
    return std::ranges::find(node.cpus, cpu) != node.cpus.end();
  });
  if (usable.empty()) {
    throw ConfigError(message("[numa] node is ",
                              node.id,
                              node.cpus.empty()
                                  ? ", which has memory but no CPUs and so cannot run workers"
                                  : ", none of whose CPUs this process may use",
                              "; allowed: nodes with CPUs of the affinity mask; choose another "
                              "node or leave it to the system"));
  }
  return usable;
}

std::int64_t available_node_bytes(int node) {
  if (node == -1) return available_host_bytes();
  const std::optional<std::int64_t> bytes =
      has_numa() ? read_available_bytes("/", node) : std::nullopt;
  if (!bytes) static_cast<void>(find_numa_node(node));  // says what is wrong with it
  return std::min(available_host_bytes(), bytes.value_or(0));
}

void bind_to_node([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes, int node) {
  static_cast<void>(find_numa_node(node));  // refuses it without support, too
#if defined(HYBRIDGEN_HAS_NUMA)
  if (bytes == 0) return;
  if (set_rule(data, bytes, node, MPOL_BIND)) return;
  const int error = errno;
  const std::string text = message("[numa] binding ",
                                   human_bytes(static_cast<double>(bytes)),
                                   " to node ",
                                   node,
                                   " failed: ",
                                   std::generic_category().message(error));
  if (error == ENOMEM) {
    throw OutOfMemoryError(
        message(text, "; allowed: what the system has free; lower the memory settings"));
  }
  throw ConfigError(message(text,
                            "; allowed: page-aligned memory, and nodes with memory that this "
                            "process's cpuset permits; choose another node or leave it to the "
                            "system"));
#endif
}

void prefer_node([[maybe_unused]] void* data,
                 [[maybe_unused]] std::size_t bytes,
                 [[maybe_unused]] int node) {
#if defined(HYBRIDGEN_HAS_NUMA)
  if (bytes > 0 && has_numa()) static_cast<void>(set_rule(data, bytes, node, MPOL_PREFERRED));
#endif
}

}  // namespace hybridgen
