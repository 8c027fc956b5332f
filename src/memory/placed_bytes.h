// SPDX-License-Identifier: Apache-2.0
// Where the memory of several owners lies, gathered for a report.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "memory/page_calls.h"
#include "memory/placed_memory.h"

namespace hybridgen {

struct PlacedBytes {
  std::map<int, std::int64_t> by_node;  ///< of pages that are there, as the system says
  std::vector<PageSpan> spans;          ///< whole areas, for PageCalls::huge_bytes

  void add(const PagesFound& found, PageSpan area) {
    for (const auto& [node, bytes] : found.by_node) by_node[node] += bytes;
    if (area.bytes > 0) spans.push_back(area);
  }
};

}  // namespace hybridgen
