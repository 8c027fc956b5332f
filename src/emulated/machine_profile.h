// SPDX-License-Identifier: Apache-2.0
// What timed emulation reads of a machine profile (docs/profiles.md): a GPU's rates, its link and
// what issuing work costs. Names and units are those of the profile file. No LibTorch here.
#pragma once

#include <string>
#include <vector>

#include "core/option_table.h"

namespace hybridgen::emulated {

/// An operation that moves `megabytes` reaches `share` of the device memory's rate.
struct MemoryShare {
  double megabytes = 0.0;  ///< 1 MB = 1e6 bytes; > 0
  double share = 1.0;      ///< in (0, 1]
  friend bool operator==(const MemoryShare&, const MemoryShare&) = default;
};

/// Rates are those that are reached, not a data sheet's. 1 GB = 1e9 bytes. Zero where check()
/// refuses a profile that does not say it.
struct MachineProfile {
  std::string name;
  double tflops = 0.0;       ///< 1e12 FLOP/s of dense 16-bit products; a multiply-add is two
  double tflops_fp32 = 0.0;  ///< of float32 products, and of all other arithmetic
  double hbm_gbs = 0.0;      ///< device memory, reads and writes together, of large operations
  std::vector<MemoryShare> hbm_eff;  ///< by ascending size; empty: 1 for all sizes
  double mem_gb = 0.0;               ///< device memory
  double h2d_gbs = 0.0;              ///< host to device, pinned, alone on the link
  double d2h_gbs = 0.0;
  double duplex_factor = 1.0;  ///< of both rates while both directions run, in (0, 1]
  double setup_us = 0.0;       ///< of one copy between host and device
  double launch_us = 0.0;      ///< the host's time to issue one operation
  double sync_us = 0.0;        ///< the host's time to notice that what it waits for is done

  /// Throws ConfigError naming the first field that is missing or not allowed.
  void check() const;
  friend bool operator==(const MachineProfile&, const MachineProfile&) = default;
};

/// Rows are named as in the file: "gpu.tflops", "link.h2d_gbs", "overhead.launch_us".
const OptionTable<MachineProfile>& machine_table();

/// Index of the emulated device with this profile's clock: 0 is the device without one, so the
/// first is 1; an equal profile has one index. Checks the profile. ConfigError beyond
/// kMaxMachines different ones in a process. Thread-safe.
int register_machine(const MachineProfile& profile);
/// The profile of an index in [1, num_machines()]; it never moves. ConfigError for others.
const MachineProfile& machine(int index);
int num_machines();

/// Device indices are signed bytes.
inline constexpr int kMaxMachines = 63;

}  // namespace hybridgen::emulated
