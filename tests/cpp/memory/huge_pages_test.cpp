// SPDX-License-Identifier: Apache-2.0
#include "memory/huge_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "memory/host_buffer.h"

namespace hybridgen {
namespace {

TEST(HugePages, TheSystemsSettingIsTheWordInBrackets) {
  EXPECT_EQ(chosen_word("always [madvise] never"), "madvise");
  EXPECT_EQ(chosen_word("[always] madvise never"), "always");
  EXPECT_EQ(chosen_word(""), "unknown");
  EXPECT_EQ(chosen_word("] ["), "unknown");
}

TEST(HugePages, WhatWasObtainedIsAnonymousMemoryInKibibytes) {
  std::istringstream smaps(
      "55d0-7ffc ---p 00000000 00:00 0    [rollup]\n"
      "Rss:               94208 kB\n"
      "AnonHugePages:     61440 kB\n"
      "ShmemPmdMapped:     2048 kB\n");
  EXPECT_EQ(anonymous_huge_bytes(smaps), std::int64_t{60} << 20);
  std::istringstream without("Rss:    94208 kB\n");
  EXPECT_EQ(anonymous_huge_bytes(without), 0);
}

TEST(HugePages, OfSomeAreasAreThoseOfTheirLinesAlone) {
  const std::string text =
      "55d0-7ffc rw-p 00000000 00:00 0\n"
      "AnonHugePages:     2048 kB\n"
      "7ffc-8ffc rw-p 00000000 00:00 0    [heap]\n"
      "Size:              8192 kB\n"
      "AnonHugePages:     4096 kB\n"
      "FilePmdMapped:     1024 kB\n";
  std::istringstream smaps(text);
  EXPECT_EQ(anonymous_huge_bytes_of(
                smaps, [](auto begin, auto end) { return begin == 0x7ffc && end == 0x8ffc; }),
            std::int64_t{4} << 20);
  std::istringstream all(text);
  EXPECT_EQ(anonymous_huge_bytes_of(all, [](auto, auto) { return true; }), std::int64_t{6} << 20);
}

TEST(HugePages, LargeBuffersAskForThemAsLongAsTheyLive) {
  const std::int64_t before = huge_pages().asked_bytes;
  {
    HostBuffer small(kHugePageBytes - 1);
    EXPECT_EQ(huge_pages().asked_bytes, before);
    HostBuffer large(3 * kHugePageBytes);
    const HostBuffer moved(std::move(large));
    EXPECT_EQ(huge_pages().asked_bytes, before + 3 * std::int64_t{kHugePageBytes});
  }
  EXPECT_EQ(huge_pages().asked_bytes, before);
}

TEST(HugePages, WhatWasObtainedIsReadBack) {
  const std::string setting = huge_pages().setting;
  if (setting != "always" && setting != "madvise") {
    GTEST_SKIP() << "huge pages are " << setting << " here; 'madvise' or 'always' would run it";
  }
  const std::int64_t before = huge_pages().obtained_bytes;
  HostBuffer buffer(16 * kHugePageBytes);
  std::fill_n(buffer.data(), buffer.size_bytes(), std::byte{1});
  const std::int64_t obtained = huge_pages().obtained_bytes - before;
  // A system without free huge pages gives fewer, which is no fault.
  EXPECT_GE(obtained, 0);
  EXPECT_LE(obtained, 16 * std::int64_t{kHugePageBytes});
}

}  // namespace
}  // namespace hybridgen
