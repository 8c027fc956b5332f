// SPDX-License-Identifier: Apache-2.0
#include "memory/file_extents.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace hybridgen {
namespace {

using Extents = std::vector<FileExtent>;

TEST(FileExtents, AreHadInOnePieceFromTheStartWhereThereIsOne) {
  FileExtents file;
  file.grow(100);
  EXPECT_EQ(file.take(30), (Extents{{.offset = 0, .bytes = 30}}));
  EXPECT_EQ(file.take(70), (Extents{{.offset = 30, .bytes = 70}}));
  EXPECT_EQ(file.free_bytes(), 0);
}

TEST(FileExtents, WhatIsNotThereIsRefusedAndChangesNothing) {
  FileExtents file;
  file.grow(100);
  EXPECT_TRUE(file.take(101).empty());
  EXPECT_EQ(file.free_bytes(), 100);
}

TEST(FileExtents, GapsTogetherHoldWhatNoneOfThemHolds) {
  FileExtents file;
  file.grow(90);
  const Extents first = file.take(30);
  const Extents second = file.take(30);
  const Extents third = file.take(30);
  file.give_back(first);
  file.give_back(third);
  EXPECT_EQ(file.take(50), (Extents{{.offset = 0, .bytes = 30}, {.offset = 60, .bytes = 20}}));
  EXPECT_EQ(file.free_bytes(), 10);
}

TEST(FileExtents, NeighboursThatComeBackAreOnePieceAgain) {
  FileExtents file;
  file.grow(90);
  const Extents first = file.take(30);
  const Extents second = file.take(30);
  const Extents third = file.take(30);
  file.give_back(first);
  file.give_back(third);
  file.give_back(second);
  EXPECT_EQ(file.take(90), (Extents{{.offset = 0, .bytes = 90}}));
}

TEST(FileExtents, TakenOnesNeverOverlapWhateverComesAndGoes) {
  std::mt19937 random(16);
  FileExtents file;
  std::vector<int> owner;  // of every byte; 0: nobody
  std::vector<std::pair<int, Extents>> held;
  int next = 0;
  for (int round = 0; round < 3000; ++round) {
    const auto draw = [&random](int below) {
      return static_cast<int>(random() % static_cast<unsigned>(below));
    };
    if (draw(40) == 0) {
      const int more = 1 + draw(50);
      file.grow(more);
      owner.resize(owner.size() + static_cast<std::size_t>(more));
    } else if (!held.empty() && draw(2) == 0) {
      const auto which = held.begin() + draw(static_cast<int>(held.size()));
      for (const FileExtent& extent : which->second) {
        for (std::int64_t i = 0; i < extent.bytes; ++i) {
          int& of = owner[static_cast<std::size_t>(extent.offset + i)];
          ASSERT_EQ(of, which->first);
          of = 0;
        }
      }
      file.give_back(which->second);
      held.erase(which);
    } else {
      const std::int64_t wanted = 1 + draw(40);
      const bool is_there = wanted <= file.free_bytes();
      Extents taken = file.take(wanted);
      ASSERT_EQ(taken.empty(), !is_there);
      std::int64_t bytes = 0;
      ++next;
      for (const FileExtent& extent : taken) {
        bytes += extent.bytes;
        for (std::int64_t i = 0; i < extent.bytes; ++i) {
          int& of = owner.at(static_cast<std::size_t>(extent.offset + i));
          ASSERT_EQ(of, 0);
          of = next;
        }
      }
      ASSERT_EQ(bytes, is_there ? wanted : 0);
      if (is_there) held.emplace_back(next, std::move(taken));
    }
    std::int64_t free = 0;
    for (const int of : owner) free += of == 0 ? 1 : 0;
    ASSERT_EQ(file.free_bytes(), free);
    ASSERT_EQ(file.size_bytes(), static_cast<std::int64_t>(owner.size()));
  }
}

}  // namespace
}  // namespace hybridgen
