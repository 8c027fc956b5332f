// SPDX-License-Identifier: Apache-2.0
// How an engine divides the machine's cores between the device's driver and the host workers.
#pragma once

#include <cstdint>
#include <vector>

#include "device/device_context.h"
#include "hybridgen/core/engine_options.h"
#include "memory/numa.h"
#include "memory/numa_division.h"

namespace hybridgen {

/// Fills options.threads and options.device_threads where they are automatic. Workers are never
/// more than `host_cores`, those they may be pinned to.
void resolve_threads(EngineOptions& options,
                     const DeviceContext& device,
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
