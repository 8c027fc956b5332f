// SPDX-License-Identifier: Apache-2.0
#include "emulated/machine_profile.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen::emulated {
namespace {

MachineProfile some_machine(const std::string& name) {
  MachineProfile profile;
  profile.name = name;
  profile.tflops = 100.0;
  profile.tflops_fp32 = 10.0;
  profile.hbm_gbs = 1000.0;
  profile.hbm_eff = {{1.0, 0.5}, {10.0, 1.0}};
  profile.mem_gb = 16.0;
  profile.h2d_gbs = 20.0;
  profile.d2h_gbs = 10.0;
  profile.launch_us = 5.0;
  return profile;
}

std::string refusal_of(const MachineProfile& profile) {
  try {
    profile.check();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(MachineProfile, TheTableReadsWhatItWrites) {
  const MachineProfile profile = some_machine("written");
  EXPECT_EQ(machine_table().read("test", machine_table().values(profile)), profile);
}

TEST(MachineProfile, AProfileThatLeavesARateOutIsRefusedByTheFieldsName) {
  EXPECT_EQ(refusal_of(some_machine("whole")), "accepted");
  for (const auto& [field, name] : std::vector<std::pair<double MachineProfile::*, std::string>>{
           {&MachineProfile::tflops, "gpu.tflops"},
           {&MachineProfile::tflops_fp32, "gpu.tflops_fp32"},
           {&MachineProfile::hbm_gbs, "gpu.hbm_gbs"},
           {&MachineProfile::mem_gb, "gpu.mem_gb"},
           {&MachineProfile::h2d_gbs, "link.h2d_gbs"},
           {&MachineProfile::d2h_gbs, "link.d2h_gbs"}}) {
    MachineProfile without = some_machine("partial");
    without.*field = 0.0;
    EXPECT_NE(refusal_of(without).find("[machine profile] " + name + " is 0"), std::string::npos)
        << refusal_of(without);
  }
}

TEST(MachineProfile, SharesThatWouldMakeALargerOperationFasterAreRefused) {
  MachineProfile profile = some_machine("shares");
  for (const auto& shares : std::vector<std::vector<MemoryShare>>{
           {{10.0, 0.5}, {1.0, 1.0}},  // not ascending
           {{1.0, 0.5}, {1.0, 0.6}},   // twice
           {{1.0, 0.1}, {5.0, 1.0}},   // 5 MB in half the time of 1 MB
           {{0.0, 0.5}},
           {{1.0, 0.0}},
           {{1.0, 1.5}}}) {
    profile.hbm_eff = shares;
    EXPECT_NE(refusal_of(profile).find("gpu.hbm_eff is"), std::string::npos);
  }
}

TEST(MachineProfile, AnEqualProfileHasOneIndexAndAnotherItsOwn) {
  const int first = register_machine(some_machine("first"));
  const int second = register_machine(some_machine("second"));
  EXPECT_GE(first, 1);
  EXPECT_NE(first, second);
  EXPECT_EQ(register_machine(some_machine("first")), first);
  EXPECT_EQ(machine(first).name, "first");
  EXPECT_EQ(machine(second).name, "second");
  EXPECT_GE(num_machines(), second);
}

TEST(MachineProfile, AnIndexThatNobodyRegisteredIsRefused) {
  EXPECT_THROW(machine(0), ConfigError);  // the device without a clock
  EXPECT_THROW(machine(-1), ConfigError);
  EXPECT_THROW(machine(num_machines() + 1), ConfigError);
}

TEST(MachineProfile, ThreadsThatRegisterTheSameMachinesAgreeOnTheirIndices) {
  std::vector<std::vector<int>> indices(4);
  std::vector<std::thread> threads;
  for (std::vector<int>& own : indices) {
    threads.emplace_back([&own] {
      for (const char* name : {"a", "b", "c"}) own.push_back(register_machine(some_machine(name)));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<int>& own : indices) EXPECT_EQ(own, indices.front());
}

}  // namespace
}  // namespace hybridgen::emulated
