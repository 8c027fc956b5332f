// SPDX-License-Identifier: Apache-2.0
#include "memory/numa_division.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace hybridgen {

NumaDivision divide_heads(const std::vector<NumaNode>& nodes,
                          const std::vector<int>& worker_cpus,
                          std::int64_t num_kv_heads) {
  NumaDivision division;
  division.part_of_worker.assign(worker_cpus.size(), -1);
  for (const NumaNode& node : nodes) {
    NumaPart part;
    part.node = node.id;
    for (std::size_t worker = 0; worker < worker_cpus.size(); ++worker) {
      if (std::ranges::find(node.cpus, worker_cpus[worker]) != node.cpus.end()) {
        part.cpus.push_back(worker_cpus[worker]);
        division.part_of_worker[worker] = static_cast<int>(division.parts.size());
      }
    }
    if (!part.cpus.empty()) division.parts.push_back(std::move(part));
  }
  if (division.parts.size() < 2 || std::ranges::count(division.part_of_worker, -1) > 0) return {};

  const auto all_workers = static_cast<std::int64_t>(worker_cpus.size());
  std::int64_t workers = 0;
  std::int64_t first = 0;
  for (NumaPart& part : division.parts) {
    workers += static_cast<std::int64_t>(part.cpus.size());
    const std::int64_t end = (2 * num_kv_heads * workers + all_workers) / (2 * all_workers);
    part.first_head = first;
    part.num_heads = end - first;
    first = end;
  }
  return division;
}

}  // namespace hybridgen
