// SPDX-License-Identifier: Apache-2.0
#include "emulated/cost_model.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace hybridgen::emulated {
namespace {

using enum OperationKind;

/// Round numbers: 100 and 10 TFLOP/s, memory 1000 GB/s, link 20 and 10 GB/s, launch 5 us.
MachineProfile round_machine() {
  MachineProfile profile;
  profile.name = "round";
  profile.tflops = 100.0;
  profile.tflops_fp32 = 10.0;
  profile.hbm_gbs = 1000.0;
  profile.hbm_eff = {{0.1, 0.25}, {1.0, 0.5}, {10.0, 1.0}};
  profile.mem_gb = 16.0;
  profile.h2d_gbs = 20.0;
  profile.d2h_gbs = 10.0;
  profile.duplex_factor = 0.5;
  profile.setup_us = 8.0;
  profile.launch_us = 5.0;
  profile.sync_us = 12.0;
  return profile;
}

struct Worked {
  std::string what;
  TimedOperation operation;
  double issue_us;
  double busy_us;
};

TEST(CostModel, GivesTheTimesOfExamplesWorkedByHand) {
  const std::vector<Worked> examples = {
      // One row times a [4096, 4096] bfloat16 matrix: 33.6 MB, memory-bound.
      {"GEMV", {kDense, 33'562'624, 8'192, 2.0 * 4096 * 4096, DType::kBFloat16}, 5.0, 33.570816},
      // 4096 rows: 1.374e11 FLOP, bound by the multipliers of the dtype.
      {"GEMM bf16",
       {kDense, 67'108'864, 33'554'432, 137.438953472e9, DType::kBFloat16},
       5.0,
       1374.38953472},
      {"GEMM fp32",
       {kDense, 134'217'728, 67'108'864, 137.438953472e9, DType::kFloat32},
       5.0,
       13743.8953472},
      // Arithmetic outside of products never uses the 16-bit multipliers.
      {"softmax", {kElementwise, 1'000, 1'000, 1e9, DType::kFloat16}, 5.0, 100.0},
      {"nothing", {}, 5.0, 0.0},
      // Read and written: 20 MB together at full rate; 1 MB at half; 50 kB at a quarter.
      {"copy 10 MB", {kDeviceCopy, 10'000'000, 10'000'000}, 5.0, 20.0},
      {"copy 0.5 MB", {kDeviceCopy, 500'000, 500'000}, 5.0, 2.0},
      {"copy 25 kB", {kDeviceCopy, 25'000, 25'000}, 5.0, 0.2},
      // Between 1 MB (2 us) and 10 MB (10 us): 5.5 MB is half-way, 6 us.
      {"copy 2.75 MB", {kDeviceCopy, 2'750'000, 2'750'000}, 5.0, 6.0},
      {"down", {kHostToDevice, 2'000'000, 2'000'000}, 0.0, 108.0},
      // A kernel that reads pinned memory is issued as any other.
      {"read by a kernel", {kHostRead, 2'000'000, 2'000'000}, 5.0, 108.0},
      {"up", {kDeviceToHost, 2'000'000, 2'000'000}, 0.0, 208.0},
      {"down, beside an up",
       {kHostToDevice, 2'000'000, 2'000'000, 0.0, DType::kFloat32, true},
       0.0,
       208.0},
      {"empty copy", {kDeviceToHost, 0, 0}, 0.0, 8.0},
  };
  const MachineProfile profile = round_machine();
  for (const Worked& example : examples) {
    const OperationTime time = operation_time(profile, example.operation);
    EXPECT_NEAR(time.issue_s * 1e6, example.issue_us, 1e-9) << example.what;
    EXPECT_NEAR(time.busy_s * 1e6, example.busy_us, 1e-9 * (1.0 + example.busy_us)) << example.what;
    EXPECT_DOUBLE_EQ(time.total_s(), time.issue_s + time.busy_s) << example.what;
  }
  EXPECT_DOUBLE_EQ(wake_seconds(profile), 12e-6);
}

TEST(CostModel, WithoutATableOfSharesEverySizeHasTheFullRate) {
  MachineProfile profile = round_machine();
  profile.hbm_eff.clear();
  EXPECT_DOUBLE_EQ(memory_seconds(profile, 1'000), 1e-9);
  EXPECT_DOUBLE_EQ(memory_seconds(profile, 1'000'000'000), 1e-3);
}

TEST(CostModel, NeverFallsWhenBytesOrFlopsRise) {
  std::mt19937_64 random(7);
  const MachineProfile profile = round_machine();
  for (const OperationKind kind :
       {kDense, kElementwise, kDeviceCopy, kHostToDevice, kDeviceToHost}) {
    for (int i = 0; i < 2'000; ++i) {
      const auto bytes = static_cast<std::int64_t>(random() % 30'000'000);
      TimedOperation less{kind, bytes, bytes, static_cast<double>(random() % 1'000'000'000)};
      TimedOperation more = less;
      more.bytes_read += static_cast<std::int64_t>(random() % 100'000);
      more.bytes_written += static_cast<std::int64_t>(random() % 100'000);
      more.flops += static_cast<double>(random() % 1'000'000);
      EXPECT_LE(operation_time(profile, less).total_s(), operation_time(profile, more).total_s());
      MachineProfile faster = profile;
      faster.tflops *= 2.0;
      faster.tflops_fp32 *= 2.0;
      faster.hbm_gbs *= 2.0;
      faster.h2d_gbs *= 2.0;
      faster.d2h_gbs *= 2.0;
      EXPECT_LE(operation_time(faster, less).total_s(), operation_time(profile, less).total_s());
    }
  }
}

}  // namespace
}  // namespace hybridgen::emulated
