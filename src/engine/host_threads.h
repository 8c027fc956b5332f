// SPDX-License-Identifier: Apache-2.0
// How an engine divides the machine's cores between the device's driver and the host workers.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/numa.h"
#include "memory/numa_division.h"

namespace hybridgen {

/// Host workers and cores of a CPU device (which count its driver); 0: chosen.
struct ThreadCounts {
  std::int64_t host = 0;
  std::int64_t device = 0;
};

/// `asked` with its automatic counts chosen. Host workers are never more than `host_cores`, those
/// they may be pinned to; none where nothing is offloaded.
ThreadCounts resolve_threads(ThreadCounts asked,
                             bool device_is_cpu,
                             bool offloads,
                             std::int64_t host_cores);

/// A core for each worker of the pool, -1 for one that is not pinned. `threads` workers are the
/// last of `host_cpus`, the cores of `cpus` on their node; `helpers` of the device are the last of
/// the others; unless that leaves one of `cpus` for the driver, none is pinned. ConfigError if the
/// node has too few.
std::vector<int> worker_cpus(const std::vector<int>& cpus,
                             const std::vector<int>& host_cpus,
                             std::int64_t threads,
                             std::int64_t helpers);

/// `cpus`, ascending, in an order whose end takes turns between the nodes: the last few of it are
/// as many of each node as there are.
std::vector<int> spread_over_nodes(const std::vector<int>& cpus,
                                   const std::vector<NumaNode>& nodes);

/// The division for TestSwitches::invented_nodes: worker i is of node i % num_nodes.
NumaDivision divide_over_invented_nodes(std::int64_t num_nodes,
                                        std::int64_t num_workers,
                                        std::int64_t num_kv_heads);

}  // namespace hybridgen
