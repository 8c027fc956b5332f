// SPDX-License-Identifier: Apache-2.0
// A file as memory: its bytes, and what a disk that fails under a reader does. Files that become
// shorter stand for such disks: the system answers both with SIGBUS.
#include "memory/file_mapping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <future>
#include <optional>
#include <sstream>
#include <string>

#include "cpp/memory/faulty_disk.h"
#include "memory/huge_pages.h"
#include "memory/page_calls.h"

namespace hybridgen {
namespace {

/// How a process ended: by the signal, or by a sanitizer that reports it.
bool of_a_bus_error(int status) {
  if (WIFSIGNALED(status)) return WTERMSIG(status) == SIGBUS;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return WEXITSTATUS(status) != 0;
#else
  return false;
#endif
}

class FileMappingTest : public ::testing::Test {
 protected:
  FileMappingTest() {
    file_ = disk_calls().open((folder_.path() / "file").string(), O_RDWR | O_CREAT | O_EXCL, 0600);
    write();
  }
  ~FileMappingTest() override { ::close(file_); }

  void write() const {
    ASSERT_EQ(::pwrite(file_, bytes_.data(), bytes_.size(), 0), std::ssize(bytes_));
  }
  std::int64_t size() const { return std::ssize(bytes_); }
  std::string read(const FileMapping& mapping, std::int64_t begin, std::int64_t count) const {
    return {reinterpret_cast<const char*>(mapping.data()) + begin, static_cast<std::size_t>(count)};
  }
  std::string written(std::int64_t begin, std::int64_t count) const {
    return bytes_.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
  }

  TestFolder folder_;
  std::int64_t page_ = static_cast<std::int64_t>(page_bytes());
  std::string bytes_ = [this] {
    std::string text(static_cast<std::size_t>(5 * page_ + 123), ' ');
    for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 23);
    return text;
  }();
  int file_ = -1;
};

TEST_F(FileMappingTest, IsItsBytes) {
  FileMapping mapping(file_, size(), disk_calls());
  ASSERT_EQ(mapping.error(), 0);
  EXPECT_EQ(mapping.fetch(0, size()), 0);
  EXPECT_EQ(read(mapping, 0, size()), bytes_);
  EXPECT_EQ(mapping.fetch(page_ + 17, 99), 0);
  EXPECT_EQ(read(mapping, page_ + 17, 99), written(page_ + 17, 99));
  EXPECT_EQ(mapping.zero_reads(), 0);
}

// Flags of the area of this process that begins at an address, as proc(5) has them; empty if the
// system does not say.
std::string flags_of(const std::byte* begin) {
  std::ifstream areas("/proc/self/smaps");
  std::ostringstream start;
  start << std::hex << reinterpret_cast<std::uintptr_t>(begin) << '-';
  bool is_it = false;
  for (std::string line; std::getline(areas, line);) {
    is_it |= line.starts_with(start.str());
    if (is_it && line.starts_with("VmFlags:")) return line.substr(8) + ' ';
  }
  return "";
}

TEST_F(FileMappingTest, AsksForHugePages) {
  if (huge_pages().setting == "unknown") {
    GTEST_SKIP() << "this kernel has no transparent huge pages; one that has runs it";
  }
  const FileMapping mapping(file_, size(), disk_calls());
  const std::string flags = flags_of(mapping.data());
  if (flags.empty()) GTEST_SKIP() << "no VmFlags in /proc/self/smaps; Linux has them";
  EXPECT_NE(flags.find(" hg "), std::string::npos) << flags;
}

TEST_F(FileMappingTest, SaysWhatCannotBeFetchedAnyMore) {
  FileMapping mapping(file_, size(), disk_calls());
  ASSERT_EQ(::ftruncate(file_, 2 * page_), 0);
  EXPECT_EQ(mapping.fetch(0, 2 * page_), 0);
  EXPECT_EQ(mapping.fetch(page_, 3 * page_), ENODATA);
  EXPECT_EQ(read(mapping, 0, 2 * page_), written(0, 2 * page_));
  EXPECT_EQ(mapping.zero_reads(), 0) << "nobody has read what is gone";
}

// The rest of the page is zeros then, which the system calls no error.
TEST_F(FileMappingTest, SaysSoOfAFileThatIsCutWithinItsLastPage) {
  FileMapping mapping(file_, size(), disk_calls());
  ASSERT_EQ(::ftruncate(file_, size() - 50), 0);
  EXPECT_EQ(mapping.fetch(5 * page_, 73), 0);
  EXPECT_EQ(mapping.fetch(5 * page_, 123), ENODATA);
}

TEST_F(FileMappingTest, SaysThatADiskFails) {
  FaultyDisk disk;
  disk.answer = [](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call == DiskCall::kFindCached) return -ENOMEM;  // unknown
    if (call == DiskCall::kFetch) return -EFAULT;       // what the system says of an error there
    return {};
  };
  FileMapping mapping(file_, size(), disk);
  EXPECT_FALSE(mapping.is_there());
  EXPECT_FALSE(mapping.has(page_ + 5, 20));
  EXPECT_EQ(mapping.fetch(0, size()), EIO);
}

TEST_F(FileMappingTest, IsAskedForOnlyIfThePageCacheHasItNot) {
  FaultyDisk disk;
  int fetches = 0;
  disk.after = [&](DiskCall call) { fetches += call == DiskCall::kFetch ? 1 : 0; };
  FileMapping mapping(file_, size(), disk);
  EXPECT_EQ(mapping.fetch(0, size()), 0);
  EXPECT_TRUE(mapping.is_there());
  EXPECT_TRUE(mapping.has(page_ + 5, 20));
  EXPECT_EQ(fetches, 0) << "just written";
}

TEST_F(FileMappingTest, GivesZerosForBytesThatAreLostAfterTheyCameAndCountsThem) {
  FileMapping mapping(file_, size(), disk_calls());
  FileMapping other(file_, size(), disk_calls());
  const std::int64_t before = FileMapping::all_zero_reads();
  ASSERT_EQ(mapping.fetch(0, size()), 0);
  ASSERT_EQ(::ftruncate(file_, page_), 0);
  const std::string zeros(static_cast<std::size_t>(page_), '\0');
  EXPECT_TRUE(read(mapping, 2 * page_, page_) == zeros);
  EXPECT_EQ(read(mapping, 4 * page_ + 5, 10), zeros.substr(0, 10));
  EXPECT_EQ(mapping.zero_reads(), 2) << "pages";
  EXPECT_EQ(other.zero_reads(), 0);
  EXPECT_EQ(FileMapping::all_zero_reads(), before + 2);
  EXPECT_TRUE(read(mapping, 0, page_) == written(0, page_)) << "what is there still is";

  write();
  EXPECT_TRUE(read(mapping, 2 * page_, page_) == zeros) << "nobody has asked again";
  EXPECT_EQ(mapping.restore(), 0);
  EXPECT_TRUE(read(mapping, 0, size()) == bytes_);
  EXPECT_EQ(mapping.fetch(0, size()), 0);
  EXPECT_EQ(mapping.zero_reads(), 2);
}

// Until the zeros are gone nobody is told that what lies there is the file's.
TEST_F(FileMappingTest, LetsAFetchWaitForWhoRestores) {
  FaultyDisk disk;
  FileMapping mapping(file_, size(), disk);
  ASSERT_EQ(::ftruncate(file_, page_), 0);
  EXPECT_EQ(read(mapping, 2 * page_, 1), std::string(1, '\0'));
  write();
  std::future<int> other;
  disk.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call == DiskCall::kMap) {
      other = std::async(std::launch::async, [&] { return mapping.fetch(0, size()); });
      EXPECT_EQ(other.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
    }
    return {};
  };
  EXPECT_EQ(mapping.restore(), 0);
  EXPECT_EQ(other.get(), 0);
  EXPECT_TRUE(read(mapping, 0, size()) == bytes_);
}

TEST_F(FileMappingTest, TellsWhenTheSystemHasNone) {
  FaultyDisk disk;
  disk.answer = [](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call == DiskCall::kMap) return -ENODEV;
    return {};
  };
  const FileMapping mapping(file_, size(), disk);
  EXPECT_EQ(mapping.error(), ENODEV);
}

TEST_F(FileMappingTest, LeavesBusErrorsOfOtherMemoryToWhoHandledThemBefore) {
  FileMapping mapping(file_, size(), disk_calls());
  ASSERT_EQ(mapping.error(), 0);
  std::byte* foreign = nullptr;
  ASSERT_EQ(disk_calls().map(file_, size(), foreign), 0);
  ASSERT_EQ(::ftruncate(file_, page_), 0);
  EXPECT_EXIT(
      static_cast<void>(*const_cast<volatile std::byte*>(foreign + 2 * page_)), of_a_bus_error, "");
  EXPECT_EQ(mapping.zero_reads(), 0);
  disk_calls().unmap(foreign, size());
}

void end_by_3(int) { ::_exit(3); }

void end_by_3_for_bus_errors() {
  struct sigaction action{};
  action.sa_handler = end_by_3;
  ::sigaction(SIGBUS, &action, nullptr);
}

TEST_F(FileMappingTest, ComesBeforeHandlersThatAreInstalledLater) {
  FileMapping mapping(file_, size(), disk_calls());
  std::byte* foreign = nullptr;
  ASSERT_EQ(disk_calls().map(file_, size(), foreign), 0);
  ASSERT_EQ(::ftruncate(file_, page_), 0);
  const auto read_lost = [&](const std::byte* data, bool protects) {
    end_by_3_for_bus_errors();
    if (protects) FileMapping::protect();
    static_cast<void>(*const_cast<const volatile std::byte*>(data + 2 * page_));
    ::_exit(mapping.zero_reads() == 1 ? 0 : 1);
  };
  EXPECT_EXIT(read_lost(mapping.data(), false), ::testing::ExitedWithCode(3), "");
  EXPECT_EXIT(read_lost(mapping.data(), true), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(read_lost(foreign, true), ::testing::ExitedWithCode(3), "") << "they are told";
  disk_calls().unmap(foreign, size());
}

TEST_F(FileMappingTest, LeavesBusErrorsThatSomebodySendsToThem) {
  const FileMapping mapping(file_, size(), disk_calls());
  EXPECT_EXIT(::raise(SIGBUS), of_a_bus_error, "");
}

TEST_F(FileMappingTest, ThatEndedIsGuardedNoLonger) {
  std::byte* data = nullptr;
  {
    const FileMapping mapping(file_, size(), disk_calls());
    data = mapping.data();
  }
  void* const again = ::mmap(data,
                             static_cast<std::size_t>(size()),
                             PROT_READ,
                             MAP_SHARED | MAP_FIXED_NOREPLACE,
                             file_,
                             0);
  ASSERT_EQ(again, data);
  ASSERT_EQ(::ftruncate(file_, page_), 0);
  EXPECT_EXIT(
      static_cast<void>(*const_cast<volatile std::byte*>(data + 2 * page_)), of_a_bus_error, "");
  ::munmap(again, static_cast<std::size_t>(size()));
}

}  // namespace
}  // namespace hybridgen
