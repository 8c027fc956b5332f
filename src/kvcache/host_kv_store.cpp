// SPDX-License-Identifier: Apache-2.0
#include "kvcache/host_kv_store.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string_view>

#include "hybridgen/core/error.h"
#include "kvcache/scoring_shadow.h"

namespace hybridgen {

namespace {

void require_positive(std::string_view field, std::int64_t value) {
  if (value < 1) {
    throw ConfigError(message("[host KV store] ",
                              field,
                              " is ",
                              value,
                              "; allowed: >= 1; correct the shape of the store"));
  }
}

std::int64_t round_up_to_block(std::int64_t tokens) {
  return (tokens + kKeyBlockTokens - 1) / kKeyBlockTokens * kKeyBlockTokens;
}

HostKvShape checked(HostKvShape shape) {
  require_positive("num_layers", shape.num_layers);
  require_positive("num_kv_heads", shape.num_kv_heads);
  require_positive("head_dim", shape.head_dim);
  require_positive("capacity", shape.capacity);
  // Twice, for K and V, must stay addressable.
  std::int64_t limit = std::numeric_limits<std::int64_t>::max() / 2;
  for (const std::int64_t factor : {static_cast<std::int64_t>(size_of(shape.dtype)),
                                    shape.num_layers,
                                    shape.num_kv_heads,
                                    shape.head_dim}) {
    limit /= factor;
  }
  if (shape.capacity > limit - kKeyBlockTokens) {
    throw OutOfMemoryError(message("[host KV store] capacity is ",
                                   shape.capacity,
                                   " tokens; allowed: what 2^63 bytes can hold; pass a smaller "
                                   "capacity"));
  }
  shape.capacity = round_up_to_block(shape.capacity);
  return shape;
}

/// Keys in 8 or 4 bits are the codes that a scoring shadow has of them.
ShadowShape codes_shape(const HostKvShape& shape) {
  return {.num_layers = shape.num_layers,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .dtype = shape.dtype,
          .capacity = shape.capacity,
          .precision = shape.key_precision == KvPrecision::kInt8 ? ShadowPrecision::kInt8
                                                                 : ShadowPrecision::kInt4,
          .numa_node = shape.numa_node,
          .numa_parts = shape.numa_parts};
}

HostKvShape require_full(HostKvShape shape) {
  if (shape.key_precision != KvPrecision::kFull || shape.value_precision != KvPrecision::kFull) {
    throw ConfigError("[host KV store] keys or values are in 8 or 4 bits; allowed: full");
  }
  return shape;
}

/// Elements of K (or of V) of one (layer, KV head).
std::int64_t head_elements(const HostKvShape& shape) { return shape.capacity * shape.head_dim; }

/// Bytes of K (or of V) of all layers of one KV head.
std::int64_t head_bytes(const HostKvShape& shape) {
  return shape.num_layers * head_elements(shape) * static_cast<std::int64_t>(size_of(shape.dtype));
}

/// Bytes of K (or of V) of the whole store.
std::int64_t side_bytes(const HostKvShape& shape) { return shape.num_kv_heads * head_bytes(shape); }

std::int64_t key_bytes(const HostKvShape& shape) {
  return shape.key_precision == KvPrecision::kFull
             ? side_bytes(shape)
             : ScoringShadow::required_bytes(codes_shape(shape));
}

std::int64_t value_bytes(const HostKvShape& shape) {
  return shape.value_precision == KvPrecision::kFull
             ? side_bytes(shape)
             : shape.num_kv_heads * shape.num_layers * shape.capacity *
                   quantised_row_bytes(shape.value_precision, shape.head_dim);
}

/// The node that the whole store lies on.
int node_of(const HostKvShape& shape) { return shape.numa_parts.empty() ? shape.numa_node : -1; }

void require_index(std::string_view what, std::int64_t value, std::int64_t count) {
  if (value < 0 || value >= count) {
    throw ConfigError(message("[host KV store] ",
                              what,
                              " is ",
                              value,
                              "; allowed: 0 to ",
                              count - 1,
                              "; pass an index inside the store"));
  }
}

void require_tokens(TokenRange tokens, std::int64_t capacity) {
  if (tokens.begin < 0 || tokens.end < tokens.begin || tokens.end > capacity) {
    throw ConfigError(message("[host KV store] tokens are [",
                              tokens.begin,
                              ", ",
                              tokens.end,
                              "); allowed: ranges inside [0, ",
                              capacity,
                              "); create the store with a larger capacity"));
  }
}

/// Calls visit(block, first place in the block, first row of the range, rows) for every key block
/// that `tokens` touches.
template <typename Visit>
void for_each_block(TokenRange tokens, const Visit& visit) {
  for (std::int64_t position = tokens.begin; position < tokens.end;) {
    const std::int64_t place = position % kKeyBlockTokens;
    const std::int64_t rows = std::min(kKeyBlockTokens - place, tokens.end - position);
    visit(position / kKeyBlockTokens, place, position - tokens.begin, rows);
    position += rows;
  }
}

// Elements are moved as bits, whatever their type; memcpy of a constant size is one move.

/// block[d][place + t] = rows[t][d]. The inner loop runs along the block, so that stores are
/// contiguous; the 32 source lines stay in the first-level cache between dimensions.
template <std::size_t kBytes>
void write_key_block(std::byte* block,
                     std::int64_t place,
                     const std::byte* rows,
                     std::int64_t row_stride_bytes,
                     std::int64_t num_rows,
                     std::int64_t head_dim) {
  constexpr std::int64_t kElement = kBytes;
  for (std::int64_t d = 0; d < head_dim; ++d) {
    std::byte* to = block + (d * kKeyBlockTokens + place) * kElement;
    const std::byte* from = rows + d * kElement;
    for (std::int64_t t = 0; t < num_rows; ++t) {
      std::memcpy(to + t * kElement, from + t * row_stride_bytes, kBytes);
    }
  }
}

/// rows[t][d] = block[d][place + t], rows contiguous.
template <std::size_t kBytes>
void read_key_block(const std::byte* block,
                    std::int64_t place,
                    std::byte* rows,
                    std::int64_t num_rows,
                    std::int64_t head_dim) {
  constexpr std::int64_t kElement = kBytes;
  for (std::int64_t t = 0; t < num_rows; ++t) {
    const std::byte* from = block + (place + t) * kElement;
    std::byte* to = rows + t * head_dim * kElement;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      std::memcpy(to + d * kElement, from + d * kKeyBlockTokens * kElement, kBytes);
    }
  }
}

}  // namespace

HostKvStore::HostKvStore(const HostKvShape& shape)
    : shape_(require_full(checked(shape))),
      keys_(static_cast<std::size_t>(side_bytes(shape_)), node_of(shape_)),
      values_(static_cast<std::size_t>(side_bytes(shape_)), node_of(shape_)) {
  prefer_nodes(shape_.numa_parts, keys_.data(), head_bytes(shape_));
  prefer_nodes(shape_.numa_parts, values_.data(), head_bytes(shape_));
}

std::int64_t HostKvStore::required_bytes(const HostKvShape& shape) {
  const HostKvShape rounded = checked(shape);
  return key_bytes(rounded) + value_bytes(rounded);
}

void HostKvStore::write(std::int64_t layer,
                        TokenRange tokens,
                        const KvRowsView& keys,
                        const KvRowsView& values) {
  require_index("layer", layer, shape_.num_layers);
  require_tokens(tokens, shape_.capacity);
  const std::int64_t element = static_cast<std::int64_t>(size_of(shape_.dtype));
  const std::int64_t row_bytes = shape_.head_dim * element;
  auto* const write_block = element == 4 ? &write_key_block<4> : &write_key_block<2>;

  for (std::int64_t g = 0; g < shape_.num_kv_heads; ++g) {
    const std::int64_t offset = head_offset(layer, g);
    const auto write_rows = [&](std::byte* store, const void* data, const KvRowsView& view) {
      const std::byte* source =
          static_cast<const std::byte*>(data) + g * view.head_stride * element;
      for (std::int64_t t = 0; t < tokens.size(); ++t) {
        std::memcpy(store + offset + (tokens.begin + t) * row_bytes,
                    source + t * view.token_stride * element,
                    static_cast<std::size_t>(row_bytes));
      }
    };
    write_rows(values_.data(), values.data, values);
    if (shape_.key_layout == KeyLayout::kRows) {
      write_rows(keys_.data(), keys.data, keys);
      continue;
    }
    std::byte* key_blocks = keys_.data() + offset;
    const std::byte* key_rows =
        static_cast<const std::byte*>(keys.data) + g * keys.head_stride * element;
    const std::int64_t key_stride = keys.token_stride * element;
    for_each_block(
        tokens, [&](std::int64_t block, std::int64_t place, std::int64_t first, std::int64_t rows) {
          write_block(key_blocks + block * kKeyBlockTokens * row_bytes,
                      place,
                      key_rows + first * key_stride,
                      key_stride,
                      rows,
                      shape_.head_dim);
        });
  }
}

void HostKvStore::write_row(std::int64_t layer,
                            std::int64_t kv_head,
                            std::int64_t slot,
                            const void* key,
                            const void* value) {
  require_index("layer", layer, shape_.num_layers);
  require_index("kv_head", kv_head, shape_.num_kv_heads);
  require_index("slot", slot, shape_.capacity);
  const std::int64_t element = static_cast<std::int64_t>(size_of(shape_.dtype));
  const std::int64_t row_bytes = shape_.head_dim * element;
  const std::int64_t offset = head_offset(layer, kv_head);
  std::memcpy(
      values_.data() + offset + slot * row_bytes, value, static_cast<std::size_t>(row_bytes));
  if (shape_.key_layout == KeyLayout::kRows) {
    std::memcpy(keys_.data() + offset + slot * row_bytes, key, static_cast<std::size_t>(row_bytes));
    return;
  }
  auto* const write_block = element == 4 ? &write_key_block<4> : &write_key_block<2>;
  write_block(keys_.data() + offset + slot / kKeyBlockTokens * kKeyBlockTokens * row_bytes,
              slot % kKeyBlockTokens,
              static_cast<const std::byte*>(key),
              row_bytes,
              1,
              shape_.head_dim);
}

std::int64_t HostKvStore::head_offset(std::int64_t layer, std::int64_t kv_head) const {
  return (kv_head * shape_.num_layers + layer) * head_elements(shape_) *
         static_cast<std::int64_t>(size_of(shape_.dtype));
}

void HostKvStore::read(std::int64_t layer, TokenRange tokens, void* keys, void* values) const {
  require_index("layer", layer, shape_.num_layers);
  require_tokens(tokens, shape_.capacity);
  if (tokens.empty()) return;
  const std::int64_t element = static_cast<std::int64_t>(size_of(shape_.dtype));
  const std::int64_t row_bytes = shape_.head_dim * element;
  auto* const read_block = element == 4 ? &read_key_block<4> : &read_key_block<2>;

  for (std::int64_t g = 0; g < shape_.num_kv_heads; ++g) {
    const std::int64_t offset = head_offset(layer, g);
    const std::int64_t out_offset = g * tokens.size() * row_bytes;
    const auto read_rows = [&](const std::byte* store, void* out) {
      std::memcpy(static_cast<std::byte*>(out) + out_offset,
                  store + offset + tokens.begin * row_bytes,
                  static_cast<std::size_t>(tokens.size() * row_bytes));
    };
    read_rows(values_.data(), values);
    if (shape_.key_layout == KeyLayout::kRows) {
      read_rows(keys_.data(), keys);
      continue;
    }
    const std::byte* key_blocks = keys_.data() + offset;
    std::byte* key_rows = static_cast<std::byte*>(keys) + out_offset;
    for_each_block(
        tokens, [&](std::int64_t block, std::int64_t place, std::int64_t first, std::int64_t rows) {
          read_block(key_blocks + block * kKeyBlockTokens * row_bytes,
                     place,
                     key_rows + first * row_bytes,
                     rows,
                     shape_.head_dim);
        });
  }
}

BlockedKeyView HostKvStore::keys(std::int64_t layer, std::int64_t kv_head) const {
  require_head(layer, kv_head, KeyLayout::kBlocked);
  return {
      keys_.data() + head_offset(layer, kv_head), shape_.dtype, shape_.head_dim, shape_.capacity};
}

RowView HostKvStore::key_rows(std::int64_t layer, std::int64_t kv_head) const {
  require_head(layer, kv_head, KeyLayout::kRows);
  return {
      keys_.data() + head_offset(layer, kv_head), shape_.dtype, shape_.head_dim, shape_.capacity};
}

RowView HostKvStore::values(std::int64_t layer, std::int64_t kv_head) const {
  require_head(layer, kv_head, shape_.key_layout);
  return {
      values_.data() + head_offset(layer, kv_head), shape_.dtype, shape_.head_dim, shape_.capacity};
}

KvRowsView HostKvStore::key_rows_from(std::int64_t layer, std::int64_t slot) const {
  require_head(layer, 0, KeyLayout::kRows);
  require_tokens({slot, shape_.capacity}, shape_.capacity);
  const std::int64_t element = static_cast<std::int64_t>(size_of(shape_.dtype));
  return {keys_.data() + head_offset(layer, 0) + slot * shape_.head_dim * element,
          head_bytes(shape_) / element,
          shape_.head_dim};
}

void HostKvStore::require_head(std::int64_t layer, std::int64_t kv_head, KeyLayout layout) const {
  require_index("layer", layer, shape_.num_layers);
  require_index("kv_head", kv_head, shape_.num_kv_heads);
  if (layout != shape_.key_layout) {
    const bool is_blocked = shape_.key_layout == KeyLayout::kBlocked;
    throw ConfigError(message("[host KV store] keys lie in ",
                              is_blocked ? "blocks" : "rows",
                              "; allowed: ",
                              is_blocked ? "keys()" : "key_rows()"));
  }
}

}  // namespace hybridgen
