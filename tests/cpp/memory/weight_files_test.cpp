// SPDX-License-Identifier: Apache-2.0
#include "memory/weight_files.h"

#include <gtest/gtest.h>

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "hybridgen/core/error.h"
#include "memory/disk_queue.h"

namespace hybridgen {
namespace {

std::vector<std::byte> counted(std::size_t count, unsigned first) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>((first + 7 * i) % 251);
  return bytes;
}

template <typename Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "no error";
}

class WeightFilesTest : public ::testing::TestWithParam<bool> {
 protected:
  std::string write(const std::string& name, const std::vector<std::byte>& bytes) const {
    const std::string path = (folder_.path() / name).string();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    return path;
  }
  static std::vector<std::byte> read(WeightFiles& files, std::int64_t offset, std::size_t count) {
    std::vector<std::byte> memory(count);
    const DiskRange all{
        .memory = memory.data(), .offset = offset, .bytes = static_cast<std::int64_t>(count)};
    files.read({&all, 1});
    return memory;
  }
  static std::vector<std::byte> part(const std::vector<std::byte>& bytes,
                                     std::ptrdiff_t begin,
                                     std::ptrdiff_t count) {
    return {bytes.begin() + begin, bytes.begin() + begin + count};
  }

  TestFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(PastThePageCacheOrThroughIt, WeightFilesTest, ::testing::Bool());

TEST_P(WeightFilesTest, GiveAnyBytesOfAnyFile) {
  const auto first = counted(30001, 1);
  const auto second = counted(9, 2);
  WeightFiles files(GetParam());
  const std::int64_t a = files.add(write("a", first), 30001);
  const std::int64_t b = files.add(write("b", second), 9);
  EXPECT_EQ(files.add((folder_.path() / "a").string(), 5), a) << "of one that is known";
  EXPECT_EQ(read(files, a, 30001), first);
  EXPECT_EQ(read(files, b, 9), second);
  for (const std::ptrdiff_t begin : {1, 4095, 4096, 8191, 29000}) {
    EXPECT_EQ(read(files, a + begin, 1000), part(first, begin, 1000)) << begin;
  }
}

TEST_P(WeightFilesTest, KeepWhatIsAppendedInAFileWithoutAName) {
  const auto first = counted(5000, 3);
  const auto second = counted(17, 4);
  WeightFiles files(GetParam());
  const std::int64_t a = files.append(folder_.string(), first);
  const std::int64_t other = files.add(write("other", second), 17);
  const std::int64_t b = files.append(folder_.string(), second);
  EXPECT_EQ(read(files, a, 5000), first);
  EXPECT_EQ(read(files, b, 17), second);
  EXPECT_EQ(read(files, other, 17), second);
  EXPECT_EQ(folder_.names(), std::vector<std::string>{"other"});
}

TEST_P(WeightFilesTest, AreReadByManyThreadsAtATime) {
  const auto bytes = counted(std::size_t{3} << 20, 5);
  WeightFiles files(GetParam());
  const std::int64_t begin = files.add(write("a", bytes), std::ssize(bytes));
  TraceRecorder trace;
  DiskQueue queue(files, trace, 4, 1 << 16);
  for (int turn = 0; turn < 3; ++turn) {
    std::vector<std::byte> memory(bytes.size() - 3);
    DiskTransfer transfer;
    transfer.ranges = {{.memory = memory.data(), .offset = begin + 3, .bytes = std::ssize(memory)}};
    queue.submit(transfer);
    queue.wait(transfer);
    EXPECT_EQ(memory, part(bytes, 3, std::ssize(memory)));
  }
}

TEST_P(WeightFilesTest, NameTheFileThatIsTooShortOrCannotBeRead) {
  const auto bytes = counted(10000, 6);
  const std::string path = write("a", bytes);
  FaultyDisk disk;
  bool is_broken = false;
  disk.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    if (is_broken && call == DiskCall::kRead) return -EIO;
    return {};
  };
  disk.most_bytes = 4096;  // short reads are no errors
  WeightFiles files(GetParam(), disk);
  EXPECT_THROW(files.add(path, 10001), CheckpointError);
  EXPECT_THROW(files.add(path + "-missing", 1), CheckpointError);
  const std::int64_t begin = files.add(path, 10000);
  EXPECT_EQ(read(files, begin, 10000), bytes);
  const auto message_of_read = [&] {
    try {
      read(files, begin, 10000);
    } catch (const DeviceError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  is_broken = true;
  EXPECT_NE(message_of_read().find(path + ": could not read"), std::string::npos);
  is_broken = false;
  std::filesystem::resize_file(path, 5000);
  EXPECT_NE(message_of_read().find("the file ends before"), std::string::npos);
}

TEST(WeightFiles, AreReadThroughThePageCacheWhereAFileSystemHasNoOtherWay) {
  const TestFolder folder;
  const auto bytes = counted(5000, 7);
  FaultyDisk disk;
  disk.answer = [](DiskCall call, int flags) -> std::optional<std::int64_t> {
    if (call == DiskCall::kOpen && (flags & O_DIRECT) != 0) return -EINVAL;
    if (call == DiskCall::kOpen && (flags & O_TMPFILE) == O_TMPFILE) return -EOPNOTSUPP;
    return {};
  };
  WeightFiles files(/*wants_direct=*/true, disk);
  const std::int64_t begin = files.append(folder.string(), bytes);
  std::vector<std::byte> memory(5000);
  const DiskRange all{.memory = memory.data(), .offset = begin, .bytes = 5000};
  files.read({&all, 1});
  EXPECT_EQ(memory, bytes);
  EXPECT_TRUE(folder.names().empty());
}

TEST_P(WeightFilesTest, AreMemoryWhereTheyLie) {
  const auto first = counted(30001, 1);
  const auto packed = counted(5000, 3);
  WeightFiles files(GetParam());
  const std::int64_t a = files.add(write("a", first), 30001);
  const std::int64_t own = files.append(folder_.string(), packed);
  for (const auto& [offset, bytes] :
       {std::pair(a + 100, part(first, 100, 9000)), std::pair(own + 7, part(packed, 7, 4993))}) {
    const DiskRange range{
        .memory = files.address_of(offset), .offset = offset, .bytes = std::ssize(bytes)};
    files.fetch({&range, 1});
    EXPECT_TRUE(files.have({&range, 1}));
    EXPECT_TRUE(std::ranges::equal(bytes, std::span(range.memory, bytes.size())));
  }
}

TEST_P(WeightFilesTest, ThatEndTooSoonAreNamedBeforeAndAfterTheyAreRead) {
  const auto bytes = counted(30001, 1);
  const std::string whole(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::string path = write("a", bytes);
  WeightFiles files(GetParam());
  const std::int64_t a = files.add(path, 30001);
  const DiskRange range{.memory = files.address_of(a), .offset = a, .bytes = 30001};
  const std::int64_t seen = files.zero_reads();
  files.fetch({&range, 1});
  files.check_reads(seen);
  std::filesystem::resize_file(path, 5000);
  EXPECT_FALSE(files.have({&range, 1}));
  const std::string before = error_of([&] { files.fetch({&range, 1}); });
  EXPECT_NE(before.find(path + ": could not read 30001 bytes at 0: the file ends before"),
            std::string::npos)
      << before;
  files.check_reads(seen);
  EXPECT_EQ(range.memory[20000], std::byte{0});
  const std::string after = error_of([&] { files.check_reads(seen); });
  EXPECT_NE(after.find(path + ": could not read again"), std::string::npos) << after;
  files.check_reads(files.zero_reads());
  std::ofstream(path, std::ios::binary | std::ios::in).write(whole.data(), std::ssize(whole));
  files.restore();
  EXPECT_EQ(range.memory[20000], static_cast<std::byte>(whole[20000]));
}

}  // namespace
}  // namespace hybridgen
