// SPDX-License-Identifier: Apache-2.0
// A store of every precision, layout and type read in every way, against itself and against the
// rows that were written.
#include "kvcache/stored_head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "cpp/kvcache/store_on_disk.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kLayers = 2;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 24;
constexpr std::int64_t kTokens = 1100;  // in two segments
constexpr std::int64_t kQueries = 3;

std::vector<float> normal_numbers(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& x : numbers) x = normal(random);
  return numbers;
}

/// Float32 rows [kHeads, kTokens, kDim] and the bits of a type that hold them.
struct Rows {
  Rows(DType dtype_, unsigned seed) : dtype(dtype_) {
    numbers = normal_numbers(kHeads * kTokens * kDim, seed);
    const auto size = size_of(dtype);
    bytes.resize(numbers.size() * size);
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      // Channels of their own means, cut to what a bfloat16 holds; float16 is not written here.
      numbers[i] += static_cast<float>(i % kDim % 5);
      std::uint32_t bits = 0;
      std::memcpy(&bits, &numbers[i], 4);
      bits &= 0xffff0000U;
      std::memcpy(&numbers[i], &bits, 4);
      const std::uint32_t stored = dtype == DType::kFloat32 ? bits : bits >> 16;
      std::memcpy(bytes.data() + i * size, &stored, size);
    }
  }
  const std::byte* at(std::int64_t head, std::int64_t token) const {
    return bytes.data() +
           static_cast<std::size_t>((head * kTokens + token) * kDim) * size_of(dtype);
  }
  KvRowsView from(std::int64_t token) const { return {at(0, token), kTokens * kDim, kDim}; }
  float element(std::int64_t head, std::int64_t token, std::int64_t d) const {
    return numbers[static_cast<std::size_t>((head * kTokens + token) * kDim + d)];
  }

  DType dtype;
  std::vector<float> numbers;
  std::vector<std::byte> bytes;
};

float number_at(DType dtype, const std::byte* at) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, at, size_of(dtype));
  if (dtype == DType::kBFloat16) bits <<= 16;
  float number = 0.0F;
  std::memcpy(&number, &bits, 4);
  return number;
}

using Setting = std::tuple<KvPrecision, KvPrecision, KeyLayout, DType>;

class StoredHeads : public testing::TestWithParam<Setting> {
 protected:
  static KvPrecision key_precision() { return std::get<0>(GetParam()); }
  static KvPrecision value_precision() { return std::get<1>(GetParam()); }
  static DType dtype() { return std::get<3>(GetParam()); }
  static std::size_t row_bytes() { return static_cast<std::size_t>(kDim) * size_of(dtype()); }

  static HostKvStore empty_store() {
    return HostKvStore({.num_layers = kLayers,
                        .num_kv_heads = kHeads,
                        .head_dim = kDim,
                        .dtype = dtype(),
                        .capacity = kTokens,
                        .key_layout = std::get<2>(GetParam()),
                        .key_precision = key_precision(),
                        .value_precision = value_precision()});
  }
  HostKvStore filled_store() const {
    HostKvStore store = empty_store();
    store.grow(store.shape().capacity);
    store.write(1, {0, kTokens}, keys_.from(0), values_.from(0));
    return store;
  }
  static StoredHead head(const HostKvStore& store, std::int64_t kv_head) {
    return {kernels::cpu_kernels(kernels::resolve_isa("auto")), store, 1, kv_head};
  }
  /// Keys, then values, of all heads.
  static std::vector<std::byte> read_all(const HostKvStore& store, TokenRange tokens) {
    const std::size_t side = static_cast<std::size_t>(kHeads * tokens.size()) * row_bytes();
    std::vector<std::byte> rows(2 * side);
    read_tokens(kernels::cpu_kernels(kernels::resolve_isa("auto")),
                store,
                1,
                tokens,
                rows.data(),
                rows.data() + side);
    return rows;
  }

  Rows keys_{dtype(), 1};
  Rows values_{dtype(), 2};
};

double tolerance(KvPrecision precision) {
  // Half a step of numbers within six spreads of their mean or minimum, one rounding to bfloat16.
  switch (precision) {
    case KvPrecision::kFull:
      return 0.0;
    case KvPrecision::kInt8:
      return 0.06;
    case KvPrecision::kInt4:
      return 0.5;
  }
  return 0.0;
}

TEST_P(StoredHeads, HoldWhatWasWrittenAndTheFirstTokensExactly) {
  const HostKvStore store = filled_store();
  const std::vector<std::byte> rows = read_all(store, {0, kTokens});
  for (const bool is_key : {true, false}) {
    const Rows& written = is_key ? keys_ : values_;
    const double error = tolerance(is_key ? key_precision() : value_precision());
    const std::byte* at = rows.data() + (is_key ? 0 : rows.size() / 2);
    for (std::int64_t g = 0; g < kHeads; ++g) {
      for (std::int64_t t = 0; t < kTokens; ++t) {
        for (std::int64_t d = 0; d < kDim; ++d, at += size_of(dtype())) {
          ASSERT_NEAR(static_cast<double>(number_at(dtype(), at)),
                      static_cast<double>(written.element(g, t, d)),
                      t < kExactTokens ? 0.0 : error)
              << (is_key ? "key" : "value") << " of token " << t;
        }
      }
    }
  }
}

TEST_P(StoredHeads, GatherTheRowsThatTheyRead) {
  const HostKvStore store = filled_store();
  const std::vector<std::int32_t> positions{0, 3, 4, 31, 32, 500, 1023, 1024, 1099};
  const auto count = static_cast<std::int64_t>(positions.size());
  for (std::int64_t g = 0; g < kHeads; ++g) {
    for (const bool is_key : {true, false}) {
      const auto all_of = [&](TokenRange tokens) {
        std::vector<std::byte> rows(static_cast<std::size_t>(tokens.size()) * row_bytes());
        is_key ? head(store, g).keys(tokens, rows.data(), kernels::RowReader::kDevice)
               : head(store, g).values(tokens, rows.data(), kernels::RowReader::kDevice);
        return rows;
      };
      const std::vector<std::byte> all = all_of({0, kTokens});
      std::vector<std::byte> chosen(static_cast<std::size_t>(count) * row_bytes());
      is_key ? head(store, g).keys(positions, chosen.data(), kernels::RowReader::kCpu)
             : head(store, g).values(positions, chosen.data(), kernels::RowReader::kCpu);
      for (std::size_t j = 0; j < positions.size(); ++j) {
        EXPECT_EQ(std::memcmp(chosen.data() + j * row_bytes(),
                              all.data() + static_cast<std::size_t>(positions[j]) * row_bytes(),
                              row_bytes()),
                  0)
            << "position " << positions[j];
      }
      for (const TokenRange tokens : {TokenRange{2, 40}, TokenRange{1000, 1050}}) {
        const std::vector<std::byte> some = all_of(tokens);
        EXPECT_EQ(std::memcmp(some.data(),
                              all.data() + static_cast<std::size_t>(tokens.begin) * row_bytes(),
                              some.size()),
                  0);
      }
    }
  }
}

TEST_P(StoredHeads, LogitsAreTheQueriesTimesTheKeysThatTheyGather) {
  const HostKvStore store = filled_store();
  const std::vector<float> queries = normal_numbers(kQueries * kDim, 3);
  StoredHead::Scratch scratch;
  std::vector<float> all(static_cast<std::size_t>(kQueries * kTokens));
  head(store, 1).scan({0, kTokens}, {queries.data(), kQueries}, all.data(), kTokens, scratch);
  const std::vector<std::byte> rows = read_all(store, {0, kTokens});
  // A gathered key is rounded to its type, a logit is not.
  const double rounding = dtype() == DType::kFloat32 ? 1e-6 : 4e-3;
  for (std::int64_t r = 0; r < kQueries; ++r) {
    for (std::int64_t t = 0; t < kTokens; ++t) {
      double expected = 0.0;
      double sizes = 0.0;
      for (std::int64_t d = 0; d < kDim; ++d) {
        const std::byte* at =
            rows.data() + static_cast<std::size_t>((kTokens + t) * kDim + d) * size_of(dtype());
        const double product =
            static_cast<double>(queries[static_cast<std::size_t>(r * kDim + d)]) *
            static_cast<double>(number_at(dtype(), at));
        expected += product;
        sizes += std::abs(product) + 10.0;
      }
      ASSERT_NEAR(static_cast<double>(all[static_cast<std::size_t>(r * kTokens + t)]),
                  expected,
                  rounding * sizes);
    }
  }
  // Ranges and chosen tokens: the same bits.
  for (const TokenRange tokens : {TokenRange{0, 3}, TokenRange{2, 70}, TokenRange{1010, 1100}}) {
    std::vector<float> some(static_cast<std::size_t>(kQueries * tokens.size()));
    head(store, 1).scan(tokens, {queries.data(), kQueries}, some.data(), tokens.size(), scratch);
    for (std::int64_t r = 0; r < kQueries; ++r) {
      EXPECT_TRUE(std::equal(some.begin() + r * tokens.size(),
                             some.begin() + (r + 1) * tokens.size(),
                             all.begin() + r * kTokens + tokens.begin));
    }
  }
  const std::vector<std::int32_t> positions{1, 3, 7, 64, 1022, 1024, 1099};
  const auto count = static_cast<std::int64_t>(positions.size());
  std::vector<float> chosen(static_cast<std::size_t>(kQueries * count));
  head(store, 1).score(positions, {queries.data(), kQueries}, chosen.data(), count, scratch);
  for (std::int64_t r = 0; r < kQueries; ++r) {
    for (std::int64_t j = 0; j < count; ++j) {
      EXPECT_EQ(
          chosen[static_cast<std::size_t>(r * count + j)],
          all[static_cast<std::size_t>(r * kTokens + positions[static_cast<std::size_t>(j)])]);
    }
  }
}

TEST_P(StoredHeads, GiveTheSameBitsOfBlocksThatLieOnTheDisk) {
  const HostKvStore in_memory = filled_store();
  StoreOnDisk on_disk(filled_store());
  const std::vector<float> queries = normal_numbers(kQueries * kDim, 3);
  const std::vector<std::int32_t> positions{0, 3, 4, 255, 256, 700, 1023, 1024, 1099};
  const auto count = static_cast<std::int64_t>(positions.size());
  // In this order chosen blocks are read first, and then the others.
  const auto read = [&](const HostKvStore& store) {
    const StoredHead reader = head(store, 1);
    StoredHead::Scratch scratch;
    std::vector<std::byte> rows(static_cast<std::size_t>(2 * count) * row_bytes());
    reader.keys(positions, rows.data(), kernels::RowReader::kCpu);
    reader.values(positions, rows.data() + rows.size() / 2, kernels::RowReader::kDevice);
    std::vector<float> logits(static_cast<std::size_t>(kQueries * (count + kTokens - 2)));
    reader.score(positions, {queries.data(), kQueries}, logits.data(), count, scratch);
    reader.scan({2, kTokens},
                {queries.data(), kQueries},
                logits.data() + kQueries * count,
                kTokens - 2,
                scratch);
    const std::vector<std::byte> all = read_all(store, {1, kTokens});
    rows.insert(rows.end(), all.begin(), all.end());
    return std::pair(rows, logits);
  };
  const auto expected = read(in_memory);
  EXPECT_TRUE(read(on_disk.store) == expected);
  EXPECT_GT(on_disk.queue.statistics().read_bytes, 0);
  on_disk.store.disk()->release(1);
  EXPECT_TRUE(read(on_disk.store) == expected);
}

TEST_P(StoredHeads, WrittenInPiecesOrByRowsHoldTheSameOnceTheChannelsAreFixed) {
  const std::vector<std::byte> whole = read_all(filled_store(), {0, 1000});
  for (const std::int64_t piece : {1, 7, 64, 999}) {
    HostKvStore store = empty_store();
    store.grow(kTokens);
    store.fix_channels(1, 1024, keys_.from(0));  // the rows that the whole write fixes them by
    for (std::int64_t begin = 0; begin < 1000; begin += piece) {
      const TokenRange tokens{begin, std::min<std::int64_t>(begin + piece, 1000)};
      if (piece > 1) {
        store.write(1, tokens, keys_.from(begin), values_.from(begin));
        continue;
      }
      for (std::int64_t g = 0; g < kHeads; ++g) {
        store.write_row(1, g, begin, keys_.at(g, begin), values_.at(g, begin));
      }
    }
    EXPECT_EQ(read_all(store, {0, 1000}), whole) << "pieces of " << piece;
  }
}

TEST_P(StoredHeads, ARowThatTakesASlotOverIsTheOnlyOneThatChanges) {
  HostKvStore store = filled_store();
  for (const std::int64_t slot : {2, 700, 1050}) {
    const std::vector<std::byte> before = read_all(store, {0, kTokens});
    store.write_row(1, 0, slot, keys_.at(1, 40), values_.at(1, 40));
    const std::vector<std::byte> after = read_all(store, {0, kTokens});
    for (std::size_t row = 0; row < before.size() / row_bytes(); ++row) {
      const bool is_same = std::memcmp(before.data() + row * row_bytes(),
                                       after.data() + row * row_bytes(),
                                       row_bytes()) == 0;
      const bool is_slot =
          row % static_cast<std::size_t>(kHeads * kTokens) == static_cast<std::size_t>(slot);
      EXPECT_EQ(is_same, !is_slot) << "row " << row;
    }
  }
}

TEST_P(StoredHeads, ANanRowIsNanAndDisturbsNoOther) {
  HostKvStore store = filled_store();
  const std::vector<std::byte> before = read_all(store, {0, kTokens});
  std::vector<std::byte> row(row_bytes(), std::byte{0xff});  // NaN in every type
  store.write_row(1, 1, 900, row.data(), row.data());
  const std::vector<std::byte> after = read_all(store, {0, kTokens});
  for (std::size_t i = 0; i < before.size() / row_bytes(); ++i) {
    const std::byte* at = after.data() + i * row_bytes();
    if (i % static_cast<std::size_t>(kHeads * kTokens) == static_cast<std::size_t>(kTokens + 900)) {
      EXPECT_TRUE(std::isnan(number_at(dtype(), at)));
    } else {
      EXPECT_EQ(std::memcmp(at, before.data() + i * row_bytes(), row_bytes()), 0);
    }
  }
}

using enum KvPrecision;
INSTANTIATE_TEST_SUITE_P(Every,
                         StoredHeads,
                         testing::Combine(testing::Values(kFull, kInt8, kInt4),
                                          testing::Values(kFull, kInt8, kInt4),
                                          testing::Values(KeyLayout::kBlocked, KeyLayout::kRows),
                                          testing::Values(DType::kFloat32, DType::kBFloat16)));

/// Keys whose means move with the position, as rotary embeddings move them.
TEST(StoredHead, ASegmentIsCalibratedByItsOwnRowsOrByTheSegmentBefore) {
  constexpr std::int64_t kCount = 3 * kKeySegmentTokens;
  std::vector<float> rows = normal_numbers(kCount * kDim, 4);
  for (std::int64_t i = 0; i < kCount * kDim; ++i) {
    const std::int64_t token = i / kDim;
    rows[static_cast<std::size_t>(i)] +=
        20.0F * std::sin(static_cast<float>(token) * 2e-4F + static_cast<float>(i % kDim));
  }
  const auto error_of = [&](std::int64_t piece, TokenRange tokens) {
    HostKvStore store({.num_layers = 1,
                       .num_kv_heads = 1,
                       .head_dim = kDim,
                       .capacity = kCount,
                       .key_precision = KvPrecision::kInt4});
    store.grow(store.shape().capacity);
    for (std::int64_t begin = 0; begin < kCount; begin += piece) {
      const KvRowsView view{rows.data() + begin * kDim, 0, kDim};
      store.write(0, {begin, begin + piece}, view, view);
    }
    std::vector<float> held(static_cast<std::size_t>(tokens.size() * kDim));
    StoredHead(kernels::cpu_kernels(kernels::Isa::kPortable), store, 0, 0)
        .keys(tokens, held.data(), kernels::RowReader::kCpu);
    double sum = 0.0;
    for (std::size_t i = 0; i < held.size(); ++i) {
      const double error =
          static_cast<double>(held[i]) -
          static_cast<double>(rows[i + static_cast<std::size_t>(tokens.begin * kDim)]);
      sum += error * error;
    }
    return std::sqrt(sum / static_cast<double>(held.size()));
  };
  const TokenRange last{2 * kKeySegmentTokens, kCount};
  const double own = error_of(kKeySegmentTokens, last);
  // Row by row a segment takes over what the one before looks like, which is near.
  const double of_the_one_before = error_of(32, last);
  EXPECT_LT(of_the_one_before, 2.0 * own);
  EXPECT_LT(own, of_the_one_before);
}

}  // namespace
}  // namespace hybridgen
