// SPDX-License-Identifier: Apache-2.0
// Which memory node some KV heads belong to.
#pragma once

#include <cstdint>
#include <vector>

namespace hybridgen {

/// KV heads [first_head, first_head + num_heads) and the node that they belong to.
struct NumaPart {
  int node = 0;
  std::int64_t first_head = 0;
  std::int64_t num_heads = 0;  ///< 0: fewer heads than nodes; its workers only help the others
  std::vector<int> cpus;       ///< of its workers
};

}  // namespace hybridgen
