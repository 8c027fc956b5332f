// SPDX-License-Identifier: Apache-2.0
#include "emulated/cost_model.h"

#include <algorithm>

namespace hybridgen::emulated {
namespace {

constexpr double kMicro = 1e-6;
constexpr double kMega = 1e6;
constexpr double kGiga = 1e9;
constexpr double kTera = 1e12;

// Megabytes at full rate that take as long as `megabytes` do: linear between the table's sizes, so
// that a larger operation never takes less; beyond its ends the share stays.
double weighted(const std::vector<MemoryShare>& shares, double megabytes) {
  if (shares.empty()) return megabytes;
  const auto above = std::ranges::lower_bound(shares, megabytes, {}, &MemoryShare::megabytes);
  if (above == shares.begin()) return megabytes / above->share;
  const MemoryShare& low = *(above - 1);
  if (above == shares.end()) return megabytes / low.share;
  const double from = low.megabytes / low.share;
  const double to = above->megabytes / above->share;
  return from + (to - from) * (megabytes - low.megabytes) / (above->megabytes - low.megabytes);
}

double link_seconds(const MachineProfile& profile, const TimedOperation& operation) {
  double gbs = crosses_down(operation.kind) ? profile.h2d_gbs : profile.d2h_gbs;
  if (operation.both_directions) gbs *= profile.duplex_factor;
  const auto bytes = static_cast<double>(std::max(operation.bytes_read, operation.bytes_written));
  return profile.setup_us * kMicro + bytes / (gbs * kGiga);
}

double flops_seconds(const MachineProfile& profile, const TimedOperation& operation) {
  const bool is_half =
      operation.kind == OperationKind::kDense && operation.dtype != DType::kFloat32;
  return operation.flops / ((is_half ? profile.tflops : profile.tflops_fp32) * kTera);
}

}  // namespace

bool crosses_down(OperationKind kind) {
  return kind == OperationKind::kHostToDevice || kind == OperationKind::kHostRead;
}

OperationTime operation_time(const MachineProfile& profile, const TimedOperation& operation) {
  switch (operation.kind) {
    case OperationKind::kHostToDevice:
    case OperationKind::kDeviceToHost:
      return {0.0, link_seconds(profile, operation)};
    case OperationKind::kHostRead:
      return {profile.launch_us * kMicro, link_seconds(profile, operation)};
    case OperationKind::kDense:
    case OperationKind::kElementwise:
    case OperationKind::kDeviceCopy:
      break;
  }
  const double memory_s = memory_seconds(profile, operation.bytes_read + operation.bytes_written);
  return {profile.launch_us * kMicro, std::max(memory_s, flops_seconds(profile, operation))};
}

double memory_seconds(const MachineProfile& profile, std::int64_t bytes) {
  const double megabytes = static_cast<double>(bytes) / kMega;
  return weighted(profile.hbm_eff, megabytes) * kMega / (profile.hbm_gbs * kGiga);
}

double wake_seconds(const MachineProfile& profile) { return profile.sync_us * kMicro; }

}  // namespace hybridgen::emulated
