// SPDX-License-Identifier: Apache-2.0
// Keys and values of requests over two real memory nodes: what the ledger says of every tier is
// what the kernel says of the pages.
#include <algorithm>
#include <array>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "kvcache/kv_tiers.h"
#include "kvcache/tier_memory.h"
#include "two_nodes.h"

namespace hybridgen {
namespace {

using Bytes = std::map<int, std::int64_t>;

// 1 KiB of K and of V per token, 256 KiB per tier block.
constexpr std::int64_t kTokenBytes = 1024;
constexpr std::int64_t kGranule = kPage / kTokenBytes;
constexpr std::int64_t kBlock = kTierBlockTokens;

/// K and V of one request, a row of kTokenBytes per token and side.
class Rows : public TierMemory {
 public:
  explicit Rows(std::int64_t capacity)
      : capacity_(capacity), sides_{PlacedMemory(bytes(capacity)), PlacedMemory(bytes(capacity))} {}

  std::int64_t capacity() const override { return capacity_; }
  std::int64_t block_tokens(KvSide /*side*/) const override { return kBlock; }
  std::int64_t granule_tokens(KvSide /*side*/) const override { return kGranule; }
  std::int64_t bytes_of(KvSide /*side*/, TokenRange tokens) const override {
    return tokens.size() * kTokenBytes;
  }
  void take(KvSide side, TokenRange tokens, const PagePlace& place) override {
    const ByteRange range = range_of(tokens);
    of(side).take(std::span(&range, 1), place, "grow keys and values");
  }
  PageMove move(KvSide side, TokenRange tokens, const PagePlace& place) override {
    const ByteRange range = range_of(tokens);
    return of(side).move(std::span(&range, 1), place);
  }

  /// Fills rows with words that say which token and side they are.
  void write(TokenRange tokens) {
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
        std::ranges::fill(row(side, token), word_of(side, token));
      }
    }
  }
  /// The first token whose row is not what was written; -1: there is none.
  std::int64_t first_wrong(std::int64_t tokens) {
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      for (std::int64_t token = 0; token < tokens; ++token) {
        const auto is_right = [&](std::int64_t word) { return word == word_of(side, token); };
        if (!std::ranges::all_of(row(side, token), is_right)) return token;
      }
    }
    return -1;
  }
  /// Where the kernel says that tokens lie.
  Bytes pages(KvSide side, TokenRange tokens) {
    return bytes_by_node(of(side).data() + range_of(tokens).begin, range_of(tokens).bytes);
  }
  Bytes pages(KvSide side) { return pages(side, {0, capacity_}); }

 private:
  static std::size_t bytes(std::int64_t tokens) {
    return static_cast<std::size_t>(tokens * kTokenBytes);
  }
  static ByteRange range_of(TokenRange tokens) {
    return {bytes(tokens.begin), bytes(tokens.size())};
  }
  static std::int64_t word_of(KvSide side, std::int64_t token) {
    return 2 * token + (side == KvSide::kValues ? 1 : 0) + 1;
  }
  PlacedMemory& of(KvSide side) { return sides_[static_cast<std::size_t>(side)]; }
  std::span<std::int64_t> row(KvSide side, std::int64_t token) {
    std::byte* const begin = of(side).data() + bytes(token);
    return {reinterpret_cast<std::int64_t*>(begin), bytes(1) / sizeof(std::int64_t)};
  }

  std::int64_t capacity_;
  std::array<PlacedMemory, 2> sides_;
};

struct Request {
  explicit Request(std::int64_t capacity) : rows(capacity) {}
  Rows rows;
  KvHolding holding;  ///< ends first
  std::int64_t tokens = 0;
};

/// Budgets, tiers and requests on the nodes of this machine.
class KvOnNodes : public TwoNodes {
 protected:
  void start(std::int64_t dram_bytes,
             std::int64_t cxl_bytes,
             KvPlacement placement = KvPlacement::kSemantic) {
    budgets_.add(TierKind::kDram, dram_bytes, "KVConfig(dram=...)");
    budgets_.add(TierKind::kCxl, cxl_bytes, "KVConfig(cxl=...)");
    TierPlaces places{.dram = dram_place(), .cxl = slow_place(), .both = slow_place()};
    places.both.nodes = {dram_, slow_};
    places.both.interleaves = true;
    tiers_ = std::make_unique<KvTiers>(placement, places, budgets_, trace_, statistics_);
  }

  Request& admit(std::int64_t capacity) {
    auto request = std::make_unique<Request>(capacity);
    // And a block for the end of each tier.
    const std::int64_t kv_bytes = (2 * capacity + 3 * kBlock) * kTokenBytes;
    request->holding =
        tiers_->hold(static_cast<std::int64_t>(requests_.size()), /*dram_bytes=*/0, kv_bytes);
    request->holding.set_memory(request->rows, /*is_rewritten=*/false);
    requests_.push_back(std::move(request));
    return *requests_.back();
  }

  void grow(Request& request, std::int64_t tokens) {
    for (std::int64_t end = request.tokens + kBlock; end <= tokens; end += kBlock) {
      request.holding.grow(end);
      request.rows.write({end - kBlock, end});
      request.tokens = end;
      tiers_->settle();
    }
    tiers_->finish_moves();
  }

  Bytes pages(KvSide side) const {
    Bytes sum;
    for (const auto& request : requests_) {
      for (const auto& [node, bytes] : request->rows.pages(side)) sum[node] += bytes;
    }
    return sum;
  }

  /// Whether what the ledger has of each side in each tier is what lies on its nodes.
  void expect_ledger_is_true() {
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      Bytes found = pages(side);
      const TierBytes& noted = tiers_->ledger().bytes(side);
      std::cout << (side == KvSide::kKeys ? "K: " : "V: ") << in_words(found) << '\n';
      EXPECT_EQ(found[dram_], noted[TierKind::kDram]);
      EXPECT_EQ(found[slow_], noted[TierKind::kCxl]);
    }
  }

  void expect_rows_are_as_written() const {
    for (const auto& request : requests_) {
      EXPECT_EQ(request->rows.first_wrong(request->tokens), -1);
    }
  }

  TraceRecorder trace_;
  TierStatistics statistics_;
  Budgets budgets_;
  std::unique_ptr<KvTiers> tiers_;
  std::vector<std::unique_ptr<Request>> requests_;  ///< last: they end first
};

TEST_F(KvOnNodes, KeysLieInDramAndValuesThatOverflowOnTheSlowNode) {
  start(12 * kMiB, 64 * kMiB);
  Request& request = admit(8192);
  grow(request, 2048);
  EXPECT_EQ(pages(KvSide::kValues)[slow_], 0) << "as long as DRAM has room";
  grow(request, 8192);  // 8 MiB of each
  expect_ledger_is_true();
  EXPECT_EQ(pages(KvSide::kKeys), (Bytes{{dram_, 8 * kMiB}}));
  EXPECT_GE(pages(KvSide::kValues)[slow_], 4 * kMiB);
  EXPECT_EQ(pages(KvSide::kValues)[dram_] + pages(KvSide::kValues)[slow_], 8 * kMiB);
  EXPECT_LE(pages(KvSide::kKeys)[dram_] + pages(KvSide::kValues)[dram_], 12 * kMiB);
  EXPECT_GT(statistics_.moves_down, 0) << "old values made room for keys";
  expect_rows_are_as_written();
}

TEST_F(KvOnNodes, OldestKeysGoToTheSlowNodeOnceKeysAloneExceedDram) {
  start(6 * kMiB, 64 * kMiB);
  Request& request = admit(8192);
  grow(request, 8192);
  expect_ledger_is_true();
  EXPECT_EQ(pages(KvSide::kValues), (Bytes{{slow_, 8 * kMiB}}));
  EXPECT_GE(pages(KvSide::kKeys)[slow_], 2 * kMiB);
  const Bytes oldest = request.rows.pages(KvSide::kKeys, {0, kBlock});
  const Bytes newest = request.rows.pages(KvSide::kKeys, {8192 - kBlock, 8192});
  EXPECT_EQ(oldest, (Bytes{{slow_, kBlock * kTokenBytes}}));
  EXPECT_EQ(newest, (Bytes{{dram_, kBlock * kTokenBytes}}));
  expect_rows_are_as_written();
}

TEST_F(KvOnNodes, InterleavedPagesOfBothSidesLieHalfOnEachNode) {
  start(4 * kMiB, 64 * kMiB, KvPlacement::kInterleave);
  grow(admit(4096), 4096);
  expect_ledger_is_true();
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    EXPECT_EQ(pages(side), (Bytes{{dram_, 2 * kMiB}, {slow_, 2 * kMiB}}));
  }
  expect_rows_are_as_written();
}

TEST_F(KvOnNodes, FirstTouchFillsDramWithWhateverComesFirst) {
  start(8 * kMiB, 64 * kMiB, KvPlacement::kFirstTouch);
  Request& request = admit(8192);
  grow(request, 8192);
  expect_ledger_is_true();
  EXPECT_GT(pages(KvSide::kKeys)[slow_], 0) << "late keys find DRAM full of early values";
  EXPECT_GT(pages(KvSide::kValues)[dram_], 0);
  EXPECT_EQ(statistics_.moves_down, 0);
  expect_rows_are_as_written();
}

TEST_F(KvOnNodes, EndedRequestsLeaveBothNodesAsTheyWere) {
  start(12 * kMiB, 64 * kMiB);
  const Bytes before{{dram_, free_bytes(dram_)}, {slow_, free_bytes(slow_)}};
  for (int round = 0; round < 3; ++round) {
    grow(admit(8192), 8192);
    requests_.clear();
  }
  EXPECT_EQ(tiers_->ledger().blocks().size(), 0U);
  for (const auto& [node, bytes] : before) {
    EXPECT_NEAR(static_cast<double>(free_bytes(node)), static_cast<double>(bytes), 16.0 * kMiB);
  }
}

TEST_F(KvOnNodes, ASlowNodeThatIsFullerThanItsBudgetEndsTheOneThatGrows) {
  HYBRIDGEN_SKIP_UNLESS_SMALL(slow_);
  start(8 * kMiB, 64 * kMiB);
  Request& first = admit(2048);
  grow(first, 2048);
  std::vector<PlacedMemory> others;
  fill(slow_place(), std::size_t{2} << 20, others);
  Request& second = admit(8192);
  std::string refusal;
  try {
    grow(second, 8192);
  } catch (const OutOfMemoryError& error) {
    refusal = error.what();
  }
  std::cout << "full: " << refusal << '\n';
  EXPECT_NE(refusal, "");
  expect_ledger_is_true();
  expect_rows_are_as_written();
  others.clear();
  grow(first, 2048);
  EXPECT_EQ(first.rows.first_wrong(first.tokens), -1);
}

TEST_F(KvOnNodes, MovesToAFullNodeFailAndLeaveTheBlocksInDram) {
  HYBRIDGEN_SKIP_UNLESS_SMALL(slow_);
  start(6 * kMiB, 64 * kMiB);
  Request& request = admit(4096);
  grow(request, 2048);
  std::vector<PlacedMemory> others;
  fill(slow_place(), std::size_t{1} << 20, others);
  // Who needs DRAM for something else drives values out of it, which find no page.
  KvHolding other;
  try {
    other = tiers_->hold(1000, /*dram_bytes=*/4 * kMiB, /*kv_bytes=*/kMiB);
    tiers_->settle();
  } catch (const OutOfMemoryError& error) {
    std::cout << "full: " << error.what() << '\n';
  }
  tiers_->finish_moves();
  expect_ledger_is_true();
  expect_rows_are_as_written();
  EXPECT_GT(statistics_.failed_moves, 0);
}

}  // namespace
}  // namespace hybridgen
