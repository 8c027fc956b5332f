// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "kernels/cpu_kernels.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/key_blocks.h"
#include "kvcache/stored_head.h"
#include "selection/selectors.h"

namespace hybridgen {
namespace {

using Positions = std::vector<std::int32_t>;

/// Bits of `value`, which must be a number that the type holds exactly, as small integers are.
std::uint16_t half_bits(float value, DType dtype) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (dtype == DType::kBFloat16) return static_cast<std::uint16_t>(bits >> 16);
  if (value == 0.0F) return 0;
  const std::uint32_t exponent = ((bits >> 23) & 0xffU) - 127U + 15U;
  return static_cast<std::uint16_t>((bits >> 31 << 15) | exponent << 10 | (bits >> 13 & 0x3ffU));
}

/// One KV head with its keys in a store and as plain rows, and a selector that is told of both.
struct Fixture {
  Fixture(std::int64_t head_dim_, std::int64_t num_query_heads, DType dtype_ = DType::kFloat32)
      : head_dim(head_dim_),
        dtype(dtype_),
        store({.num_layers = 1,
               .num_kv_heads = 1,
               .head_dim = head_dim_,
               .dtype = dtype_,
               .capacity = 4096}),
        selector(make_block_digests_selector({.num_layers = 1,
                                              .num_kv_heads = 1,
                                              .query_heads_per_kv_head = num_query_heads,
                                              .head_dim = head_dim_,
                                              .max_offloaded = 4096})) {}

  void offload(const std::vector<float>& new_rows) {
    const TokenRange tokens{num_tokens(),
                            num_tokens() + static_cast<std::int64_t>(new_rows.size()) / head_dim};
    rows.insert(rows.end(), new_rows.begin(), new_rows.end());
    std::vector<std::uint16_t> bits;
    for (const float value : new_rows) bits.push_back(half_bits(value, dtype));
    const KvRowsView view{dtype == DType::kFloat32 ? static_cast<const void*>(new_rows.data())
                                                   : static_cast<const void*>(bits.data()),
                          0,
                          head_dim};
    store.grow(tokens.end);
    store.write(0, tokens, view, view);
    selector->on_offload(0, 0, tokens, store.keys(0, 0));
  }

  Positions plan(const std::vector<float>& queries, std::int64_t k) const {
    std::vector<std::int32_t> scratch;
    const auto positions =
        selector->plan({.num_offloaded = num_tokens(), .k = k, .queries = queries}, scratch);
    return {positions.begin(), positions.end()};
  }

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(rows.size()) / head_dim; }

  double logit(const float* query, std::int64_t token) const {
    double sum = 0.0;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      sum += double{query[d]} * rows[static_cast<std::size_t>(token * head_dim + d)];
    }
    return sum;
  }

  std::int64_t head_dim;
  DType dtype;
  HostKvStore store;
  std::unique_ptr<TokenSelector> selector;
  std::vector<float> rows;
};

/// Small integers, so that sums are exact and ties are common.
std::vector<float> random_integers(std::mt19937& random, std::int64_t count, int largest) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    value = static_cast<float>(static_cast<int>(random() % static_cast<unsigned>(2 * largest + 1)) -
                               largest);
  }
  return values;
}

/// sum_d max(q_d min_d, q_d max_d) over the tokens of a block, the largest over the query heads.
double naive_bound(const Fixture& fixture, const std::vector<float>& queries, std::int64_t block) {
  const std::int64_t dim = fixture.head_dim;
  double best = -std::numeric_limits<double>::infinity();
  for (std::size_t r = 0; r < queries.size() / static_cast<std::size_t>(dim); ++r) {
    double bound = 0.0;
    for (std::int64_t d = 0; d < dim; ++d) {
      double low = std::numeric_limits<double>::infinity();
      double high = -low;
      for (std::int64_t t = block * 32; t < std::min(block * 32 + 32, fixture.num_tokens()); ++t) {
        low = std::min(low, double{fixture.rows[static_cast<std::size_t>(t * dim + d)]});
        high = std::max(high, double{fixture.rows[static_cast<std::size_t>(t * dim + d)]});
      }
      const double query = queries[r * static_cast<std::size_t>(dim) + static_cast<std::size_t>(d)];
      bound += std::max(query * low, query * high);
    }
    best = std::max(best, bound);
  }
  return best;
}

Positions naive_plan(const Fixture& fixture, const std::vector<float>& queries, std::int64_t k) {
  std::vector<std::int64_t> blocks(static_cast<std::size_t>((fixture.num_tokens() + 31) / 32));
  std::iota(blocks.begin(), blocks.end(), 0);
  std::vector<double> bounds;
  for (const std::int64_t block : blocks) bounds.push_back(naive_bound(fixture, queries, block));
  std::stable_sort(blocks.begin(), blocks.end(), [&](std::int64_t a, std::int64_t b) {
    return bounds[static_cast<std::size_t>(a)] > bounds[static_cast<std::size_t>(b)];
  });
  std::set<std::int32_t> chosen;
  for (const std::int64_t block : blocks) {
    for (std::int64_t t = std::min(block * 32 + 32, fixture.num_tokens()) - 1;
         t >= block * 32 && static_cast<std::int64_t>(chosen.size()) < k;
         --t) {
      chosen.insert(static_cast<std::int32_t>(t));
    }
  }
  return {chosen.begin(), chosen.end()};
}

Positions range(std::int32_t begin, std::int32_t end) {
  Positions positions(static_cast<std::size_t>(end - begin));
  std::iota(positions.begin(), positions.end(), begin);
  return positions;
}

Positions operator+(Positions a, const Positions& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Three blocks of one dimension: keys up to 1, up to 5 and down to -9.
Fixture three_blocks() {
  Fixture fixture(1, 1);
  std::vector<float> keys(96, 0.0F);
  keys[3] = 1.0F;
  keys[40] = 5.0F;
  keys[70] = -9.0F;
  fixture.offload(keys);
  return fixture;
}

TEST(BlockDigestsSelector, TakesTheBlocksWithTheLargestPossibleLogit) {
  const Fixture fixture = three_blocks();
  EXPECT_EQ(fixture.plan({1.0F}, 32), range(32, 64));   // bounds 1, 5, 0
  EXPECT_EQ(fixture.plan({-1.0F}, 32), range(64, 96));  // bounds 0, 0, 9
  EXPECT_EQ(fixture.plan({1.0F}, 64), range(0, 64));
}

TEST(BlockDigestsSelector, CutsTheLastBlockToItsMostRecentTokens) {
  const Fixture fixture = three_blocks();
  EXPECT_EQ(fixture.plan({1.0F}, 5), range(59, 64));
  EXPECT_EQ(fixture.plan({1.0F}, 35), range(29, 64));
  EXPECT_EQ(fixture.plan({-1.0F}, 34), range(30, 32) + range(64, 96));
}

TEST(BlockDigestsSelector, EqualBoundsPreferTheLowerBlock) {
  const Fixture fixture = three_blocks();
  EXPECT_EQ(fixture.plan({0.0F}, 33), range(0, 32) + range(63, 64));
}

TEST(BlockDigestsSelector, AShortLastBlockIsFilledUpFromTheNext) {
  Fixture fixture(1, 1);
  std::vector<float> keys(67, 0.0F);
  keys[66] = 7.0F;
  keys[50] = 3.0F;
  fixture.offload(keys);
  EXPECT_EQ(fixture.plan({1.0F}, 3), range(64, 67));
  EXPECT_EQ(fixture.plan({1.0F}, 32), range(35, 64) + range(64, 67));
  EXPECT_EQ(fixture.plan({1.0F}, 36), range(31, 67));
}

TEST(BlockDigestsSelector, TheLargestBoundOfTheQueryHeadsCounts) {
  Fixture fixture(2, 2);
  std::vector<float> keys(std::size_t{96} * 2, 0.0F);
  keys[0] = 2.0F;           // block 0: first dimension
  keys[32 * 2 + 1] = 3.0F;  // block 1: second dimension
  fixture.offload(keys);
  EXPECT_EQ(fixture.plan({1.0F, 0.0F, /**/ 0.0F, 1.0F}, 32), range(32, 64));
  EXPECT_EQ(fixture.plan({2.0F, 0.0F, /**/ 0.0F, 1.0F}, 32), range(0, 32));
}

TEST(BlockDigestsSelector, WithKEqualToTheOffloadedTokensPlansAll) {
  std::mt19937 random(3);
  for (const std::int32_t count : {1, 31, 32, 33, 64, 100}) {
    Fixture fixture(4, 1);
    fixture.offload(random_integers(random, count * 4, 5));
    EXPECT_EQ(fixture.plan(random_integers(random, 4, 3), count), range(0, count));
  }
}

TEST(BlockDigestsSelector, EqualsANaiveModelWithTokensArrivingInPieces) {
  std::mt19937 random(5);
  for (int repeat = 0; repeat < 20; ++repeat) {
    const std::int64_t num_queries = 1 + static_cast<std::int64_t>(random() % 5);
    Fixture fixture(6, num_queries);
    // Beyond 32 blocks too, where digests begin a new block of their own.
    while (fixture.num_tokens() < (repeat % 2 == 0 ? 150 : 1300)) {
      const std::int64_t count = 1 + static_cast<std::int64_t>(random() % 90);
      fixture.offload(random_integers(random, count * 6, 9));
      const std::vector<float> queries = random_integers(random, num_queries * 6, 4);
      const auto k = 1 + static_cast<std::int64_t>(random()) % fixture.num_tokens();
      ASSERT_EQ(fixture.plan(queries, k), naive_plan(fixture, queries, k));
    }
  }
}

TEST(BlockDigestsSelector, NoLogitOfABlockLeftOutExceedsTheBoundOfOneTaken) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  for (int repeat = 0; repeat < 20; ++repeat) {
    Fixture fixture(16, 1);
    std::vector<float> keys(std::size_t{320} * 16);
    for (float& key : keys) key = normal(random);
    fixture.offload(keys);
    std::vector<float> queries(16);
    for (float& query : queries) query = normal(random);
    const Positions chosen = fixture.plan(queries, 96);
    double smallest_taken = std::numeric_limits<double>::infinity();
    double largest_left = -smallest_taken;
    for (std::int32_t block = 0; block < 10; ++block) {
      const double bound = naive_bound(fixture, queries, block);
      double best = -std::numeric_limits<double>::infinity();
      for (std::int64_t t = block * 32; t < block * 32 + 32; ++t) {
        best = std::max(best, fixture.logit(queries.data(), t));
      }
      ASSERT_LE(best, bound + 1e-6);
      if (std::binary_search(chosen.begin(), chosen.end(), block * 32)) {
        smallest_taken = std::min(smallest_taken, bound);
      } else {
        largest_left = std::max(largest_left, best);
      }
    }
    ASSERT_LE(largest_left, smallest_taken + 1e-5);
  }
}

/// Keys of a block all equal: its bound is its logit, and whole blocks are chosen by exact logits.
TEST(BlockDigestsSelector, WithEqualKeysInABlockTheBestBlockIsTaken) {
  std::mt19937 random(13);
  for (int repeat = 0; repeat < 20; ++repeat) {
    Fixture fixture(8, 1);
    std::vector<double> logits;
    const std::vector<float> query = random_integers(random, 8, 5);
    for (int block = 0; block < 12; ++block) {
      const std::vector<float> key = random_integers(random, 8, 5);
      for (int t = 0; t < 32; ++t) fixture.offload(key);
      logits.push_back(fixture.logit(query.data(), block * 32));
    }
    const auto best =
        static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    ASSERT_EQ(fixture.plan(query, 32), range(best * 32, best * 32 + 32));
  }
}

TEST(BlockDigestsSelector, ElementTypesAgreeOnKeysThatAllHoldExactly) {
  std::mt19937 random(17);
  const std::vector<float> keys = random_integers(random, 200 * 12, 30);
  const std::vector<float> queries = random_integers(random, 3 * 12, 7);
  Fixture full(12, 3);
  full.offload(keys);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    Fixture half(12, 3, dtype);
    half.offload(keys);
    for (const std::int64_t k : {1, 40, 130}) {
      EXPECT_EQ(half.plan(queries, k), full.plan(queries, k)) << name_of(dtype);
    }
  }
}

TEST(BlockDigestsSelector, HeadsAndLayersHaveTheirOwnDigests) {
  const auto selector = make_block_digests_selector({.num_layers = 2, .num_kv_heads = 2});
  HostKvStore store({.num_layers = 2, .num_kv_heads = 2, .head_dim = 1, .capacity = 128});
  store.grow(store.shape().capacity);
  // Head 0 has its large key in block 0, head 1 in block 1; in layer 1 the other way round.
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    std::vector<float> keys(128, 0.0F);
    keys[layer == 0 ? 5 : 37] = 1.0F;
    keys[64 + (layer == 0 ? 37U : 5U)] = 1.0F;
    const KvRowsView view{keys.data(), 64, 1};
    store.write(layer, {0, 64}, view, view);
    for (std::int64_t g = 0; g < 2; ++g) {
      selector->on_offload(layer, g, {0, 64}, store.keys(layer, g));
    }
  }
  const std::vector<float> query = {1.0F};
  std::vector<std::int32_t> scratch;
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    for (std::int64_t g = 0; g < 2; ++g) {
      const auto positions = selector->plan(
          {.layer = layer, .kv_head = g, .num_offloaded = 64, .k = 32, .queries = query}, scratch);
      EXPECT_EQ(positions.front(), layer == g ? 0 : 32);
    }
  }
}

TEST(BlockDigestsSelector, SteadyPlansDoNotGrowTheScratch) {
  const Fixture fixture = three_blocks();
  const std::vector<float> query = {1.0F};
  std::vector<std::int32_t> scratch;
  const PlanContext context{.num_offloaded = 96, .k = 40, .queries = query};
  static_cast<void>(fixture.selector->plan(context, scratch));
  const std::int32_t* data = scratch.data();
  const auto positions = fixture.selector->plan(context, scratch);
  EXPECT_EQ(scratch.data(), data);
  EXPECT_EQ(Positions(positions.begin(), positions.end()), range(24, 64));
}

TEST(BlockDigestsSelector, NanInAQueryIsANumericErrorThatNamesLayerAndHead) {
  const Fixture fixture = three_blocks();
  try {
    fixture.plan({std::numeric_limits<float>::quiet_NaN()}, 2);
    FAIL() << "accepted NaN";
  } catch (const NumericError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("layer 0"), std::string::npos) << text;
    EXPECT_NE(text.find("KV head 0"), std::string::npos) << text;
  }
}

TEST(BlockDigestsSelector, RejectsWhatItsDigestsDoNotCover) {
  Fixture fixture = three_blocks();
  const BlockedKeyView keys = fixture.store.keys(0, 0);
  EXPECT_THROW(fixture.selector->on_offload(0, 0, {97, 98}, keys), ConfigError);    // a gap
  EXPECT_THROW(fixture.selector->on_offload(0, 0, {95, 97}, keys), ConfigError);    // twice
  EXPECT_THROW(fixture.selector->on_offload(0, 0, {96, 9999}, keys), ConfigError);  // no keys
  EXPECT_THROW(fixture.selector->on_offload(0, 1, {0, 1}, keys), ConfigError);
  EXPECT_THROW(fixture.selector->on_offload(1, 0, {0, 1}, keys), ConfigError);
  BlockedKeyView wide = keys;
  wide.head_dim = 2;
  EXPECT_THROW(fixture.selector->on_offload(0, 0, {96, 97}, wide), ConfigError);

  std::vector<std::int32_t> scratch;
  const std::vector<float> query = {1.0F};
  EXPECT_THROW(fixture.selector->plan({.num_offloaded = 97, .k = 1, .queries = query}, scratch),
               ConfigError);
  EXPECT_THROW(fixture.plan({1.0F, 1.0F}, 1), ConfigError);  // queries of two heads
}

TEST(BlockDigestsSelector, OfKeysInFewerBitsDigestsWhatTheStoreGivesBack) {
  constexpr std::int64_t kDim = 8;
  constexpr std::int64_t kTokens = 1100;  // beyond a segment
  for (const KvPrecision precision : {KvPrecision::kInt8, KvPrecision::kInt4}) {
    SCOPED_TRACE(static_cast<int>(precision));
    HostKvStore codes({.num_layers = 1,
                       .num_kv_heads = 1,
                       .head_dim = kDim,
                       .capacity = kTokens,
                       .key_precision = precision});
    codes.grow(codes.shape().capacity);
    Fixture told_of_codes(kDim, 2);
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto rows_of = [&](std::int64_t count) {
      std::vector<float> rows(static_cast<std::size_t>(count * kDim));
      for (float& element : rows) element = normal(random);
      return rows;
    };
    const std::vector<float> usual = rows_of(200);
    codes.fix_channels(0, 200, {usual.data(), 0, kDim});
    std::vector<float> memory;
    // Pieces that begin and end inside blocks, among the exact tokens and across the segment.
    const std::vector<std::int64_t> ends = {3, 40, 41, 1010, 1030, kTokens};
    for (std::int64_t begin = 0; const std::int64_t end : ends) {
      std::vector<float> rows = rows_of(end - begin);
      // By its codes all of such a key would be far from 0; it is one of the exact ones.
      if (begin == 0) rows[0] = 1000.0F;
      const KvRowsView view{rows.data(), 0, kDim};
      codes.write(0, {begin, end}, view, view);
      told_of_codes.selector->on_offload(
          0, 0, {begin, end}, restore_blocks(codes, 0, 0, {begin, end}, memory));
      begin = end;
    }

    Fixture told_of_rows(kDim, 2);
    std::vector<float> stored(static_cast<std::size_t>(kTokens * kDim));
    StoredHead(kernels::cpu_kernels(kernels::Isa::kPortable), codes, 0, 0)
        .keys({0, kTokens}, stored.data(), kernels::RowReader::kCpu);
    told_of_rows.offload(stored);
    told_of_codes.rows = stored;  // only to count them
    for (int i = 0; i < 20; ++i) {
      std::vector<float> queries = rows_of(2);
      queries[0] = queries[kDim] = 0.0F;
      EXPECT_EQ(told_of_codes.plan(queries, 64), told_of_rows.plan(queries, 64));
    }
  }
}

}  // namespace
}  // namespace hybridgen
