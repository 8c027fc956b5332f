// SPDX-License-Identifier: Apache-2.0
// Which KV heads belong to which memory node where workers of several nodes share the scan: a
// node's workers read memory of their own node first.
#pragma once

#include <cstddef>
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

/// Memory that holds `head_bytes` for one KV head after the other, page-aligned and not touched
/// yet: each part's pages come from its node as long as that has room. A page at the border of two
/// parts is the second one's.
void prefer_nodes(const std::vector<NumaPart>& parts, std::byte* data, std::int64_t head_bytes);

}  // namespace hybridgen
