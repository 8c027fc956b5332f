// SPDX-License-Identifier: Apache-2.0
// How fast CPUs read a node's memory, where firmware does not say.
#pragma once

#include <vector>

namespace hybridgen {

/// Bytes per second that threads on up to eight of `cpus` read together from `node`: the median of
/// three passes over at most 256 MiB there, after one that warms up; 0 if the node has no room for
/// it, memory comes from elsewhere, or threads cannot start there.
double node_read_rate(int node, const std::vector<int>& cpus);

}  // namespace hybridgen
