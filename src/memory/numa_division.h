// SPDX-License-Identifier: Apache-2.0
// Which KV heads belong to which memory node where workers of several nodes share the scan: a
// node's workers read memory of their own node first.
#pragma once

#include <cstdint>
#include <vector>

#include "hybridgen/memory/numa_part.h"
#include "memory/numa.h"

namespace hybridgen {

struct NumaDivision {
  std::vector<NumaPart> parts;      ///< every head in one of them, ascending; empty: not divided
  std::vector<int> part_of_worker;  ///< indexes `parts`
};

/// Contiguous heads for every node with workers, in proportion to these. Worker i is pinned to
/// worker_cpus[i]. Nothing is divided unless all workers are pinned to CPUs of `nodes`, and to more
/// than one node's.
NumaDivision divide_heads(const std::vector<NumaNode>& nodes,
                          const std::vector<int>& worker_cpus,
                          std::int64_t num_kv_heads);

}  // namespace hybridgen
