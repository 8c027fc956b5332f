// SPDX-License-Identifier: Apache-2.0
#include "runtime/control_group.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace hybridgen {
namespace {

/// A made-up "/" with the few files that are read.
class ControlGroup : public testing::Test {
 protected:
  ControlGroup()
      : root_(std::filesystem::path(testing::TempDir()) /
              ("control_group_" + std::to_string(::getpid()) + "_" +
               testing::UnitTest::GetInstance()->current_test_info()->name())) {}
  ~ControlGroup() override { std::filesystem::remove_all(root_); }

  void write(const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }

  std::filesystem::path root_;
};

TEST_F(ControlGroup, WithoutFilesNothingIsLimited) {
  EXPECT_EQ(control_group_free_bytes(root_), std::nullopt);
  EXPECT_EQ(control_group_cpus(root_), std::nullopt);
}

TEST_F(ControlGroup, V2MaxMeansNoLimit) {
  write("proc/self/cgroup", "0::/a\n");
  write("sys/fs/cgroup/a/memory.max", "max\n");
  write("sys/fs/cgroup/a/memory.current", "5\n");
  write("sys/fs/cgroup/a/cpu.max", "max 100000\n");
  EXPECT_EQ(control_group_free_bytes(root_), std::nullopt);
  EXPECT_EQ(control_group_cpus(root_), std::nullopt);
}

TEST_F(ControlGroup, V2FreeIsLimitLessUsageWithoutDroppableFilePages) {
  write("proc/self/cgroup", "0::/a\n");
  write("sys/fs/cgroup/a/memory.max", "1000\n");
  write("sys/fs/cgroup/a/memory.current", "700\n");
  write("sys/fs/cgroup/a/memory.stat", "anon 300\ninactive_file 70\nactive_file 30\n");
  EXPECT_EQ(control_group_free_bytes(root_), 400);
}

TEST_F(ControlGroup, UsageAboveTheLimitLeavesNothing) {
  write("proc/self/cgroup", "0::/a\n");
  write("sys/fs/cgroup/a/memory.max", "1000\n");
  write("sys/fs/cgroup/a/memory.current", "1700\n");
  EXPECT_EQ(control_group_free_bytes(root_), 0);
}

TEST_F(ControlGroup, TheTightestEnclosingGroupCounts) {
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/memory.max", "100\n");
  write("sys/fs/cgroup/a/memory.current", "40\n");
  write("sys/fs/cgroup/a/b/memory.max", "1000\n");
  write("sys/fs/cgroup/a/b/memory.current", "10\n");
  write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  write("sys/fs/cgroup/a/b/cpu.max", "800000 100000\n");
  EXPECT_EQ(control_group_free_bytes(root_), 60);
  EXPECT_EQ(control_group_quota(root_), 1.5);
  EXPECT_EQ(control_group_cpus(root_), 2);
}

TEST_F(ControlGroup, APathOutsideTheMountFallsBackToTheMountPoint) {
  write("proc/self/cgroup", "0::/../elsewhere\n");
  write("sys/fs/cgroup/memory.max", "100\n");
  write("sys/fs/cgroup/memory.current", "30\n");
  EXPECT_EQ(control_group_free_bytes(root_), 70);
}

TEST_F(ControlGroup, V1ReadsItsOwnFilesPerController) {
  write("proc/self/cgroup", "7:memory:/job\n4:cpu,cpuacct:/job\n");
  write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000\n");
  write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "900\n");
  write("sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 200\n");
  write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "250000\n");
  write("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(control_group_free_bytes(root_), 300);
  EXPECT_EQ(control_group_cpus(root_), 3);
}

TEST_F(ControlGroup, V1QuotaOfMinusOneMeansNoLimit) {
  write("proc/self/cgroup", "4:cpu:/\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(control_group_cpus(root_), std::nullopt);
}

}  // namespace
}  // namespace hybridgen
