// SPDX-License-Identifier: Apache-2.0
#include "memory/numa_division.h"

#include <unistd.h>

#include <algorithm>
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

void prefer_nodes(const std::vector<NumaPart>& parts, std::byte* data, std::int64_t head_bytes) {
  const std::int64_t page = sysconf(_SC_PAGESIZE);
  for (const NumaPart& part : parts) {
    const std::int64_t begin = part.first_head * head_bytes / page * page;
    const std::int64_t end = (part.first_head + part.num_heads) * head_bytes;
    if (part.num_heads > 0) {
      prefer_node(data + begin, static_cast<std::size_t>(end - begin), part.node);
    }
  }
}

}  // namespace hybridgen
