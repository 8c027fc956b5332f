// SPDX-License-Identifier: Apache-2.0
#include "memory/placed_memory.h"

#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"
#include "memory/huge_pages.h"
#include "memory/numa.h"
#include "support/invented_nodes.h"

namespace hybridgen {
namespace {

using Call = InventedNodes::Call;

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::int64_t kMiBs = std::int64_t{1} << 20;

PagePlace dram() { return {.nodes = {0}, .setting = "KVConfig(dram=...)"}; }
PagePlace cxl() { return {.nodes = {1}, .tier = TierKind::kCxl, .setting = "KVConfig(cxl=...)"}; }

std::vector<ByteRange> all_of(const PlacedMemory& memory) { return {{0, memory.size_bytes()}}; }

void expect_says(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

/// The message of the OutOfMemoryError that `work` throws.
template <typename Work>
std::string refusal_of(const Work& work) {
  try {
    work();
  } catch (const OutOfMemoryError& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(PlacedMemory, IsZeroWritableAlignedAndTakesNothingBeforeItIsWritten) {
  for (const std::size_t bytes : {std::size_t{1}, page_bytes(), 2 * kMiB, 3 * kMiB + 5}) {
    PlacedMemory memory(bytes);
    ASSERT_GE(memory.size_bytes(), bytes);
    EXPECT_LT(memory.size_bytes(), bytes + page_bytes());
    const std::size_t alignment = bytes >= 2 * kMiB ? 2 * kMiB : page_bytes();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.data()) % alignment, 0U);
    EXPECT_EQ(memory.found(all_of(memory)).bytes(), 0);
    std::byte* const end = memory.data() + memory.size_bytes();
    EXPECT_TRUE(std::all_of(memory.data(), end, [](std::byte b) { return b == std::byte{0}; }));
    std::fill(memory.data(), end, std::byte{0xAB});
    EXPECT_EQ(*(end - 1), std::byte{0xAB});
    EXPECT_EQ(memory.found(all_of(memory)).bytes(), static_cast<std::int64_t>(memory.size_bytes()));
  }
}

TEST(PlacedMemory, OfZeroBytesHoldsNothing) {
  PlacedMemory memory(0);
  EXPECT_EQ(memory.data(), nullptr);
  EXPECT_NO_THROW(memory.take({}, {}, "test"));
}

TEST(PlacedMemory, ThatCannotBeMappedIsOutOfMemory) {
  EXPECT_THROW(PlacedMemory memory(std::numeric_limits<std::size_t>::max()), OutOfMemoryError);
  EXPECT_THROW(PlacedMemory memory(std::size_t{1} << 60), OutOfMemoryError);
}

TEST(PlacedMemory, MovingHandsTheSameAddressesOver) {
  PlacedMemory first(kMiB);
  first.data()[7] = std::byte{42};
  const std::byte* const place = first.data();
  PlacedMemory second(std::move(first));
  PlacedMemory third(page_bytes());
  third = std::move(second);
  EXPECT_EQ(third.data(), place);
  EXPECT_EQ(third.data()[7], std::byte{42});
}

TEST(PlacedMemory, WithoutNodesWaitsForTheFirstWriteAndCallsNothing) {
  InventedNodes nodes({{0, 4 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(2 * kMiB);
  memory.take(all_of(memory), {}, "test");
  EXPECT_EQ(nodes.count(Call::kSetRule), 0);
  EXPECT_EQ(nodes.count(Call::kTouch), 0);
  EXPECT_EQ(nodes.count(Call::kFindNodes), 0);
}

TEST(PlacedMemory, WithoutNodesStillRefusesWhatTheSystemHasNot) {
  InventedNodes nodes({{0, kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(2 * kMiB);
  expect_says(refusal_of([&] { memory.take(all_of(memory), {}, "test"); }),
              "[test] the dram tier is full: 2.0 MiB (2097152 bytes) are wanted of this "
              "machine's memory; allowed: the 1.0 MiB");
}

TEST(PlacedMemory, TakesPagesOfTheNodesItIsTold) {
  InventedNodes nodes({{0, 8 * kMiBs}, {1, 8 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(6 * kMiB);
  memory.take(std::vector<ByteRange>{{0, kMiB}, {2 * kMiB, kMiB}}, dram(), "test");
  memory.take(std::vector<ByteRange>{{3 * kMiB, 3 * kMiB}}, cxl(), "test");
  EXPECT_EQ(nodes.used(0), 2 * kMiBs);
  EXPECT_EQ(nodes.used(1), 3 * kMiBs);
  EXPECT_EQ(memory.found(all_of(memory)).by_node,
            (std::map<int, std::int64_t>{{0, 2 * kMiBs}, {1, 3 * kMiBs}}));
}

TEST(PlacedMemory, InterleavesPageByPage) {
  InventedNodes nodes({{0, 8 * kMiBs}, {1, 8 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(4 * kMiB);
  memory.take(all_of(memory), {.nodes = {0, 1}, .interleaves = true}, "test");
  EXPECT_EQ(nodes.used(0), 2 * kMiBs);
  EXPECT_EQ(nodes.used(1), 2 * kMiBs);
}

TEST(PlacedMemory, RefusesBeforeItTouchesWhatANodeHasNotFree) {
  InventedNodes nodes({{0, 8 * kMiBs}, {1, 3 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(4 * kMiB);
  const std::string refusal =
      refusal_of([&] { memory.take(all_of(memory), cxl(), "grow the KV cache"); });
  expect_says(refusal,
              "[grow the KV cache] the cxl tier is full: 4.0 MiB (4194304 bytes) are "
              "wanted of node 1; allowed: the 3.0 MiB that the system has free there; "
              "lower KVConfig(cxl=...)");
  EXPECT_EQ(nodes.count(Call::kTouch), 0);
}

// Between the question and the touch somebody else may take what was free.
TEST(PlacedMemory, GivesAllBackWhenPagesComeToLieElsewhere) {
  InventedNodes nodes({{0, 8 * kMiBs}, {1, 3 * kMiBs}});
  nodes.boast(2 * kMiBs);
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(6 * kMiB);
  const std::vector<ByteRange> ranges{{0, kMiB}, {2 * kMiB, 4 * kMiB}};
  expect_says(refusal_of([&] { memory.take(ranges, cxl(), "test"); }), "the cxl tier is full");
  EXPECT_EQ(nodes.used(0), 0);
  EXPECT_EQ(nodes.used(1), 0);
  memory.take(std::vector<ByteRange>{{2 * kMiB, 3 * kMiB}}, cxl(), "test");  // what there is
  EXPECT_EQ(nodes.used(1), 3 * kMiBs);
}

class FailedPageCall : public testing::TestWithParam<std::pair<Call, std::int64_t>> {};

TEST_P(FailedPageCall, OfATakeIsNamedAndLeavesNoPage) {
  InventedNodes nodes({{0, 8 * kMiBs}, {1, 8 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(6 * kMiB);
  nodes.fail(GetParam().first, GetParam().second, EAGAIN);
  expect_says(refusal_of([&] { memory.take(all_of(memory), cxl(), "test"); }),
              "Resource temporarily unavailable");
  EXPECT_EQ(memory.found(all_of(memory)).bytes(), 0);
  memory.take(all_of(memory), cxl(), "test");  // nothing is lost by it
  EXPECT_EQ(nodes.used(1), 6 * kMiBs);
}

INSTANTIATE_TEST_SUITE_P(AtAnyPiece,
                         FailedPageCall,
                         testing::Values(std::pair{Call::kSetRule, 0},
                                         std::pair{Call::kSetRule, 2},
                                         std::pair{Call::kTouch, 0},
                                         std::pair{Call::kTouch, 1},
                                         std::pair{Call::kFindNodes, 0},
                                         std::pair{Call::kFindNodes, 2}));

TEST(PlacedMemory, ThatFailsWhileItIsReservedLeavesNoAddresses) {
  InventedNodes nodes({{0, 8 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  for (const Call call : {Call::kReserve, Call::kAllow}) {
    nodes.fail(call, 0, ENOMEM);
    expect_says(refusal_of([] { PlacedMemory memory(kMiB); }),
                "[reserve addresses] mapping 1.0 MiB failed: Cannot allocate memory");
    EXPECT_EQ(nodes.num_reserved(), 0U);
  }
}

TEST(PlacedMemory, PagesMoveUnderTheirAddressesWithWhatIsWrittenThere) {
  InventedNodes nodes({{0, 8 * kMiBs}, {1, 8 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(4 * kMiB);
  memory.take(all_of(memory), dram(), "test");
  std::fill_n(memory.data(), memory.size_bytes(), std::byte{7});
  const PageMove move = memory.move(std::vector<ByteRange>{{kMiB, 2 * kMiB}}, cxl());
  EXPECT_EQ(move.moved_bytes, 2 * kMiBs);
  EXPECT_EQ(move.left_bytes, 0);
  EXPECT_EQ(move.why, "");
  EXPECT_EQ(nodes.used(0), 2 * kMiBs);
  EXPECT_EQ(nodes.used(1), 2 * kMiBs);
  EXPECT_TRUE(std::all_of(
      memory.data(), memory.data() + 4 * kMiB, [](std::byte b) { return b == std::byte{7}; }));
}

TEST(PlacedMemory, AMoveSaysWhatItLeftAndWhy) {
  InventedNodes nodes({{0, 8 * kMiBs}, {1, kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(4 * kMiB);
  memory.take(all_of(memory), dram(), "test");
  const PageMove refused = memory.move(all_of(memory), cxl());  // nothing begun in vain
  EXPECT_EQ(refused.moved_bytes, 0);
  EXPECT_EQ(refused.left_bytes, 4 * kMiBs);
  expect_says(refused.why, "node 1 of the cxl tier has 1.0 MiB free, 4.0 MiB are wanted");
  nodes.boast(8 * kMiBs);
  const PageMove partial = memory.move(all_of(memory), cxl());
  EXPECT_EQ(partial.moved_bytes, kMiBs);
  EXPECT_EQ(partial.left_bytes, 3 * kMiBs);
  expect_says(partial.why, "no page");
  EXPECT_EQ(nodes.used(0), 3 * kMiBs);
  nodes.fail(Call::kSetRule, 0, EPERM);
  const PageMove forbidden = memory.move(all_of(memory), dram());
  EXPECT_EQ(forbidden.left_bytes, kMiBs);
  expect_says(forbidden.why, "Operation not permitted");
}

TEST(PlacedMemory, WhatIsGivenBackReadsAsZeroAndCanBeTakenAgain) {
  InventedNodes nodes({{0, 8 * kMiBs}, {1, 8 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  PlacedMemory memory(2 * kMiB);
  memory.take(all_of(memory), dram(), "test");
  std::fill_n(memory.data(), memory.size_bytes(), std::byte{7});
  memory.give_back(std::vector<ByteRange>{{0, kMiB}});
  EXPECT_EQ(nodes.used(0), kMiBs);
  EXPECT_EQ(memory.data()[5], std::byte{0});
  EXPECT_EQ(memory.data()[kMiB], std::byte{7});
  memory.take(std::vector<ByteRange>{{0, kMiB}}, cxl(), "test");
  EXPECT_EQ(nodes.used(1), kMiBs);
}

TEST(PlacedMemory, LeavesNothingBehind) {
  InventedNodes nodes({{0, 8 * kMiBs}});
  const PageCallsForTest in_place(nodes);
  const std::int64_t asked = huge_pages().asked_bytes;
  {
    PlacedMemory memory(4 * kMiB);
    memory.take(all_of(memory), dram(), "test");
    memory.join({0, 4 * kMiB});
    EXPECT_EQ(huge_pages().asked_bytes, asked + 4 * kMiBs);
  }
  EXPECT_EQ(nodes.used(0), 0);
  EXPECT_EQ(nodes.num_reserved(), 0U);
  EXPECT_EQ(huge_pages().asked_bytes, asked);
}

TEST(PlacedMemory, IsNeverHugeUnaskedAndJoinedOnceWhereAsked) {
  for (const char* setting : {"always", "madvise", "never"}) {
    InventedNodes nodes({{0, 8 * kMiBs}});
    nodes.set_huge_setting(setting);
    const PageCallsForTest in_place(nodes);
    PlacedMemory memory(6 * kMiB);
    // One word for all of it where the system would not wait to be asked.
    EXPECT_EQ(nodes.count(Call::kAdvise), std::string(setting) == "always" ? 1 : 0);
    memory.join({2 * kMiB, 2 * kMiB});
    memory.join({2 * kMiB, 2 * kMiB});
    EXPECT_EQ(nodes.joined_bytes(), std::string(setting) == "never" ? 0 : 2 * kMiBs);
  }
}

TEST(PlacedMemory, JoinedPagesKeepWhatIsWrittenThere) {
  PlacedMemory memory(6 * kMiB);
  for (std::size_t at = 0; at < memory.size_bytes(); at += 64) {
    memory.data()[at] = static_cast<std::byte>(at / 64 % 251);
  }
  memory.join({0, 6 * kMiB});
  for (std::size_t at = 0; at < memory.size_bytes(); at += 64) {
    ASSERT_EQ(memory.data()[at], static_cast<std::byte>(at / 64 % 251)) << at;
  }
  const PageSpan span{memory.data(), memory.size_bytes()};
  const std::int64_t huge = page_calls().huge_bytes(std::span<const PageSpan>(&span, 1));
  EXPECT_GE(huge, 0);  // a system without free huge pages gives fewer, which is no fault
  EXPECT_LE(huge, 6 * kMiBs);
}

TEST(PlacedMemory, PagesThatAreToBeHugeComeWithTheFirstTouchAndNotBefore) {
  PlacedMemory memory(6 * kMiB);
  const std::int64_t asked = huge_pages().asked_bytes;
  memory.join_from_first_touch({2 * kMiB, 2 * kMiB});
  memory.join_from_first_touch({2 * kMiB, 2 * kMiB});
  const bool is_never = huge_pages().setting == "never";
  EXPECT_EQ(huge_pages().asked_bytes, asked + (is_never ? 0 : 2 * kMiBs));
  EXPECT_EQ(memory.found(all_of(memory)).bytes(), 0);
  memory.data()[0] = std::byte{1};
  memory.data()[2 * kMiB] = std::byte{1};
  const std::int64_t found = memory.found(all_of(memory)).bytes();
  const auto page = static_cast<std::int64_t>(page_bytes());
  // A system without free huge pages gives a small one.
  EXPECT_TRUE(found == 2 * page || (!is_never && found == page + 2 * kMiBs)) << found;
}

TEST(PlacedMemory, ShortUseOfLongMemoryStaysShort) {
  PlacedMemory memory(64 * kMiB);
  for (std::size_t at = 0; at < 64 * kMiB; at += 2 * kMiB) memory.data()[at] = std::byte{1};
  EXPECT_EQ(memory.found(all_of(memory)).bytes(), 32 * static_cast<std::int64_t>(page_bytes()));
}

/// The kernel's rule for the page at `data`, which it touches.
int rule_of(std::byte* data) {
  *data = std::byte{1};
  int rule = -1;
  EXPECT_EQ(syscall(SYS_get_mempolicy, &rule, nullptr, 0, data, MPOL_F_ADDR), 0);
  return rule;
}

TEST(PlacedMemory, PrefersANodeByAdviceAlone) {
  if (!has_numa()) GTEST_SKIP() << "no libnuma, or the kernel forbids its use";
  PlacedMemory memory(4 * page_bytes());
  PlacedMemory other(page_bytes());
  *other.data() = std::byte{1};
  int here = -1;  // a node whose memory this process may use
  ASSERT_EQ(syscall(SYS_get_mempolicy, &here, nullptr, 0, other.data(), MPOL_F_NODE | MPOL_F_ADDR),
            0);
  memory.prefer({0, 2 * page_bytes()}, {.first = 1023});  // there is no such node
  memory.prefer({2 * page_bytes(), 2 * page_bytes()}, {.first = here});
  EXPECT_EQ(rule_of(memory.data()), rule_of(other.data()));
  EXPECT_EQ(rule_of(memory.data() + page_bytes()), rule_of(other.data()));
  EXPECT_EQ(rule_of(memory.data() + 2 * page_bytes()), MPOL_PREFERRED);
  EXPECT_EQ(rule_of(memory.data() + 3 * page_bytes()), MPOL_PREFERRED);
}

TEST(PlacedMemory, OfThisMachineLiesOnANodeThatItHas) {
  PlacedMemory memory(2 * kMiB);
  const int node = numa_nodes().front().id;
  const PagePlace place{.nodes = {node}};
  if (page_calls().set_rule(
          {memory.data(), memory.size_bytes()}, {PageRule::Kind::kPrefer, {node}}, false) != 0) {
    GTEST_SKIP() << "this build or kernel sets no memory nodes; libnuma and CAP_SYS_NICE would";
  }
  memory.take(all_of(memory), place, "test");
  EXPECT_EQ(memory.found(all_of(memory)).by_node, (std::map<int, std::int64_t>{{node, 2 * kMiBs}}));
  const PageMove move = memory.move(all_of(memory), place);
  EXPECT_EQ(move.left_bytes, 0);
  memory.give_back(all_of(memory));
  EXPECT_EQ(memory.found(all_of(memory)).bytes(), 0);
}

}  // namespace
}  // namespace hybridgen
