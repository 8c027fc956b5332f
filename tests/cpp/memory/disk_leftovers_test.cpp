// SPDX-License-Identifier: Apache-2.0
#include "memory/disk_leftovers.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "memory/disk_file.h"
#include "memory/host_buffer.h"

namespace hybridgen {
namespace {

using Names = std::vector<std::string>;

void touch(const std::filesystem::path& file) { std::ofstream(file) << "x"; }

/// A folder like /proc with processes in it, this one among them.
class Processes {
 public:
  Processes() { add(::getpid(), "test (with) parentheses", 77); }
  void add(std::int64_t process, const std::string& name, std::int64_t start) {
    std::filesystem::create_directory(folder_.path() / std::to_string(process));
    std::ofstream(folder_.path() / std::to_string(process) / "stat")
        << process << " (" << name << ") S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 " << start
        << " 23 24\n";
  }
  const std::filesystem::path& path() const { return folder_.path(); }

 private:
  TestFolder folder_;
};

TEST(DiskLeftovers, OfEndedProcessesGoAndThoseOfLivingOnesStay) {
  const TestFolder folder;
  Processes processes;
  processes.add(1000, "lives ) on", 5);
  touch(folder.path() / ".hybridgen-disk-1000-5-0");  // its owner lives
  touch(folder.path() / ".hybridgen-disk-1000-4-0");  // its owner's number went to another
  touch(folder.path() / ".hybridgen-disk-1001-5-3");  // its owner is gone
  EXPECT_EQ(sweep_disk_leftovers(folder.string(), disk_calls(), processes.path()), 2);
  EXPECT_EQ(folder.names(), Names{".hybridgen-disk-1000-5-0"});
}

TEST(DiskLeftovers, NothingElseIsTouched) {
  const TestFolder folder;
  const Processes processes;
  Names others = {".hybridgen-disk",
                  ".hybridgen-disk-",
                  ".hybridgen-disk-1-1",
                  ".hybridgen-disk-1-1-1.txt",
                  ".hybridgen-disk-1-1-",
                  ".hybridgen-disk--1-1-1",
                  ".hybridgen-disk-1-x-1",
                  ".hybridgen-disk-99999999999999999999-1-1",
                  ".hybridgen-notes",
                  "hybridgen-disk-1-1-1",
                  "model.safetensors"};
  for (const std::string& name : others) touch(folder.path() / name);
  others.emplace_back(".hybridgen-disk-1-1-2");
  std::filesystem::create_directory(folder.path() / others.back());
  others.emplace_back(".hybridgen-disk-1-1-3");
  std::filesystem::create_symlink("model.safetensors", folder.path() / others.back());
  std::ranges::sort(others);
  EXPECT_EQ(sweep_disk_leftovers(folder.string(), disk_calls(), processes.path()), 0);
  EXPECT_EQ(folder.names(), others);
}

TEST(DiskLeftovers, StayWhereNobodysLifeCanBeTold) {
  const TestFolder folder;
  const TestFolder no_processes;
  touch(folder.path() / ".hybridgen-disk-1001-5-3");
  EXPECT_EQ(sweep_disk_leftovers(folder.string(), disk_calls(), no_processes.path()), 0);
}

TEST(DiskLeftovers, OfThisProcessStay) {
  const TestFolder folder;
  touch(folder.path() / new_disk_file_name());
  EXPECT_EQ(sweep_disk_leftovers(folder.string(), disk_calls()), 0);
}

TEST(DiskLeftovers, NamesAreNeverUsedTwice) {
  EXPECT_NE(new_disk_file_name(), new_disk_file_name());
}

/// A child that opens a file, takes slots and writes them, and is killed at its call `number`:
/// before it, or after it. Returns whether it was.
bool kill_at(const std::string& folder, int number, bool before, bool has_unnamed) {
  const pid_t child = ::fork();
  if (child == 0) {
    FaultyDisk calls;
    int count = 0;
    const auto strike = [&count, number] {
      if (count == number) ::kill(::getpid(), SIGKILL);
    };
    calls.answer = [&](DiskCall call, int flags) -> std::optional<std::int64_t> {
      if (before) strike();
      if (call == DiskCall::kOpen && (flags & O_TMPFILE) == O_TMPFILE && !has_unnamed) {
        return -EOPNOTSUPP;
      }
      if (before) ++count;
      return std::nullopt;
    };
    calls.after = [&](DiskCall) {
      if (before) return;
      strike();
      ++count;
    };
    {
      DiskFile file(folder, 64 * kDiskPageBytes, calls, 4 * kDiskPageBytes);
      HostBuffer memory(4 * kDiskPageBytes);
      for (int slots = 0; slots < 3; ++slots) {
        const DiskSlot slot = file.take(4 * kDiskPageBytes);
        std::vector<DiskRange> ranges;
        slot.append_ranges(0, 4 * kDiskPageBytes, memory.data(), ranges);
        file.write(ranges);
        file.read(ranges);
      }
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

TEST(DiskLeftovers, OfAProcessKilledAtAnyCallAreGoneAfterTheNextStart) {
  for (const bool has_unnamed : {true, false}) {
    const TestFolder folder;
    int leftovers = 0;
    for (const bool before : {true, false}) {
      int number = 0;
      for (; kill_at(folder.string(), number, before, has_unnamed); ++number) {
        leftovers += static_cast<int>(folder.names().size());
        {
          const DiskFile next(folder.string(), kDiskPageBytes);
        }
        ASSERT_EQ(folder.names(), Names{}) << "killed at call " << number;
      }
      EXPECT_GT(number, 8);
    }
    EXPECT_EQ(leftovers > 0, !has_unnamed);  // without one the test could not fail
  }
}

}  // namespace
}  // namespace hybridgen
