// SPDX-License-Identifier: Apache-2.0
// How long an operation takes on a machine, from its profile alone: a roofline. Pure; no LibTorch.
#pragma once

#include <cstdint>

#include "emulated/machine_profile.h"
#include "hybridgen/core/types.h"

namespace hybridgen::emulated {

enum class OperationKind : std::uint8_t {
  kDense,         ///< matrix products: the rate of the dtype's multipliers
  kElementwise,   ///< all other arithmetic, reductions and sorting included: the float32 rate
  kDeviceCopy,    ///< device to device
  kHostToDevice,  ///< bytes_read cross the link
  kDeviceToHost,
  kHostRead,  ///< a kernel reads bytes_read of pinned memory, which cross the link
};

struct TimedOperation {
  OperationKind kind = OperationKind::kElementwise;
  std::int64_t bytes_read = 0;
  std::int64_t bytes_written = 0;
  double flops = 0.0;  ///< a multiply-add is two
  DType dtype = DType::kFloat32;
  bool both_directions = false;  ///< of a link copy: one in the other direction runs meanwhile
};

/// An operation starts on its stream when the host has issued it and what was queued before is
/// done; from then on the stream is busy.
struct OperationTime {
  double issue_s = 0.0;  ///< the host's
  double busy_s = 0.0;   ///< the stream's
  double total_s() const { return issue_s + busy_s; }
};

/// Whether the link is busy with it, down to the device.
bool crosses_down(OperationKind kind);

/// On the device: launch, and then the longer of FLOPs / rate and bytes / (memory rate * share of
/// that size). Over the link: nothing to issue, but for a kernel's launch, set-up + bytes / rate.
/// Never falls when bytes or FLOPs rise.
OperationTime operation_time(const MachineProfile& profile, const TimedOperation& operation);

/// Seconds that device memory takes for `bytes`, read and written together.
double memory_seconds(const MachineProfile& profile, std::int64_t bytes);

/// Seconds after the end of what a host waits for until the host goes on.
double wake_seconds(const MachineProfile& profile);

}  // namespace hybridgen::emulated
