// SPDX-License-Identifier: Apache-2.0
// Where bytes live, and what a user decides about the tiers of host memory (paper §4.4).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hybridgen {

/// From the fastest down. kCxl: memory that is slower than the CPUs' own, be it a CXL expander or
/// another socket's.
enum class TierKind : std::uint8_t { kDevice, kDram, kCxl, kDisk };
/// "device", "dram", "cxl" or "disk".
std::string_view name_of(TierKind tier);

/// Which tier keys and values of offloaded tokens lie in where there are several.
enum class KvPlacement : std::uint8_t {
  kSemantic,    ///< keys, which the CPU scans, in DRAM; values below as soon as DRAM is full
  kInterleave,  ///< page by page over DRAM and CXL memory, whatever they hold
  kFirstTouch   ///< DRAM while there is any, whatever comes first
};

/// Tiers below DRAM. Plain values; the engine checks them against the machine.
struct LowerTierOptions {
  std::int64_t cxl_bytes = -1;  ///< -1: what the machine has, if it has any; 0: none
  int cxl_node = -1;            ///< -1: the nodes that discovery calls CXL-like
  std::string disk_path;        ///< a folder; empty: no disk
  std::int64_t disk_bytes = 0;
  KvPlacement placement = KvPlacement::kSemantic;
  bool shrink_windows = false;  ///< running requests give up window tokens for a waiting one
};

}  // namespace hybridgen
