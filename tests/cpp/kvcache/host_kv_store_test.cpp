// SPDX-License-Identifier: Apache-2.0
#include "kvcache/host_kv_store.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "kvcache/stored_head.h"

namespace hybridgen {
namespace {

void read(
    const HostKvStore& store, std::int64_t layer, TokenRange tokens, void* keys, void* values) {
  read_tokens(kernels::cpu_kernels(kernels::Isa::kPortable), store, layer, tokens, keys, values);
}

/// A different value for every element, and for K and V. Tests look at bits only.
template <typename T>
T element(std::int64_t layer, std::int64_t g, std::int64_t t, std::int64_t d, bool key) {
  const std::int64_t mixed = (((layer * 7 + g) * 331 + t) * 29 + d) * 2 + (key ? 1 : 0);
  return static_cast<T>(mixed * 40503 + 1);
}

/// Rows with gaps between tokens and heads, as views of larger tensors have.
template <typename T>
struct Rows {
  Rows(std::int64_t layer, std::int64_t heads, TokenRange tokens, std::int64_t dim, bool key)
      : token_stride(dim + 3), head_stride(tokens.size() * token_stride + 5) {
    data.resize(static_cast<std::size_t>(heads * head_stride));
    for (std::int64_t g = 0; g < heads; ++g) {
      for (std::int64_t t = 0; t < tokens.size(); ++t) {
        for (std::int64_t d = 0; d < dim; ++d) {
          data[static_cast<std::size_t>(g * head_stride + t * token_stride + d)] =
              element<T>(layer, g, tokens.begin + t, d, key);
        }
      }
    }
  }
  KvRowsView view() const { return {data.data(), head_stride, token_stride}; }

  std::int64_t token_stride;
  std::int64_t head_stride;
  std::vector<T> data;
};

template <typename T>
class HostKvStoreOf : public testing::Test {
 protected:
  static constexpr DType kDType = sizeof(T) == 4 ? DType::kFloat32 : DType::kBFloat16;
  static inline const HostKvShape kShape{
      .num_layers = 2, .num_kv_heads = 3, .head_dim = 10, .dtype = kDType, .capacity = 100};

  static void write(HostKvStore& store, std::int64_t layer, TokenRange tokens) {
    const Rows<T> keys(layer, kShape.num_kv_heads, tokens, kShape.head_dim, true);
    const Rows<T> values(layer, kShape.num_kv_heads, tokens, kShape.head_dim, false);
    store.write(layer, tokens, keys.view(), values.view());
  }

  static void expect_read(const HostKvStore& store, std::int64_t layer, TokenRange tokens) {
    const auto count =
        static_cast<std::size_t>(kShape.num_kv_heads * tokens.size() * kShape.head_dim);
    std::vector<T> keys(count);
    std::vector<T> values(count);
    read(store, layer, tokens, keys.data(), values.data());
    std::size_t i = 0;
    for (std::int64_t g = 0; g < kShape.num_kv_heads; ++g) {
      for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
        for (std::int64_t d = 0; d < kShape.head_dim; ++d, ++i) {
          ASSERT_EQ(keys[i], element<T>(layer, g, t, d, true)) << "K head " << g << " token " << t;
          ASSERT_EQ(values[i], element<T>(layer, g, t, d, false))
              << "V head " << g << " token " << t;
        }
      }
    }
  }
};

using ElementTypes = testing::Types<std::uint16_t, std::uint32_t>;
TYPED_TEST_SUITE(HostKvStoreOf, ElementTypes);

TYPED_TEST(HostKvStoreOf, ReadsBackWhatWasWrittenForAnyRange) {
  for (const TokenRange tokens : {TokenRange{0, 100},
                                  TokenRange{0, 32},
                                  TokenRange{5, 6},
                                  TokenRange{31, 33},
                                  TokenRange{40, 99},
                                  TokenRange{64, 96}}) {
    HostKvStore store(this->kShape);
    store.grow(store.shape().capacity);
    this->write(store, 1, tokens);
    this->expect_read(store, 1, tokens);
  }
}

TYPED_TEST(HostKvStoreOf, OverSeveralNodesReadsBackWhatWasWritten) {
  for (const KeyLayout layout : {KeyLayout::kBlocked, KeyLayout::kRows}) {
    HostKvShape shape = this->kShape;
    shape.key_layout = layout;
    shape.numa_parts = {{0, 0, 1, {}}, {1, 1, 0, {}}, {2, 1, 2, {}}};
    HostKvStore store(shape);
    store.grow(store.shape().capacity);
    this->write(store, 0, {0, 100});
    this->write(store, 1, {0, 100});
    this->expect_read(store, 0, {0, 100});
    this->expect_read(store, 1, {31, 70});
    EXPECT_EQ(HostKvStore::required_bytes(shape), HostKvStore::required_bytes(this->kShape));
    if (layout == KeyLayout::kBlocked) continue;
    const KvRowsView rows = store.key_rows_from(1, 31);
    HostKvStore copy(shape);
    copy.grow(copy.shape().capacity);
    copy.write(1, {31, 70}, rows, rows);
    for (std::int64_t g = 0; g < shape.num_kv_heads; ++g) {
      const auto bytes = static_cast<std::size_t>(39 * shape.head_dim) * sizeof(TypeParam);
      const auto offset = static_cast<std::ptrdiff_t>(31 * shape.head_dim);
      EXPECT_EQ(std::memcmp(static_cast<const TypeParam*>(copy.key_rows(1, g).data) + offset,
                            static_cast<const TypeParam*>(store.key_rows(1, g).data) + offset,
                            bytes),
                0);
    }
  }
}

TYPED_TEST(HostKvStoreOf, WritingInRaggedPiecesEqualsWritingAtOnce) {
  HostKvStore store(this->kShape);
  store.grow(store.shape().capacity);
  std::int64_t begin = 0;
  for (const std::int64_t size : {1, 30, 2, 33, 1, 33}) {
    this->write(store, 0, {begin, begin + size});
    this->write(store, 1, {begin, begin + size});
    begin += size;
  }
  ASSERT_EQ(begin, 100);
  this->expect_read(store, 0, {0, 100});
  this->expect_read(store, 1, {0, 100});
}

TYPED_TEST(HostKvStoreOf, KeysInRowsReadBackAndLieInRows) {
  HostKvShape shape = this->kShape;
  shape.key_layout = KeyLayout::kRows;
  HostKvStore store(shape);
  store.grow(store.shape().capacity);
  this->write(store, 1, {0, 41});
  this->write(store, 1, {41, 100});
  this->expect_read(store, 1, {0, 100});
  this->expect_read(store, 1, {31, 77});
  const RowView rows = store.key_rows(1, 2);
  const auto* row = static_cast<const TypeParam*>(rows.data) + 50 * shape.head_dim;
  EXPECT_EQ(row[3], element<TypeParam>(1, 2, 50, 3, true));
  EXPECT_THROW(static_cast<void>(store.keys(1, 2)), ConfigError);
  EXPECT_THROW(static_cast<void>(HostKvStore(this->kShape).key_rows(1, 2)), ConfigError);
}

TYPED_TEST(HostKvStoreOf, OneRowReplacesOneSlotOfOneHead) {
  for (const KeyLayout layout : {KeyLayout::kBlocked, KeyLayout::kRows}) {
    HostKvShape shape = this->kShape;
    shape.key_layout = layout;
    HostKvStore store(shape);
    store.grow(store.shape().capacity);
    this->write(store, 0, {0, 100});
    std::vector<TypeParam> key(10);
    std::vector<TypeParam> value(10);
    for (std::size_t d = 0; d < 10; ++d) {
      key[d] = static_cast<TypeParam>(1000 + d);
      value[d] = static_cast<TypeParam>(2000 + d);
    }
    store.write_row(0, 1, 37, key.data(), value.data());
    std::vector<TypeParam> keys(3 * 10);
    std::vector<TypeParam> values(3 * 10);
    read(store, 0, {37, 38}, keys.data(), values.data());
    for (std::size_t d = 0; d < 10; ++d) {
      EXPECT_EQ(keys[10 + d], key[d]);
      EXPECT_EQ(values[10 + d], value[d]);
      EXPECT_EQ(keys[d], element<TypeParam>(0, 0, 37, static_cast<std::int64_t>(d), true));
      EXPECT_EQ(values[20 + d], element<TypeParam>(0, 2, 37, static_cast<std::int64_t>(d), false));
    }
    this->expect_read(store, 0, {0, 37});
    this->expect_read(store, 0, {38, 100});
    EXPECT_THROW(store.write_row(0, 1, shape.capacity + 40, key.data(), value.data()), ConfigError);
  }
}

TYPED_TEST(HostKvStoreOf, AWriteLeavesAllOtherTokensAlone) {
  HostKvStore store(this->kShape);
  store.grow(store.shape().capacity);
  this->write(store, 0, {0, 100});
  this->write(store, 1, {0, 100});
  const std::vector<TypeParam> zeros(1000, TypeParam{0});
  const KvRowsView view{zeros.data(), 0, 0};
  store.write(0, {33, 35}, view, view);
  this->expect_read(store, 0, {0, 33});
  this->expect_read(store, 0, {35, 100});
  this->expect_read(store, 1, {0, 100});
}

TYPED_TEST(HostKvStoreOf, KeysLieDimensionMajorInBlocksOf32Tokens) {
  HostKvStore store(this->kShape);
  store.grow(store.shape().capacity);
  this->write(store, 1, {0, 100});
  for (std::int64_t g = 0; g < this->kShape.num_kv_heads; ++g) {
    const BlockedKeyView view = store.keys(1, g);
    ASSERT_EQ(view.head_dim, this->kShape.head_dim);
    ASSERT_EQ(view.capacity % kKeyBlockTokens, 0);
    ASSERT_GE(view.capacity, 100);
    const auto* data = static_cast<const TypeParam*>(view.data);
    for (std::int64_t t = 0; t < 100; ++t) {
      for (std::int64_t d = 0; d < view.head_dim; ++d) {
        ASSERT_EQ(data[((t / 32) * view.head_dim + d) * 32 + t % 32],
                  element<TypeParam>(1, g, t, d, true));
      }
    }
  }
}

TYPED_TEST(HostKvStoreOf, ValuesLieRowAfterRow) {
  HostKvStore store(this->kShape);
  store.grow(store.shape().capacity);
  this->write(store, 1, {0, 100});
  const RowView view = store.values(1, 2);
  const auto* data = static_cast<const TypeParam*>(view.data);
  for (std::int64_t t = 0; t < 100; ++t) {
    ASSERT_EQ(data[t * view.head_dim + 4], element<TypeParam>(1, 2, t, 4, false));
  }
}

TYPED_TEST(HostKvStoreOf, RequiredBytesCoverEveryHeadOfEveryLayer) {
  // 100 tokens are rounded up to 128.
  EXPECT_EQ(HostKvStore::required_bytes(this->kShape),
            2 * 2 * 3 * 128 * 10 * static_cast<std::int64_t>(sizeof(TypeParam)));
}

TEST(HostKvStore, RequiredBytesFollowThePrecisionsOfKeysAndValues) {
  HostKvShape shape{.num_layers = 2,
                    .num_kv_heads = 3,
                    .head_dim = 64,
                    .dtype = DType::kBFloat16,
                    .capacity = 100};
  const auto bytes_of = [&](KvPrecision keys, KvPrecision values) {
    shape.key_precision = keys;
    shape.value_precision = values;
    return HostKvStore::required_bytes(shape);
  };
  const std::int64_t rows = 2 * 3 * 128;
  // A key has its codes and a step; a channel, for all tokens, its centre and spread.
  const std::int64_t channels = std::int64_t{2} * 3 * 64 * 2 * 4;
  const std::int64_t exact = std::int64_t{2} * 3 * kExactTokens * 128;
  using enum KvPrecision;
  EXPECT_EQ(bytes_of(kFull, kFull), rows * (128 + 128));
  EXPECT_EQ(bytes_of(kFull, kInt8), rows * (128 + 64 + 4) + exact);
  EXPECT_EQ(bytes_of(kFull, kInt4), rows * (128 + 32 + 4) + exact);
  EXPECT_EQ(bytes_of(kInt8, kFull), rows * (64 + 2 + 128) + channels + exact);
  EXPECT_EQ(bytes_of(kInt4, kFull), rows * (32 + 2 + 128) + channels + exact);
  EXPECT_EQ(bytes_of(kInt8, kInt4), rows * (64 + 2 + 32 + 4) + channels + 2 * exact);
  EXPECT_LE(static_cast<double>(rows * (64 + 2 + 32 + 4)), 0.42 * static_cast<double>(rows * 256));
}

const HostKvShape kSmall{
    .num_layers = 1, .num_kv_heads = 1, .head_dim = 4, .dtype = DType::kFloat32, .capacity = 32};

TEST(HostKvStore, RejectsShapesThatAreNotPositive) {
  for (const auto field : {&HostKvShape::num_layers,
                           &HostKvShape::num_kv_heads,
                           &HostKvShape::head_dim,
                           &HostKvShape::capacity}) {
    HostKvShape shape = kSmall;
    shape.*field = 0;
    EXPECT_THROW(HostKvStore{shape}, ConfigError);
    EXPECT_THROW(HostKvStore::required_bytes(shape), ConfigError);
  }
}

TEST(HostKvStore, RefusesMoreThanTheMachineCanAddress) {
  HostKvShape shape = kSmall;
  shape.capacity = std::int64_t{1} << 50;
  EXPECT_THROW(HostKvStore{shape}, OutOfMemoryError);
  shape.capacity = std::numeric_limits<std::int64_t>::max();
  EXPECT_THROW(HostKvStore::required_bytes(shape), OutOfMemoryError);
}

TEST(HostKvStore, OfAnUnknownNodeIsRefused) {
  HostKvShape shape = kSmall;
  shape.numa_node = 1 << 20;
  EXPECT_THROW(HostKvStore{shape}, ConfigError);
}

TEST(HostKvStore, RejectsWhatLiesOutside) {
  HostKvStore store(kSmall);
  store.grow(store.shape().capacity);
  std::vector<float> rows(4 * 64);
  const KvRowsView view{rows.data(), 0, 4};
  EXPECT_THROW(store.write(1, {0, 1}, view, view), ConfigError);
  EXPECT_THROW(store.write(-1, {0, 1}, view, view), ConfigError);
  EXPECT_THROW(store.write(0, {-1, 1}, view, view), ConfigError);
  EXPECT_THROW(store.write(0, {0, 33}, view, view), ConfigError);
  EXPECT_THROW(store.write(0, {2, 1}, view, view), ConfigError);
  EXPECT_THROW(read(store, 0, {0, 33}, rows.data(), rows.data()), ConfigError);
  EXPECT_THROW(static_cast<void>(store.keys(0, 1)), ConfigError);
  EXPECT_THROW(static_cast<void>(store.values(2, 0)), ConfigError);
}

}  // namespace
}  // namespace hybridgen
