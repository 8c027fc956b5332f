// SPDX-License-Identifier: Apache-2.0
// Kernels over keys and values in 8 and 4 bits, against what the bytes stand for, read by the
// layouts' descriptions alone and summed in float64.
#include <algorithm>
#include <random>

#include "kernel_test_support.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen::kernels::test {
namespace {

constexpr std::int64_t kTokens = 150;  // four whole blocks and a part of one
constexpr std::int64_t kQueries = 17;  // more than any kernel takes in one pass

std::vector<float> random_numbers(std::int64_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& x : numbers) x = normal(generator);
  return numbers;
}

std::uint16_t bits_at(const std::byte* at) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, 2);
  return bits;
}

float bfloat16_at(const std::byte* at) { return decode(DType::kBFloat16, bits_at(at)); }

/// Step of a token, and a key's elements without the centre in units of spread times step.
float step_of(const ShadowKeyView& keys, std::int64_t token) {
  return bfloat16_at(keys.blocks + (token / 32 + 1) * keys.block_bytes - 64 + token % 32 * 2);
}
int value_of(const ShadowKeyView& keys, std::int64_t token, std::int64_t d) {
  const std::byte* block = keys.blocks + token / 32 * keys.block_bytes;
  if (keys.precision == ShadowPrecision::kInt8) {
    return 2 * static_cast<int>(block[(d / 4 * 32 + token % 32) * 4 + d % 4]) - 255;
  }
  const int both = static_cast<int>(block[(d / 8 * 32 + token % 32) * 4 + d % 4]);
  return 2 * (d % 8 < 4 ? both & 0xf : both >> 4) - 15;
}
double key_element(const ShadowKeyView& keys, std::int64_t token, std::int64_t d) {
  return static_cast<double>(keys.centres[d]) + static_cast<double>(keys.spreads[d]) *
                                                    static_cast<double>(step_of(keys, token)) *
                                                    value_of(keys, token, d);
}

double value_element(const QuantisedRowView& values, std::int64_t token, std::int64_t d) {
  if (token < values.num_exact) {
    Array exact(values.dtype, values.num_exact * values.head_dim);
    std::memcpy(exact.data(),
                values.exact,
                static_cast<std::size_t>(exact.count()) * size_of(values.dtype));
    return static_cast<double>(exact.at(token * values.head_dim + d));
  }
  const std::byte* row = values.rows + token * values.row_bytes;
  const std::int64_t groups = (values.head_dim + 63) / 64;
  const std::int64_t group = d / 64;
  const std::int64_t dims = std::min<std::int64_t>(64, values.head_dim - group * 64);
  const std::byte* range = row + values.row_bytes - (groups - group) * 4;
  int code = 0;
  if (values.precision == KvPrecision::kInt8) {
    code = static_cast<int>(row[d]);
  } else {
    const std::int64_t half = (dims + 1) / 2;
    const std::int64_t place = d % 64;
    const int both = static_cast<int>(row[group * 32 + place % half]);
    code = place < half ? both & 0xf : both >> 4;
  }
  return static_cast<double>(bfloat16_at(range)) +
         static_cast<double>(bfloat16_at(range + 2)) * code;
}

/// One head's keys and values, written through the store.
struct Stored {
  Stored(KvPrecision precision, std::int64_t dim, DType dtype = DType::kFloat32)
      : store({.num_layers = 1,
               .num_kv_heads = 1,
               .head_dim = dim,
               .dtype = dtype,
               .capacity = kTokens,
               .key_precision = precision,
               .value_precision = precision}) {
    Array keys(dtype, kTokens * dim);
    Array values(dtype, kTokens * dim);
    const std::vector<float> numbers = random_numbers(2 * kTokens * dim, 11);
    for (std::int64_t i = 0; i < kTokens * dim; ++i) {
      const float x = numbers[static_cast<std::size_t>(i)];
      // Channels of their own means and spreads.
      keys.set(i, x * static_cast<float>(i % dim % 5 + 1) + static_cast<float>(i % dim % 7));
      values.set(i, numbers[static_cast<std::size_t>(kTokens * dim + i)]);
    }
    const KvRowsView key_rows{keys.data(), 0, dim};
    store.grow(kTokens);
    store.write(0, {0, kTokens}, key_rows, {values.data(), 0, dim});
  }
  ShadowKeyView keys() const { return store.key_codes(0, 0); }
  QuantisedRowView values() const { return store.value_codes(0, 0); }

  HostKvStore store;
};

struct PreparedQueries {
  PreparedQueries(const ShadowKeyView& keys, std::int64_t count, std::vector<float> rows)
      : plain(std::move(rows)),
        folded(static_cast<std::size_t>(count * keys.padded_dim)),
        starts(static_cast<std::size_t>(count)),
        constants(static_cast<std::size_t>(count)) {
    prepare_stored_queries(
        keys, plain.data(), count, folded.data(), starts.data(), constants.data());
  }
  std::vector<float> plain;
  std::vector<float> folded;
  std::vector<float> starts;
  std::vector<float> constants;
};

PreparedQueries some_queries(const ShadowKeyView& keys) {
  return {keys, kQueries, random_numbers(kQueries * keys.head_dim, 5)};
}

class StoredCodes : public testing::TestWithParam<std::tuple<Isa, KvPrecision>> {
 protected:
  const CpuKernels& kernels() const { return cpu_kernels(std::get<0>(GetParam())); }
  static KvPrecision precision() { return std::get<1>(GetParam()); }

  std::vector<float> scan(const Stored& stored,
                          const PreparedQueries& queries,
                          std::int64_t first_query,
                          std::int64_t num_queries,
                          TokenRange tokens) const {
    const ShadowKeyView keys = stored.keys();
    std::vector<float> logits(static_cast<std::size_t>(num_queries * tokens.size()));
    kernels().stored_key_logits({.keys = keys,
                                 .queries = queries.folded.data() + first_query * keys.padded_dim,
                                 .starts = queries.starts.data() + first_query,
                                 .constants = queries.constants.data() + first_query,
                                 .num_queries = num_queries,
                                 .tokens = tokens,
                                 .logits = logits.data(),
                                 .logits_stride = tokens.size()});
    return logits;
  }
};

TEST_P(StoredCodes, LogitsAreTheQueriesTimesWhatTheCodesHold) {
  for (const std::int64_t dim : {1, 8, 10, 64, 80, 128, 130, 512}) {
    const Stored stored(precision(), dim);
    const ShadowKeyView keys = stored.keys();
    const PreparedQueries queries = some_queries(keys);
    const std::vector<float> logits = scan(stored, queries, 0, kQueries, {0, kTokens});
    for (std::int64_t r = 0; r < kQueries; ++r) {
      for (std::int64_t t = 0; t < kTokens; ++t) {
        double expected = 0.0;
        double sizes = 0.0;
        for (std::int64_t d = 0; d < dim; ++d) {
          const auto q = static_cast<double>(queries.plain[static_cast<std::size_t>(r * dim + d)]);
          expected += q * key_element(keys, t, d);
          // The sum begins at the largest value's half and runs over codes, not values.
          sizes += std::abs(q) * (std::abs(static_cast<double>(keys.centres[d])) +
                                  static_cast<double>(keys.spreads[d]) * 2.0 *
                                      static_cast<double>(step_of(keys, t)) *
                                      (precision() == KvPrecision::kInt8 ? 255.0 : 15.0));
        }
        ASSERT_NEAR(static_cast<double>(logits[static_cast<std::size_t>(r * kTokens + t)]),
                    expected,
                    sum_error(dim) * sizes)
            << "head_dim " << dim << ", query " << r << ", token " << t;
      }
    }
  }
}

TEST_P(StoredCodes, ALogitDependsOnItsQueryAndItsKeyOnly) {
  const Stored stored(precision(), 72);
  const ShadowKeyView keys = stored.keys();
  const PreparedQueries queries = some_queries(keys);
  const std::vector<float> all = scan(stored, queries, 0, kQueries, {0, kTokens});
  for (std::int64_t count = 1; count <= 9; ++count) {
    for (const TokenRange tokens : {TokenRange{0, kTokens},
                                    TokenRange{3, 4},
                                    TokenRange{31, 65},
                                    TokenRange{64, 128},
                                    TokenRange{7, 7}}) {
      const std::vector<float> some = scan(stored, queries, 2, count, tokens);
      for (std::int64_t r = 0; r < count; ++r) {
        for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
          ASSERT_EQ(some[static_cast<std::size_t>(r * tokens.size() + t - tokens.begin)],
                    all[static_cast<std::size_t>((r + 2) * kTokens + t)]);
        }
      }
    }
  }
}

TEST_P(StoredCodes, ChosenTokensHaveTheLogitsOfTheScan) {
  for (const std::int64_t dim : {10, 64}) {
    const Stored stored(precision(), dim);
    const ShadowKeyView keys = stored.keys();
    const PreparedQueries queries = some_queries(keys);
    const std::vector<float> all = scan(stored, queries, 0, kQueries, {0, kTokens});
    std::vector<std::int32_t> positions{0, 1, 30, 31, 32, 40, 149};
    for (std::int32_t t = 50; t < 120; t += 2) positions.push_back(t);
    for (const std::int64_t count : {std::int64_t{1}, std::int64_t{7}, std::int64_t{42}}) {
      std::vector<float> logits(static_cast<std::size_t>(kQueries * count));
      kernels().stored_key_logits({.keys = keys,
                                   .queries = queries.folded.data(),
                                   .starts = queries.starts.data(),
                                   .constants = queries.constants.data(),
                                   .num_queries = kQueries,
                                   .tokens = {},
                                   .positions = positions.data(),
                                   .count = count,
                                   .logits = logits.data(),
                                   .logits_stride = count});
      for (std::int64_t r = 0; r < kQueries; ++r) {
        for (std::int64_t j = 0; j < count; ++j) {
          ASSERT_EQ(
              logits[static_cast<std::size_t>(r * count + j)],
              all[static_cast<std::size_t>(r * kTokens + positions[static_cast<std::size_t>(j)])]);
        }
      }
    }
  }
}

TEST_P(StoredCodes, NanAndInfiniteQueriesAndKeysGiveNan) {
  const std::int64_t dim = 16;
  Stored stored(precision(), dim);
  std::vector<float> row(static_cast<std::size_t>(dim), 1.0F);
  row[3] = kInfinity;
  stored.store.write_row(0, 0, 40, row.data(), row.data());
  const ShadowKeyView keys = stored.keys();
  std::vector<float> rows = random_numbers(3 * dim, 6);
  rows[1] = std::numeric_limits<float>::quiet_NaN();
  rows[static_cast<std::size_t>(dim)] = kInfinity;
  const PreparedQueries queries(keys, 3, rows);
  const std::vector<float> logits = scan(stored, queries, 0, 3, {0, kTokens});
  for (std::int64_t t = 0; t < kTokens; ++t) {
    EXPECT_FALSE(std::isfinite(logits[static_cast<std::size_t>(t)]));
    EXPECT_FALSE(std::isfinite(logits[static_cast<std::size_t>(kTokens + t)]));
    EXPECT_EQ(std::isnan(logits[static_cast<std::size_t>(2 * kTokens + t)]), t == 40);
  }
}

TEST_P(StoredCodes, KeyRowsAreWhatTheCodesHoldRoundedOnce) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::int64_t dim : {1, 10, 64, 80}) {
      const Stored stored(precision(), dim, dtype);
      const ShadowKeyView keys = stored.keys();
      Array all(dtype, kTokens * dim);
      kernels().stored_key_rows(
          {.keys = keys, .dtype = dtype, .count = kTokens, .out = all.data()});
      for (std::int64_t t = 0; t < kTokens; ++t) {
        for (std::int64_t d = 0; d < dim; ++d) {
          const double expected = key_element(keys, t, d);
          const double size =
              std::abs(static_cast<double>(keys.centres[d])) +
              static_cast<double>(keys.spreads[d]) * static_cast<double>(step_of(keys, t)) * 255.0;
          ASSERT_NEAR(static_cast<double>(all.at(t * dim + d)),
                      expected,
                      unit_roundoff(dtype) * std::abs(expected) + sum_error(2) * size +
                          absolute_floor(dtype));
        }
      }
      const std::vector<std::int32_t> positions{0, 31, 33, 100, 149};
      Array chosen(dtype, 5 * dim);
      kernels().stored_key_rows({.keys = keys,
                                 .dtype = dtype,
                                 .positions = positions.data(),
                                 .count = 5,
                                 .out = chosen.data()});
      for (std::int64_t j = 0; j < 5; ++j) {
        for (std::int64_t d = 0; d < dim; ++d) {
          ASSERT_EQ(chosen.at(j * dim + d),
                    all.at(positions[static_cast<std::size_t>(j)] * dim + d));
        }
      }
    }
  }
}

TEST_P(StoredCodes, ValueRowsAreWhatTheCodesHoldRoundedOnce) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::int64_t dim : {1, 7, 10, 16, 64, 79, 80, 96, 128, 200}) {
      const Stored stored(precision(), dim, dtype);
      const QuantisedRowView values = stored.values();
      Array all(dtype, kTokens * dim + 1);
      all.set(kTokens * dim, 77.0F);
      kernels().stored_value_rows({.values = values, .count = kTokens, .out = all.data()});
      EXPECT_EQ(all.at(kTokens * dim), 77.0F) << "beyond the rows";
      for (std::int64_t t = 0; t < kTokens; ++t) {
        for (std::int64_t d = 0; d < dim; ++d) {
          const double expected = value_element(values, t, d);
          ASSERT_NEAR(static_cast<double>(all.at(t * dim + d)),
                      expected,
                      unit_roundoff(dtype) * std::abs(expected) + sum_error(2) * 8.0 +
                          absolute_floor(dtype))
              << "head_dim " << dim << ", token " << t << ", " << d;
        }
      }
      const std::vector<std::int32_t> positions{2, 3, 80, 149};
      Array chosen(dtype, 4 * dim);
      kernels().stored_value_rows(
          {.values = values, .positions = positions.data(), .count = 4, .out = chosen.data()});
      for (std::int64_t j = 0; j < 4; ++j) {
        for (std::int64_t d = 0; d < dim; ++d) {
          ASSERT_EQ(chosen.at(j * dim + d),
                    all.at(positions[static_cast<std::size_t>(j)] * dim + d));
        }
      }
    }
  }
}

TEST_P(StoredCodes, ValueSumsAreTheWeightedSumsOfTheRows) {
  for (const std::int64_t dim : {1, 7, 16, 64, 79, 96, 128}) {
    const Stored stored(precision(), dim);
    const QuantisedRowView values = stored.values();
    const std::vector<float> weights = random_numbers(kQueries * kTokens, 9);
    std::vector<std::int32_t> positions;
    for (std::int32_t t = 0; t < kTokens; t += 1 + t % 3) positions.push_back(t);
    for (const bool is_chosen : {false, true}) {
      const auto count = is_chosen ? static_cast<std::int64_t>(positions.size()) : kTokens - 3;
      std::vector<float> out(static_cast<std::size_t>(kQueries * dim));
      StoredValueSumsArgs args{.values = values,
                               .positions = is_chosen ? positions.data() : nullptr,
                               .first = 2,
                               .count = count,
                               .weights = weights.data(),
                               .weights_stride = kTokens,
                               .num_queries = kQueries,
                               .out = out.data(),
                               .out_stride = dim};
      kernels().stored_value_sums(args);
      for (std::int64_t r = 0; r < kQueries; ++r) {
        for (std::int64_t d = 0; d < dim; ++d) {
          double expected = 0.0;
          double sizes = 0.0;
          for (std::int64_t j = 0; j < count; ++j) {
            const std::int64_t t = is_chosen ? positions[static_cast<std::size_t>(j)] : 2 + j;
            const auto w = static_cast<double>(weights[static_cast<std::size_t>(r * kTokens + j)]);
            expected += w * value_element(values, t, d);
            sizes += std::abs(w) * 8.0;  // minimum and code times scale, each below four spreads
          }
          ASSERT_NEAR(static_cast<double>(out[static_cast<std::size_t>(r * dim + d)]),
                      expected,
                      sum_error(count) * sizes);
        }
      }
      // One query at a time: the same bits.
      std::vector<float> one(static_cast<std::size_t>(dim));
      args.num_queries = 1;
      args.weights = weights.data() + 3 * kTokens;
      args.out = one.data();
      kernels().stored_value_sums(args);
      EXPECT_TRUE(std::equal(one.begin(), one.end(), out.begin() + 3 * dim));
    }
  }
}

TEST_P(StoredCodes, SumsOfNoTokensAreZero) {
  const Stored stored(precision(), 64);
  std::vector<float> out(64, 5.0F);
  kernels().stored_value_sums(
      {.values = stored.values(), .num_queries = 1, .out = out.data(), .out_stride = 64});
  EXPECT_EQ(out, std::vector<float>(64, 0.0F));
}

INSTANTIATE_TEST_SUITE_P(Every,
                         StoredCodes,
                         testing::Combine(testing::ValuesIn(supported_isas()),
                                          testing::Values(KvPrecision::kInt8, KvPrecision::kInt4)),
                         [](const auto& each) {
                           return std::string(name_of(std::get<0>(each.param))) +
                                  (std::get<1>(each.param) == KvPrecision::kInt8 ? "_int8"
                                                                                 : "_int4");
                         });

}  // namespace
}  // namespace hybridgen::kernels::test
