// SPDX-License-Identifier: Apache-2.0
// The scan over a shadow against the sums that its bytes stand for, which every instruction set
// must reach exactly, and the rounding of queries.
#include <algorithm>
#include <random>

#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

constexpr std::int64_t kTokens = 96;   // three blocks
constexpr std::int64_t kQueries = 16;  // more than any kernel takes in one pass

/// Blocks of arbitrary codes and steps, laid out by hand.
struct Shadow {
  Shadow(ShadowPrecision shadow_precision, std::int64_t dim)
      : precision(shadow_precision), head_dim(dim), padded_dim((dim + 7) / 8 * 8) {
    const bool is_int4 = precision == ShadowPrecision::kInt4;
    block_bytes = padded_dim * 32 / (is_int4 ? 2 : 1) + 64;
    blocks.resize(static_cast<std::size_t>(kTokens / 32 * block_bytes));
    spreads.assign(static_cast<std::size_t>(dim), 1.0F);
    codes.resize(static_cast<std::size_t>(kTokens * padded_dim));
    steps.resize(kTokens);
  }

  /// Draws codes from `values` and puts them where the format says they lie.
  void fill(const std::vector<int>& values, std::uint32_t seed) {
    std::mt19937 generator(seed);
    std::uniform_int_distribution<std::size_t> pick(0, values.size() - 1);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      std::byte* block = blocks.data() + t / 32 * block_bytes;
      for (std::int64_t d = 0; d < padded_dim; ++d) {
        const int code = values[pick(generator)];
        codes[static_cast<std::size_t>(t * padded_dim + d)] = code;
        if (precision == ShadowPrecision::kInt8) {
          block[(d / 4 * 32 + t % 32) * 4 + d % 4] = static_cast<std::byte>(code);
        } else {
          std::byte& both = block[(d / 8 * 32 + t % 32) * 4 + d % 4];
          both =
              d % 8 < 4 ? static_cast<std::byte>(code) : both | static_cast<std::byte>(code << 4);
        }
      }
      const auto bits = static_cast<std::uint16_t>(0x3c00 + 7 * t);
      std::memcpy(block + block_bytes - 64 + t % 32 * 2, &bits, 2);
      steps[static_cast<std::size_t>(t)] = decode(DType::kBFloat16, bits);
    }
  }

  ShadowKeyView view() const {
    return {.blocks = blocks.data(),
            .spreads = spreads.data(),
            .precision = precision,
            .head_dim = head_dim,
            .padded_dim = padded_dim,
            .block_bytes = block_bytes,
            .capacity = kTokens};
  }

  int most() const { return precision == ShadowPrecision::kInt8 ? 255 : 15; }

  ShadowPrecision precision;
  std::int64_t head_dim;
  std::int64_t padded_dim;
  std::int64_t block_bytes = 0;
  std::vector<std::byte> blocks;
  std::vector<float> spreads;
  std::vector<int> codes;  ///< [tokens, padded_dim]
  std::vector<float> steps;
};

struct Queries {
  Queries(std::int64_t count, std::int64_t dim, const std::vector<int>& values) {
    std::mt19937 generator(3);
    std::uniform_int_distribution<std::size_t> pick(0, values.size() - 1);
    for (std::int64_t i = 0; i < count * dim; ++i) {
      rounded.push_back(static_cast<std::int8_t>(values[pick(generator)]));
    }
    for (std::int64_t r = 0; r < count; ++r) scales.push_back(0.37F * static_cast<float>(r + 1));
  }
  std::vector<std::int8_t> rounded;
  std::vector<float> scales;
};

std::vector<int> integers(int first, int last) {
  std::vector<int> all;
  for (int i = first; i <= last; ++i) all.push_back(i);
  return all;
}

std::vector<float> scan(const CpuKernels& kernels,
                        const Shadow& shadow,
                        const Queries& queries,
                        std::int64_t num_queries,
                        TokenRange tokens,
                        Prefetch prefetch = scan_prefetch()) {
  std::vector<float> scores(static_cast<std::size_t>(num_queries * tokens.size()));
  kernels.shadow_logits({.keys = shadow.view(),
                         .queries = queries.rounded.data(),
                         .scales = queries.scales.data(),
                         .num_queries = num_queries,
                         .tokens = tokens,
                         .scores = scores.data(),
                         .scores_stride = tokens.size(),
                         .prefetch = prefetch});
  return scores;
}

/// Sums in 64-bit integers; float32 holds them exactly, so that the two multiplications that follow
/// leave one possible result.
void expect_exact(const std::vector<float>& scores,
                  const Shadow& shadow,
                  const Queries& queries,
                  std::int64_t num_queries,
                  TokenRange tokens) {
  for (std::int64_t r = 0; r < num_queries; ++r) {
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      std::int64_t sum = 0;
      for (std::int64_t d = 0; d < shadow.padded_dim; ++d) {
        const int code = shadow.codes[static_cast<std::size_t>(t * shadow.padded_dim + d)];
        sum += std::int64_t{queries.rounded[static_cast<std::size_t>(r * shadow.padded_dim + d)]} *
               (2 * code - shadow.most());
      }
      ASSERT_LE(std::abs(sum), std::int64_t{1} << 24);
      const float expected = static_cast<float>(sum) * shadow.steps[static_cast<std::size_t>(t)] *
                             queries.scales[static_cast<std::size_t>(r)];
      ASSERT_EQ(scores[static_cast<std::size_t>(r * tokens.size() + t - tokens.begin)], expected)
          << "query " << r << " token " << t << " head_dim " << shadow.head_dim;
    }
  }
}

class ShadowLogits : public testing::TestWithParam<std::tuple<Isa, ShadowPrecision>> {
 protected:
  const CpuKernels& kernels() const { return cpu_kernels(std::get<0>(GetParam())); }
  ShadowPrecision precision() const { return std::get<1>(GetParam()); }
  std::vector<int> all_codes() const {
    return integers(0, precision() == ShadowPrecision::kInt8 ? 255 : 15);
  }
};

TEST_P(ShadowLogits, AreTheExactSumsForAnyQueryCountAndHeadDim) {
  for (const std::int64_t head_dim : {1, 10, 32, 64, 80, 96, 128, 256, 512}) {
    Shadow shadow(precision(), head_dim);
    shadow.fill(all_codes(), 1);
    const Queries queries(kQueries, shadow.padded_dim, integers(-127, 127));
    for (std::int64_t count = 1; count <= kQueries; ++count) {
      const TokenRange tokens{0, kTokens};
      expect_exact(scan(kernels(), shadow, queries, count, tokens), shadow, queries, count, tokens);
    }
  }
}

TEST_P(ShadowLogits, NothingSaturatesAtTheLargestCodesAndQueries) {
  Shadow shadow(precision(), 512);
  for (const int code : {0, shadow.most()}) {
    shadow.fill({code}, 1);
    for (const int query : {-127, 127}) {
      const Queries queries(4, shadow.padded_dim, {query});
      const TokenRange tokens{0, kTokens};
      expect_exact(scan(kernels(), shadow, queries, 4, tokens), shadow, queries, 4, tokens);
    }
  }
}

TEST_P(ShadowLogits, DoNotDependOnTheRangeTheyAreComputedIn) {
  Shadow shadow(precision(), 64);
  shadow.fill(all_codes(), 2);
  const Queries queries(3, shadow.padded_dim, integers(-127, 127));
  for (const TokenRange tokens : {TokenRange{0, 1},
                                  TokenRange{31, 33},
                                  TokenRange{5, 20},
                                  TokenRange{7, 90},
                                  TokenRange{32, 64},
                                  TokenRange{95, 96}}) {
    expect_exact(scan(kernels(), shadow, queries, 3, tokens), shadow, queries, 3, tokens);
  }
}

TEST_P(ShadowLogits, DoNotDependOnWhereTheyAreFetchedAheadInto) {
  Shadow shadow(precision(), 80);
  shadow.fill(all_codes(), 2);
  const Queries queries(kQueries, shadow.padded_dim, integers(-127, 127));
  const TokenRange tokens{3, kTokens};
  for (const Prefetch prefetch : {Prefetch::kL1, Prefetch::kL2, Prefetch::kL3}) {
    expect_exact(scan(kernels(), shadow, queries, kQueries, tokens, prefetch),
                 shadow,
                 queries,
                 kQueries,
                 tokens);
  }
}

TEST_P(ShadowLogits, AnEmptyRangeWritesNothing) {
  Shadow shadow(precision(), 64);
  shadow.fill(all_codes(), 2);
  const Queries queries(2, shadow.padded_dim, {1});
  EXPECT_TRUE(scan(kernels(), shadow, queries, 2, {40, 40}).empty());
}

TEST_P(ShadowLogits, ATokenWhoseStepIsNotANumberScoresNotANumberAlone) {
  Shadow shadow(precision(), 64);
  shadow.fill(all_codes(), 2);
  const std::uint16_t nan = 0x7fc0;
  std::memcpy(shadow.blocks.data() + shadow.block_bytes - 64 + 5 * 2, &nan, 2);
  const Queries queries(1, shadow.padded_dim, integers(-127, 127));
  const std::vector<float> scores = scan(kernels(), shadow, queries, 1, {0, kTokens});
  EXPECT_EQ(std::ranges::count_if(scores, [](float score) { return std::isnan(score); }), 1);
  EXPECT_TRUE(std::isnan(scores[5]));
}

INSTANTIATE_TEST_SUITE_P(Every,
                         ShadowLogits,
                         testing::Combine(testing::ValuesIn(supported_isas()),
                                          testing::Values(ShadowPrecision::kInt8,
                                                          ShadowPrecision::kInt4)),
                         [](const auto& each) {
                           return std::string(name_of(std::get<0>(each.param))) +
                                  (std::get<1>(each.param) == ShadowPrecision::kInt8 ? "_int8"
                                                                                     : "_int4");
                         });

// ---- Queries -----------------------------------------------------------------------------------

struct Prepared {
  std::vector<std::int8_t> rounded;
  std::vector<float> scales;
};

Prepared prepare(const std::vector<float>& queries, std::vector<float> spreads) {
  const auto head_dim = static_cast<std::int64_t>(spreads.size());
  Shadow shadow(ShadowPrecision::kInt8, head_dim);
  shadow.spreads = std::move(spreads);
  const auto count = static_cast<std::int64_t>(queries.size()) / head_dim;
  Prepared prepared{
      std::vector<std::int8_t>(static_cast<std::size_t>(count * shadow.padded_dim), 1),
      std::vector<float>(static_cast<std::size_t>(count))};
  prepare_shadow_queries(
      shadow.view(), queries.data(), count, prepared.rounded.data(), prepared.scales.data());
  return prepared;
}

TEST(ShadowQueries, AreWithinHalfAStepOfTheQueryTimesTheSpread) {
  constexpr std::int64_t kDim = 80;
  const std::vector<float> queries = random_floats(3 * kDim, 1);
  std::vector<float> spreads = random_floats(kDim, 2);
  for (float& spread : spreads) spread = std::exp(2.0F * spread);
  const Prepared prepared = prepare(queries, spreads);
  for (std::size_t r = 0; r < 3; ++r) {
    int peak = 0;
    for (std::size_t d = 0; d < kDim; ++d) {
      const double folded = static_cast<double>(queries[r * kDim + d]) * spreads[d];
      // NOLINTNEXTLINE(bugprone-signed-char-misuse): a number, not a character
      const int rounded = prepared.rounded[r * kDim + d];
      // Half a step, and the roundings of float32 in numbers up to 127 + 128.
      EXPECT_NEAR(rounded, folded / prepared.scales[r], 0.5 + 256.0 * std::ldexp(1.0, -22));
      peak = std::max(peak, std::abs(rounded));
    }
    EXPECT_EQ(peak, 127);
  }
}

TEST(ShadowQueries, PaddingIsZero) {
  const Prepared prepared = prepare(random_floats(2 * 5, 1), std::vector<float>(5, 1.0F));
  ASSERT_EQ(prepared.rounded.size(), 16U);
  for (const std::size_t i : {5U, 6U, 7U, 13U, 14U, 15U}) EXPECT_EQ(prepared.rounded[i], 0);
}

TEST(ShadowQueries, AnInfiniteOrMissingNumberMakesTheScaleNotANumber) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, kInfinity, -kInfinity}) {
    const Prepared prepared = prepare({1.0F, bad, 1.0F, 1.0F}, {1.0F, 1.0F});
    EXPECT_TRUE(std::isnan(prepared.scales[0]));
    EXPECT_EQ(prepared.rounded[0], 0);
    EXPECT_FLOAT_EQ(prepared.scales[1], 1.0F / 127.0F);
  }
}

TEST(ShadowQueries, VanishingQueriesAreZeroAndHugeOnesKeepTheirShape) {
  for (const float tiny : {0.0F, 1e-45F, 1e-38F}) {
    const Prepared prepared = prepare({tiny, -tiny}, {1.0F, 1.0F});
    EXPECT_EQ(prepared.rounded[0], 0);
    EXPECT_EQ(prepared.rounded[1], 0);
    EXPECT_LE(prepared.scales[0], 1e-38F);
  }
  const Prepared prepared = prepare({3e38F, -1.5e38F}, {1.0F, 1.0F});
  EXPECT_EQ(prepared.rounded[0], 127);
  EXPECT_NEAR(prepared.rounded[1], -63.5, 0.5);
}

}  // namespace
}  // namespace hybridgen::kernels::test
