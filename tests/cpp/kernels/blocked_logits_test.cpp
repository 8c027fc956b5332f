// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <utility>

#include "logits_test_support.h"

namespace hybridgen::kernels::test {
namespace {

constexpr std::int64_t kTokens = 160;  // five blocks
constexpr std::int64_t kQueries = 17;  // more than any kernel takes for one read of the keys

class BlockedLogits : public KernelTest {};

TEST_P(BlockedLogits, AreTheDotProductsForAnyQueryCountAndHeadDim) {
  for (const std::int64_t head_dim : {1, 2, 5, 32, 64, 80, 96, 128, 256, 514}) {
    const Keys keys = random_keys(dtype(), 64, head_dim);
    for (const std::vector<float>& queries :
         {any_queries(kQueries, head_dim), model_queries(dtype(), kQueries, head_dim)}) {
      for (std::int64_t num_queries = 1; num_queries <= kQueries; ++num_queries) {
        const TokenRange tokens{0, 64};
        expect_dot_products(blocked_logits(kernels(), keys, queries, num_queries, tokens),
                            keys,
                            queries,
                            num_queries,
                            tokens);
      }
    }
  }
}

TEST_P(BlockedLogits, DoNotDependOnTheRangeTheyAreComputedIn) {
  const Keys keys = random_keys(dtype(), kTokens, 64);
  std::vector<float> queries = any_queries(2, 64);
  const std::vector<float> other = model_queries(dtype(), 1, 64);
  queries.insert(queries.end(), other.begin(), other.end());
  const std::vector<float> whole = blocked_logits(kernels(), keys, queries, 3, {0, kTokens});
  for (const TokenRange tokens : {TokenRange{0, 1},
                                  TokenRange{31, 33},
                                  TokenRange{5, 20},
                                  TokenRange{7, 150},
                                  TokenRange{32, 64},
                                  TokenRange{64, 160},
                                  TokenRange{159, 160}}) {
    const std::vector<float> part = blocked_logits(kernels(), keys, queries, 3, tokens);
    for (std::int64_t q = 0; q < 3; ++q) {
      for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
        ASSERT_EQ(part[static_cast<std::size_t>(q * tokens.size() + t - tokens.begin)],
                  whole[static_cast<std::size_t>(q * kTokens + t)])
            << "query " << q << " token " << t << " of [" << tokens.begin << ", " << tokens.end
            << ")";
      }
    }
  }
}

TEST_P(BlockedLogits, AQuerysLogitsDoNotDependOnTheOtherQueries) {
  const Keys keys = random_keys(dtype(), kTokens, 40);
  std::vector<float> queries = any_queries(kQueries, 40);
  // Every third one such as a model of the keys' type has, which may take a path of its own.
  const std::vector<float> others = model_queries(dtype(), kQueries, 40);
  for (std::int64_t q = 0; q < kQueries; q += 3) {
    std::copy_n(others.begin() + q * 40, 40, queries.begin() + q * 40);
  }
  const std::vector<float> together =
      blocked_logits(kernels(), keys, queries, kQueries, {3, kTokens});
  for (std::int64_t q = 0; q < kQueries; ++q) {
    const std::vector<float> query(queries.begin() + q * 40, queries.begin() + (q + 1) * 40);
    const std::vector<float> alone = blocked_logits(kernels(), keys, query, 1, {3, kTokens});
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + q * (kTokens - 3)))
        << "query " << q;
  }
}

TEST_P(BlockedLogits, AnEmptyRangeWritesNothing) {
  const Keys keys = random_keys(dtype(), 32, 8);
  const std::vector<float> queries = random_floats(8, 8);
  EXPECT_TRUE(blocked_logits(kernels(), keys, queries, 1, {17, 17}).empty());
}

/// keys[t, d] = value(t, d), rounded to the type.
template <typename Value>
Keys keys_of(DType dtype, std::int64_t tokens, std::int64_t head_dim, Value value) {
  Keys keys{.rows = Array(dtype, tokens * head_dim), .head_dim = head_dim};
  for (std::int64_t i = 0; i < tokens * head_dim; ++i) {
    keys.rows.set(i, value(i / head_dim, i % head_dim));
  }
  keys.blocked = block_keys(keys.rows, head_dim);
  return keys;
}

TEST_P(BlockedLogits, AreTheDotProductsOfKeysOfAnySize) {
  constexpr std::int64_t kDim = 128;
  const std::vector<float> noise = random_floats(64 * kDim, 23);
  const auto noise_at = [&](std::int64_t t, std::int64_t d) {
    return noise[static_cast<std::size_t>(t * kDim + d)];
  };
  // Largest values whose sums stay finite: 65504, or a query of size 4 over all dimensions.
  const float huge = dtype() == DType::kFloat16 ? 65504.0F : std::ldexp(1.0F, 118);
  const float smallest =
      dtype() == DType::kFloat16 ? std::ldexp(1.0F, -24) : std::ldexp(1.0F, -133);
  const std::vector<std::pair<const char*, Keys>> all = {
      {"outlier channels",
       keys_of(dtype(),
               64,
               kDim,
               [&](std::int64_t t, std::int64_t d) {
                 return noise_at(t, d) * (d % 31 == 7 ? 1000.0F : 1.0F);
               })},
      {"huge",
       keys_of(
           dtype(),
           64,
           kDim,
           [&](std::int64_t t, std::int64_t d) { return noise_at(t, d) > 0.0F ? huge : -huge; })},
      {"denormal",
       keys_of(dtype(),
               64,
               kDim,
               [&](std::int64_t t, std::int64_t d) {
                 return std::round(noise_at(t, d) * 8.0F) * smallest;
               })},
      {"all equal", keys_of(dtype(), 64, kDim, [](std::int64_t, std::int64_t) { return 0.3F; })},
      {"zero", keys_of(dtype(), 64, kDim, [](std::int64_t, std::int64_t) { return 0.0F; })}};
  for (const auto& [name, keys] : all) {
    SCOPED_TRACE(name);
    for (const std::vector<float>& queries :
         {any_queries(9, kDim), model_queries(dtype(), 9, kDim)}) {
      expect_dot_products(
          blocked_logits(kernels(), keys, queries, 9, {0, 64}), keys, queries, 9, {0, 64});
    }
  }
}

TEST_P(BlockedLogits, ShowANaNOrInfinityInItsOwnTokenAlone) {
  constexpr std::int64_t kDim = 80;
  Keys keys = random_keys(dtype(), 96, kDim);
  keys.rows.set(40 * kDim + 79, kInfinity);
  keys.rows.set(50 * kDim, kInfinity);
  keys.rows.set(50 * kDim + 1, -kInfinity);  // inf - inf
  keys.blocked = block_keys(keys.rows, kDim);
  for (std::vector<float> queries : {any_queries(1, kDim), model_queries(dtype(), 1, kDim)}) {
    queries[0] = queries[1] = queries[79] = 0.25F;  // of every type, and times any power of two
    const std::vector<float> logits = blocked_logits(kernels(), keys, queries, 1, {0, 96});
    for (std::size_t t = 0; t < 96; ++t) {
      EXPECT_EQ(std::isfinite(logits[t]), t != 40 && t != 50) << "token " << t;
    }
    EXPECT_EQ(logits[40], kInfinity);
    EXPECT_TRUE(std::isnan(logits[50]));
  }
}

TEST_P(BlockedLogits, OfAQueryWithANaNAreNaN) {
  const Keys keys = random_keys(dtype(), 32, 64);
  std::vector<float> queries = model_queries(dtype(), 2, 64);
  queries[64 + 5] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits = blocked_logits(kernels(), keys, queries, 2, {0, 32});
  for (std::size_t t = 0; t < 32; ++t) {
    EXPECT_TRUE(std::isfinite(logits[t])) << "token " << t;
    EXPECT_TRUE(std::isnan(logits[32 + t])) << "token " << t;
  }
}

TEST_P(BlockedLogits, TouchNothingButTheirRange) {
  const Keys keys = random_keys(dtype(), kTokens, 32);
  const std::vector<float> queries = model_queries(dtype(), kQueries, 32);
  constexpr std::int64_t kStride = 50;
  std::vector<float> logits(kQueries * kStride, kInfinity);
  kernels().blocked_logits({.keys = keys.view(),
                            .queries = queries.data(),
                            .num_queries = kQueries,
                            .tokens = {29, 70},
                            .logits = logits.data(),
                            .logits_stride = kStride});
  for (std::size_t i = 0; i < logits.size(); ++i) {
    EXPECT_EQ(std::isfinite(logits[i]), i % kStride < 41) << i;
  }
}

TEST_P(BlockedLogits, OfChosenPositionsAreThoseOfTheFullRange) {
  const Keys keys = random_keys(dtype(), kTokens, 64);
  std::vector<float> queries = any_queries(kQueries, 64);
  const std::vector<float> other = model_queries(dtype(), 3, 64);
  std::copy(other.begin(), other.end(), queries.begin() + 4 * 64);
  const std::vector<float> whole = blocked_logits(kernels(), keys, queries, kQueries, {0, kTokens});
  // Any order and repetition is allowed.
  const std::vector<std::int32_t> positions = {0, 1, 31, 32, 159, 64, 64, 3, 100};
  const auto count = static_cast<std::int64_t>(positions.size());
  std::vector<float> logits(static_cast<std::size_t>(kQueries * count));
  kernels().chosen_logits({.keys = keys.view(),
                           .queries = queries.data(),
                           .num_queries = kQueries,
                           .positions = positions.data(),
                           .count = count,
                           .logits = logits.data(),
                           .logits_stride = count});
  for (std::int64_t q = 0; q < kQueries; ++q) {
    for (std::int64_t j = 0; j < count; ++j) {
      EXPECT_EQ(
          logits[static_cast<std::size_t>(q * count + j)],
          whole[static_cast<std::size_t>(q * kTokens + positions[static_cast<std::size_t>(j)])]);
    }
  }
}

TEST_P(BlockedLogits, DoNotDependOnWhereTheyAreFetchedAheadInto) {
  for (const std::int64_t head_dim : {5, 64, 80, 128}) {
    const Keys keys = random_keys(dtype(), kTokens, head_dim);
    for (const std::vector<float>& queries :
         {any_queries(kQueries, head_dim), model_queries(dtype(), kQueries, head_dim)}) {
      for (std::int64_t num_queries = 1; num_queries <= kQueries; ++num_queries) {
        const auto logits_by = [&](Prefetch prefetch) {
          return blocked_logits(kernels(), keys, queries, num_queries, {3, kTokens}, prefetch);
        };
        const std::vector<float> logits = logits_by(Prefetch::kL1);
        EXPECT_EQ(logits_by(Prefetch::kL2), logits) << num_queries << " queries";
        EXPECT_EQ(logits_by(Prefetch::kL3), logits) << num_queries << " queries";
      }
    }
  }
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(BlockedLogits);

}  // namespace
}  // namespace hybridgen::kernels::test
