// SPDX-License-Identifier: Apache-2.0
// A device with the clock of a slow machine in round numbers.
#pragma once

#include <string>

#include "emulated/machine_profile.h"

namespace hybridgen::testing {

/// 1 TFLOP/s, memory 10 GB/s, link 1 GB/s, and 1 us for all else.
inline emulated::MachineProfile slow_machine() {
  emulated::MachineProfile profile;
  profile.name = "slow";
  profile.tflops = 1.0;
  profile.tflops_fp32 = 1.0;
  profile.hbm_gbs = 10.0;
  profile.mem_gb = 4.0;
  profile.h2d_gbs = 1.0;
  profile.d2h_gbs = 1.0;
  profile.setup_us = 1.0;
  profile.launch_us = 1.0;
  profile.sync_us = 1.0;
  return profile;
}

/// Its name, for DecoderModel and tiny_model.
inline std::string timed_device() {
  return "emulated:" + std::to_string(emulated::register_machine(slow_machine()));
}

}  // namespace hybridgen::testing
