// SPDX-License-Identifier: Apache-2.0
// Where pages come to lie, as the kernel says, and what happens when a node is full.
#include <csignal>
#include <cstring>
#include <iostream>
#include <span>

#include "hybridgen/core/error.h"
#include "memory/host_buffer.h"
#include "two_nodes.h"

namespace hybridgen {
namespace {

using Placement = TwoNodes;
using Exhaustion = TwoNodes;
using Migration = TwoNodes;

constexpr std::size_t kBytes = std::size_t{32} << 20;

PageMove move(PlacedMemory& memory, const PagePlace& place) {
  const ByteRange range = all_of(memory);
  return memory.move(std::span(&range, 1), place);
}

/// The first word of page i is i.
void number_pages(PlacedMemory& memory) {
  for (std::size_t at = 0; at < memory.size_bytes(); at += kPage) {
    std::memcpy(memory.data() + at, &at, sizeof(at));
  }
}

bool pages_are_numbered(const PlacedMemory& memory) {
  for (std::size_t at = 0; at < memory.size_bytes(); at += kPage) {
    std::size_t number = 0;
    std::memcpy(&number, memory.data() + at, sizeof(number));
    if (number != at) return false;
  }
  return true;
}

std::map<int, std::int64_t> nodes_of(const PlacedMemory& memory) {
  return bytes_by_node(memory.data(), memory.size_bytes());
}

std::map<int, std::int64_t> only(int node, std::size_t bytes) {
  return {{node, static_cast<std::int64_t>(bytes)}};
}

TEST_F(Placement, ABufferBoundToANodeLiesThere) {
  for (const int node : {dram_, slow_}) {
    HostBuffer buffer(kBytes, node);
    std::memset(buffer.data(), 1, buffer.size_bytes());
    EXPECT_EQ(bytes_by_node(buffer.data(), kBytes), only(node, kBytes));
  }
}

TEST_F(Placement, PagesLieOnTheNodeOfTheirPlaceAndAreZero) {
  for (const PagePlace& place : {dram_place(), slow_place()}) {
    PlacedMemory memory(kBytes);
    EXPECT_TRUE(nodes_of(memory).empty()) << "nothing is there before it is taken";
    take(memory, place);
    EXPECT_EQ(nodes_of(memory), only(place.nodes.front(), kBytes));
    const ByteRange range = all_of(memory);
    EXPECT_EQ(memory.found(std::span(&range, 1)).by_node, nodes_of(memory));
    for (std::size_t at = 0; at < kBytes; at += kPage / 2) {
      ASSERT_EQ(memory.data()[at], std::byte{0}) << at;
    }
  }
}

TEST_F(Placement, PartsOfOneMemoryLieOnDifferentNodes) {
  PlacedMemory memory(2 * kBytes);
  const ByteRange first{0, kBytes};
  const ByteRange second{kBytes, kBytes};
  memory.take(std::span(&first, 1), dram_place(), "test");
  memory.take(std::span(&second, 1), slow_place(), "test");
  EXPECT_EQ(bytes_by_node(memory.data(), kBytes), only(dram_, kBytes));
  EXPECT_EQ(bytes_by_node(memory.data() + kBytes, kBytes), only(slow_, kBytes));
}

TEST_F(Placement, InterleavedPagesLieOnBothNodesByTurns) {
  PlacedMemory memory(kBytes);
  PagePlace place = dram_place();
  place.nodes = {dram_, slow_};
  place.interleaves = true;
  take(memory, place);
  const std::map<int, std::int64_t> found = nodes_of(memory);
  std::cout << "interleaved: " << in_words(found) << '\n';
  EXPECT_EQ(found, (std::map<int, std::int64_t>{{dram_, kBytes / 2}, {slow_, kBytes / 2}}));
}

TEST_F(Placement, JoinedPagesStayOnTheirNodeWithWhatIsWritten) {
  PlacedMemory memory(kBytes);
  take(memory, slow_place());
  number_pages(memory);
  memory.join(all_of(memory));
  EXPECT_EQ(nodes_of(memory), only(slow_, kBytes));
  EXPECT_TRUE(pages_are_numbered(memory));
}

TEST_F(Placement, WhatIsGivenBackIsFreeOnItsNodeAgain) {
  const std::int64_t before = free_bytes(slow_);
  PlacedMemory memory(kBytes);
  take(memory, slow_place());
  EXPECT_LT(free_bytes(slow_), before - static_cast<std::int64_t>(kBytes) / 2);
  const ByteRange range = all_of(memory);
  memory.give_back(std::span(&range, 1));
  EXPECT_TRUE(nodes_of(memory).empty());
  EXPECT_NEAR(static_cast<double>(free_bytes(slow_)), static_cast<double>(before), 16.0 * kMiB);
}

TEST_F(Exhaustion, ABoundBufferBeyondTheNodesSizeEndsTheProcess) {
  // The trap that PlacedMemory is there to avoid.
  HYBRIDGEN_SKIP_UNLESS_SMALL(slow_);
  const auto bytes = static_cast<std::size_t>(find_numa_node(slow_).total_bytes + 16 * kMiB);
  const int status = status_of_child([&] {
    HostBuffer buffer(bytes, slow_);
    std::memset(buffer.data(), 1, buffer.size_bytes());
    return 0;
  });
  EXPECT_EQ(status, 1000 + SIGKILL);
}

TEST_F(Exhaustion, OfTheSlowNodeIsAnErrorThatNamesItAndLeavesNothing) {
  HYBRIDGEN_SKIP_UNLESS_SMALL(slow_);
  const std::int64_t before = free_bytes(slow_);
  std::int64_t taken_bytes = 0;
  {
    std::vector<PlacedMemory> taken;
    const std::string refusal = fill(slow_place(), std::size_t{8} << 20, taken);
    for (const PlacedMemory& memory : taken) {
      ASSERT_EQ(nodes_of(memory), only(slow_, memory.size_bytes()));
      taken_bytes += static_cast<std::int64_t>(memory.size_bytes());
    }
    std::cout << "taken: " << taken_bytes / kMiB << " of " << before / kMiB
              << " MiB that were free; then: " << refusal << '\n';
    EXPECT_NE(refusal.find("the cxl tier is full"), std::string::npos) << refusal;
    EXPECT_NE(refusal.find("node " + std::to_string(slow_)), std::string::npos) << refusal;
    EXPECT_NE(refusal.find("KVConfig(cxl=...)"), std::string::npos) << refusal;
  }
  EXPECT_GT(taken_bytes, before * 3 / 4);
  EXPECT_NEAR(static_cast<double>(free_bytes(slow_)), static_cast<double>(before), 16.0 * kMiB);
}

TEST_F(Exhaustion, OfTheDramNodeIsAnErrorThatNamesItAndLeavesNothing) {
  HYBRIDGEN_SKIP_UNLESS_SMALL(dram_);
  // In a child: the system wants memory of this node, too.
  const int status = status_of_child([&] {
    std::vector<PlacedMemory> taken;
    const std::string refusal = fill(dram_place(), std::size_t{32} << 20, taken);
    std::int64_t bytes = 0;
    for (const PlacedMemory& memory : taken) {
      if (nodes_of(memory) != only(dram_, memory.size_bytes())) return 2;
      bytes += static_cast<std::int64_t>(memory.size_bytes());
    }
    if (bytes < free_bytes(dram_)) return 3;
    return refusal.find("the dram tier is full") == std::string::npos ? 4 : 0;
  });
  EXPECT_EQ(status, 0);
}

TEST_F(Exhaustion, OfANodeThatSomebodyElseFillsMeanwhileIsTheSameError) {
  HYBRIDGEN_SKIP_UNLESS_SMALL(slow_);
  // More than there is, less than what is free: the check beforehand lets it pass, and the pages
  // that spill to the other node are noticed.
  std::vector<PlacedMemory> taken;
  fill(slow_place(), std::size_t{16} << 20, taken);
  const std::int64_t left = free_bytes(slow_);
  PlacedMemory memory(static_cast<std::size_t>(left) / kPage * kPage);
  prefer_node(memory.data(), memory.size_bytes(), slow_);
  std::memset(memory.data(), 1, memory.size_bytes());
  std::cout << "preferred beyond the end: " << in_words(nodes_of(memory)) << '\n';
  EXPECT_GT(nodes_of(memory)[slow_], 0);
  PlacedMemory late(std::size_t{4} << 20);
  EXPECT_THROW(take(late, slow_place()), OutOfMemoryError);
  EXPECT_TRUE(nodes_of(late).empty());
}

TEST_F(Migration, MovesPagesBothWaysUnderUnchangedAddresses) {
  PlacedMemory memory(kBytes);
  take(memory, dram_place());
  number_pages(memory);
  const std::byte* const address = memory.data();
  for (const PagePlace& place : {slow_place(), dram_place()}) {
    const PageMove moved = move(memory, place);
    EXPECT_EQ(moved.moved_bytes, static_cast<std::int64_t>(kBytes)) << moved.why;
    EXPECT_EQ(moved.left_bytes, 0);
    EXPECT_EQ(memory.data(), address);
    EXPECT_EQ(nodes_of(memory), only(place.nodes.front(), kBytes));
    EXPECT_TRUE(pages_are_numbered(memory));
  }
}

TEST_F(Migration, MovesHugePagesToo) {
  PlacedMemory memory(kBytes);
  take(memory, dram_place());
  number_pages(memory);
  memory.join(all_of(memory));
  const PageMove moved = move(memory, slow_place());
  EXPECT_EQ(moved.left_bytes, 0) << moved.why;
  EXPECT_EQ(nodes_of(memory), only(slow_, kBytes));
  EXPECT_TRUE(pages_are_numbered(memory));
}

TEST_F(Migration, ToAFullNodeLeavesPagesWhereTheyAreAndSaysWhy) {
  HYBRIDGEN_SKIP_UNLESS_SMALL(slow_);
  PlacedMemory memory(kBytes);
  take(memory, dram_place());
  number_pages(memory);
  std::vector<PlacedMemory> taken;
  fill(slow_place(), std::size_t{4} << 20, taken);
  const PageMove moved = move(memory, slow_place());
  std::cout << "moved " << moved.moved_bytes / kMiB << " MiB, left " << moved.left_bytes / kMiB
            << " MiB: " << moved.why << '\n';
  EXPECT_GT(moved.left_bytes, 0);
  EXPECT_FALSE(moved.why.empty());
  EXPECT_EQ(moved.moved_bytes + moved.left_bytes, static_cast<std::int64_t>(kBytes));
  EXPECT_TRUE(pages_are_numbered(memory));
  taken.clear();
  EXPECT_EQ(move(memory, slow_place()).left_bytes, 0) << "and later it goes";
  EXPECT_TRUE(pages_are_numbered(memory));
}

}  // namespace
}  // namespace hybridgen
