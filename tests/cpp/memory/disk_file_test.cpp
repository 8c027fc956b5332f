// SPDX-License-Identifier: Apache-2.0
#include "memory/disk_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "memory/host_buffer.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kPage = kDiskPageBytes;

HostBuffer pattern(std::int64_t bytes, unsigned seed) {
  HostBuffer buffer(static_cast<std::size_t>(bytes));
  for (std::int64_t i = 0; i < bytes; ++i) {
    buffer.data()[i] = static_cast<std::byte>((static_cast<unsigned>(i) * 31 + seed) >> 3);
  }
  return buffer;
}

bool is_same(const HostBuffer& a, const HostBuffer& b) {
  return a.size_bytes() == b.size_bytes() &&
         std::equal(a.data(), a.data() + a.size_bytes(), b.data());
}

std::vector<DiskRange> ranges_of(const DiskSlot& slot, HostBuffer& memory) {
  std::vector<DiskRange> ranges;
  slot.append_ranges(0, static_cast<std::int64_t>(memory.size_bytes()), memory.data(), ranges);
  return ranges;
}

/// What `act` throws, as text that must hold all of `parts`.
template <typename Exception>
void expect_named(const std::function<void()>& act, const std::vector<std::string>& parts) {
  try {
    act();
    FAIL() << "nothing was thrown";
  } catch (const Exception& error) {
    const std::string text = error.what();
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
    }
  }
}

/// How file systems differ.
struct Kind {
  const char* name;
  bool has_unnamed;
  bool opens_direct;  ///< open(2) takes O_DIRECT
  bool is_direct;     ///< and so do reads and writes
  bool reserves;
};

void imitate(const Kind& kind, FaultyDisk& calls) {
  auto is_open_direct = std::make_shared<bool>(true);
  calls.answer = [kind, is_open_direct](DiskCall call, int flags) -> std::optional<std::int64_t> {
    if (call == DiskCall::kOpen) {
      if ((flags & O_TMPFILE) == O_TMPFILE && !kind.has_unnamed) return -EOPNOTSUPP;
      *is_open_direct = (flags & O_DIRECT) != 0;
      if (*is_open_direct && !kind.opens_direct) return -EINVAL;
    }
    if (call == DiskCall::kSetFlags) *is_open_direct = (flags & O_DIRECT) != 0;
    const bool moves = call == DiskCall::kRead || call == DiskCall::kWrite;
    if (moves && *is_open_direct && !kind.is_direct) return -EINVAL;
    if (call == DiskCall::kReserve && !kind.reserves) return -EOPNOTSUPP;
    return std::nullopt;
  };
}

class DiskFileOn : public testing::TestWithParam<Kind> {};

TEST_P(DiskFileOn, GivesBackWhatWasWrittenAndLeavesNothing) {
  const TestFolder folder;
  FaultyDisk calls;
  imitate(GetParam(), calls);
  {
    DiskFile file(folder.string(), 64 * kPage, calls, 8 * kPage);
    EXPECT_EQ(folder.names(), std::vector<std::string>{});
    EXPECT_EQ(file.is_unnamed(), GetParam().has_unnamed);
    EXPECT_EQ(file.is_direct(), GetParam().opens_direct && GetParam().is_direct);
    EXPECT_EQ(file.is_reserved(), GetParam().reserves);
    const DiskSlot first = file.take(5 * kPage);
    const DiskSlot second = file.take(20 * kPage - 1);
    EXPECT_EQ(second.size_bytes(), 20 * kPage);
    HostBuffer written = pattern(5 * kPage, 1);
    HostBuffer others = pattern(20 * kPage, 2);
    file.write(ranges_of(first, written));
    for (const DiskRange& range : ranges_of(second, others)) file.write({&range, 1});
    HostBuffer read(5 * kPage);
    file.read(ranges_of(first, read));
    EXPECT_TRUE(is_same(read, written));
    HostBuffer read_others(20 * kPage);
    for (const DiskRange& range : ranges_of(second, read_others)) file.read({&range, 1});
    EXPECT_TRUE(is_same(read_others, others));
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{});
}

INSTANTIATE_TEST_SUITE_P(FileSystems,
                         DiskFileOn,
                         testing::Values(Kind{"Ext4", true, true, true, true},
                                         Kind{"OldTmpfs", true, false, false, true},
                                         Kind{"OpensDirectOnly", true, true, false, true},
                                         Kind{"Overlay", false, true, true, true},
                                         Kind{"Nfs3", false, true, true, false},
                                         Kind{"Fuse", false, false, false, false}),
                         [](const auto& kind) { return std::string(kind.param.name); });

TEST(DiskFile, RefusesAFolderThatIsNoneAtOnce) {
  const TestFolder folder;
  expect_named<ConfigError>([&] { DiskFile(folder.string() + "/none", kPage); },
                            {"/none", "No such file or directory", "hg.Disk(path, size)"});
}

TEST(DiskFile, RefusesAFolderThatMayNotBeWrittenToAtOnce) {
  const TestFolder folder;
  for (const int error : {EACCES, EROFS, EPERM, ENOTDIR}) {
    FaultyDisk calls;
    calls.answer = [error](DiskCall call, int) -> std::optional<std::int64_t> {
      return call == DiskCall::kOpen ? std::optional<std::int64_t>(-error) : std::nullopt;
    };
    expect_named<ConfigError>([&] { DiskFile(folder.string(), kPage, calls); },
                              {folder.string(), "hg.Disk(path, size)"});
  }
}

TEST(DiskFile, RefusesMoreThanTheFileSystemHasFreeAtOnce) {
  const TestFolder folder;
  FaultyDisk calls;
  calls.answer = [](DiskCall call, int) -> std::optional<std::int64_t> {
    return call == DiskCall::kFreeBytes ? std::optional<std::int64_t>(10 * kPage) : std::nullopt;
  };
  expect_named<ConfigError>([&] { DiskFile(folder.string(), 11 * kPage, calls); },
                            {"44.0 KiB", "40.0 KiB", folder.string()});
  EXPECT_NO_THROW(DiskFile(folder.string(), 10 * kPage, calls));
  EXPECT_THROW(DiskFile(folder.string(), 1, calls), ConfigError);
}

TEST(DiskFile, GrowsInStepsAndReservesThem) {
  const TestFolder folder;
  FaultyDisk calls;
  int reservations = 0;
  calls.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    reservations += call == DiskCall::kReserve ? 1 : 0;
    return std::nullopt;
  };
  DiskFile file(folder.string(), 10 * kPage, calls, 4 * kPage);
  EXPECT_EQ(reservations, 1);
  const DiskSlot first = file.take(3 * kPage);
  EXPECT_EQ(reservations, 1);
  const DiskSlot second = file.take(6 * kPage);
  EXPECT_EQ(reservations, 2);
  EXPECT_EQ(file.taken_bytes(), 9 * kPage);
}

TEST(DiskFile, ThatIsTakenSaysSoAndHasRoomAgainOnceASlotGoes) {
  const TestFolder folder;
  DiskFile file(folder.string(), 8 * kPage);
  std::optional<DiskSlot> all = file.take(8 * kPage);
  expect_named<OutOfMemoryError>([&] { static_cast<void>(file.take(kPage)); },
                                 {"4.0 KiB", "32.0 KiB", folder.string()});
  all.reset();
  EXPECT_EQ(file.taken_bytes(), 0);
  EXPECT_NO_THROW(static_cast<void>(file.take(8 * kPage)));
}

TEST(DiskFile, OfAFullFileSystemTakesWhatIsNeededInsteadOfAStep) {
  const TestFolder folder;
  FaultyDisk calls;
  bool is_full = false;
  int refused = 0;
  calls.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call != DiskCall::kReserve || !is_full || refused++ > 0) return std::nullopt;
    return -ENOSPC;
  };
  DiskFile file(folder.string(), 20 * kPage, calls, 4 * kPage);
  is_full = true;
  EXPECT_NO_THROW(static_cast<void>(file.take(5 * kPage)));
  EXPECT_EQ(refused, 2);
}

TEST(DiskFile, AFullFileSystemIsOutOfMemoryAndNothingIsLost) {
  const TestFolder folder;
  FaultyDisk calls;
  bool is_full = false;
  calls.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    return call == DiskCall::kReserve && is_full ? std::optional<std::int64_t>(-ENOSPC)
                                                 : std::nullopt;
  };
  DiskFile file(folder.string(), 20 * kPage, calls, 4 * kPage);
  is_full = true;
  expect_named<OutOfMemoryError>([&] { static_cast<void>(file.take(5 * kPage)); },
                                 {folder.string(), "No space left on device"});
  EXPECT_EQ(file.taken_bytes(), 0);
  is_full = false;
  EXPECT_EQ(file.take(5 * kPage).size_bytes(), 5 * kPage);
}

TEST(DiskFile, AMovedSlotIsGivenBackOnce) {
  const TestFolder folder;
  DiskFile file(folder.string(), 8 * kPage);
  DiskSlot first = file.take(2 * kPage);
  DiskSlot second = std::move(first);
  EXPECT_EQ(file.taken_bytes(), 2 * kPage);
  first = file.take(3 * kPage);
  second = std::move(first);
  EXPECT_EQ(file.taken_bytes(), 3 * kPage);
}

class DiskFileTransfers : public testing::Test {
 protected:
  static constexpr std::int64_t kBytes = 6 * kPage;

  std::vector<DiskRange> ranges(HostBuffer& memory) const { return ranges_of(slot_, memory); }

  TestFolder folder_;
  FaultyDisk calls_;
  DiskFile file_{folder_.string(), 64 * kPage, calls_};
  DiskSlot slot_ = file_.take(kBytes);
};

TEST_F(DiskFileTransfers, AreWholeThoughCallsMoveLessOrAreInterrupted) {
  for (const std::int64_t most : {kPage, kPage + 100, 3 * kPage - 1}) {
    HostBuffer written = pattern(kBytes, static_cast<unsigned>(most));
    HostBuffer read(kBytes);
    int calls = 0;
    calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
      const bool moves = call == DiskCall::kRead || call == DiskCall::kWrite;
      return moves && ++calls % 2 == 1 ? std::optional<std::int64_t>(-EINTR) : std::nullopt;
    };
    // O_DIRECT takes whole pages only, so a disk that moves less is imitated by its answer alone.
    calls_.most_bytes = most / kPage * kPage;
    file_.write(ranges(written));
    file_.read(ranges(read));
    EXPECT_TRUE(is_same(read, written));
    EXPECT_GT(calls, 4);
  }
}

TEST_F(DiskFileTransfers, SomeMemoryHereSomeThere) {
  HostBuffer memory = pattern(2 * kBytes, 3);
  std::vector<DiskRange> parts;
  slot_.append_ranges(0, kPage, memory.data() + kBytes, parts);
  slot_.append_ranges(kPage, 2 * kPage, memory.data(), parts);
  ASSERT_EQ(parts.size(), 2U);
  file_.write(parts);
  HostBuffer read(3 * kPage);
  file_.read(std::vector<DiskRange>{
      {.memory = read.data(), .offset = parts[0].offset, .bytes = 3 * kPage}});
  EXPECT_TRUE(std::equal(read.data(), read.data() + kPage, memory.data() + kBytes));
  EXPECT_TRUE(std::equal(read.data() + kPage, read.data() + 3 * kPage, memory.data()));
}

TEST_F(DiskFileTransfers, ThatFailSayWhereAndWhy) {
  HostBuffer memory = pattern(kBytes, 4);
  for (const bool is_write : {false, true}) {
    calls_.answer = [is_write](DiskCall call, int) -> std::optional<std::int64_t> {
      return call == (is_write ? DiskCall::kWrite : DiskCall::kRead)
                 ? std::optional<std::int64_t>(-EIO)
                 : std::nullopt;
    };
    expect_named<DeviceError>(
        [&] { is_write ? file_.write(ranges(memory)) : file_.read(ranges(memory)); },
        {folder_.string(), is_write ? "write" : "read", "Input/output error", "24576 bytes at 0"});
  }
}

TEST_F(DiskFileTransfers, ThatFindTheDiskFullAreOutOfMemory) {
  HostBuffer memory = pattern(kBytes, 5);
  for (const int error : {ENOSPC, EDQUOT}) {
    calls_.answer = [error](DiskCall call, int) -> std::optional<std::int64_t> {
      return call == DiskCall::kWrite ? std::optional<std::int64_t>(-error) : std::nullopt;
    };
    EXPECT_THROW(file_.write(ranges(memory)), OutOfMemoryError);
  }
  calls_.answer = nullptr;
  EXPECT_NO_THROW(file_.write(ranges(memory)));
}

TEST_F(DiskFileTransfers, ThatMoveNothingAnyMoreEnd) {
  HostBuffer memory = pattern(kBytes, 6);
  calls_.answer = [](DiskCall call, int) -> std::optional<std::int64_t> {
    return call == DiskCall::kRead ? std::optional<std::int64_t>(0) : std::nullopt;
  };
  EXPECT_THROW(file_.read(ranges(memory)), DeviceError);
}

TEST(DiskFile, ThatGoesThroughThePageCacheWritesOutAndTellsItToForget) {
  const TestFolder folder;
  FaultyDisk calls;
  int flushes = 0;
  int forgets = 0;
  bool flush_fails = false;
  calls.answer = [&](DiskCall call, int flags) -> std::optional<std::int64_t> {
    if (call == DiskCall::kOpen && (flags & O_DIRECT) != 0) return -EINVAL;
    forgets += call == DiskCall::kForget ? 1 : 0;
    if (call != DiskCall::kFlush) return std::nullopt;
    ++flushes;
    return flush_fails ? std::optional<std::int64_t>(-EIO) : std::nullopt;
  };
  DiskFile file(folder.string(), 8 * kPage, calls);
  const DiskSlot slot = file.take(2 * kPage);
  HostBuffer memory = pattern(2 * kPage, 7);
  file.write(ranges_of(slot, memory));
  EXPECT_EQ(flushes, 1);
  EXPECT_EQ(forgets, 1);
  file.read(ranges_of(slot, memory));
  EXPECT_EQ(flushes, 1);
  EXPECT_EQ(forgets, 2);
  flush_fails = true;
  EXPECT_THROW(file.write(ranges_of(slot, memory)), DeviceError);
}

TEST(DiskFile, EndsInANamedErrorWhicheverCallFailsWhileItOpens) {
  const TestFolder folder;
  for (const int error : {EIO, ENOSPC, ENOMEM, EMFILE}) {
    for (int failing = 0; failing < 20; ++failing) {
      FaultyDisk calls;
      int call_number = 0;
      bool has_failed = false;
      calls.answer = [&](DiskCall call, int flags) -> std::optional<std::int64_t> {
        if (call == DiskCall::kOpen && (flags & O_TMPFILE) == O_TMPFILE) return -EOPNOTSUPP;
        if (call == DiskCall::kClose || call_number++ != failing) return std::nullopt;
        has_failed = true;
        return -error;
      };
      try {
        const DiskFile file(folder.string(), 8 * kPage, calls);
        EXPECT_FALSE(has_failed) << failing;
      } catch (const Error& thrown) {
        EXPECT_NE(std::string(thrown.what()).find(folder.string()), std::string::npos);
      }
      // Only a name that cannot be taken away stays, and the next start takes it.
      {
        const DiskFile next(folder.string(), 8 * kPage);
      }
      for (const std::string& name : folder.names()) {
        EXPECT_NE(name.find(std::to_string(::getpid())), std::string::npos) << "of a living owner";
        std::filesystem::remove(folder.path() / name);
      }
      if (!has_failed) break;
    }
  }
}

}  // namespace
}  // namespace hybridgen
