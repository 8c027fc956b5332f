// SPDX-License-Identifier: Apache-2.0
#include "kvcache/host_kv_store.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>

#include "hybridgen/core/error.h"
#include "kvcache/quantised_rows.h"
#include "memory/placed_memory.h"

namespace hybridgen {

namespace {

constexpr std::string_view kGrow = "grow the KV cache";

std::int64_t all_bytes(const KvMemoryShape& memory) {
  return memory.num_kv_heads * memory.num_layers * memory.capacity * memory.row_bytes;
}

std::int64_t key_bytes(const HostKvShape& shape) {
  return has_full_keys(shape)
             ? all_bytes(key_memory_shape(shape))
             : ScoringShadow::required_bytes(codes_shape(shape)) + exact_bytes(shape);
}

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

void require_precision(std::string_view what, bool is_as_asked, std::string_view allowed) {
  if (!is_as_asked) {
    throw ConfigError(
        message("[host KV store] ", what, " lie in another precision; allowed: ", allowed));
  }
}

void require_tokens(TokenRange tokens, std::int64_t capacity) {
  if (tokens.begin < 0 || tokens.end < tokens.begin || tokens.end > capacity) {
    throw ConfigError(
        message("[host KV store] tokens are [",
                tokens.begin,
                ", ",
                tokens.end,
                "); allowed: ranges inside [0, ",
                capacity,
                "); create the store with a larger capacity and let it grow before it is written"));
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

/// Rows of `row_bytes` that are `stride_bytes` apart, close together.
void copy_strided(std::byte* to,
                  const std::byte* rows,
                  std::int64_t count,
                  std::int64_t row_bytes,
                  std::int64_t stride_bytes) {
  for (std::int64_t t = 0; t < count; ++t) {
    std::memcpy(to + t * row_bytes, rows + t * stride_bytes, static_cast<std::size_t>(row_bytes));
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

}  // namespace

HostKvStore::HostKvStore(const HostKvShape& shape)
    : shape_(checked(shape)), values_(value_memory_shape(shape_)) {
  if (has_full_keys(shape_)) {
    keys_ = KvMemory(key_memory_shape(shape_));
  } else {
    key_codes_.emplace(codes_shape(shape_));
    exact_keys_ = PlacedMemory(static_cast<std::size_t>(exact_bytes(shape_)));
  }
  if (!has_full_values(shape_)) {
    exact_values_ = PlacedMemory(static_cast<std::size_t>(exact_bytes(shape_)));
  }
}

std::int64_t HostKvStore::required_key_bytes(const HostKvShape& shape) {
  return key_bytes(checked(shape));
}

std::int64_t HostKvStore::required_bytes(const HostKvShape& shape) {
  const HostKvShape rounded = checked(shape);
  return key_bytes(rounded) + all_bytes(value_memory_shape(rounded)) +
         (has_full_values(rounded) ? 0 : exact_bytes(rounded));
}

void HostKvStore::use_disk(const KvDiskDevice& device) {
  disk_ = std::make_unique<KvDisk>(device, memory(KvSide::kKeys), memory(KvSide::kValues));
}

KvMemory& HostKvStore::memory(KvSide side) {
  if (side == KvSide::kValues) return values_;
  return key_codes_.has_value() ? key_codes_->memory() : keys_;
}

const KvMemory& HostKvStore::memory(KvSide side) const {
  return const_cast<HostKvStore*>(this)->memory(side);
}

bool HostKvStore::is_read_in_place(KvSide side, std::int64_t layer, TokenRange tokens) const {
  const KvMemory& memory = this->memory(side);
  const std::int64_t each = memory.block_tokens();
  return disk_ == nullptr &&
         memory.is_all_pinned({tokens.begin / each, (tokens.end + each - 1) / each}, layer);
}

void HostKvStore::report(PlacedBytes& bytes) const {
  if (key_codes_.has_value()) {
    key_codes_->report(bytes);
  } else {
    bytes.add(keys_.found(), keys_.span());
  }
  bytes.add(values_.found(), values_.span());
  if (disk_ != nullptr) disk_->report(bytes);
  for (const PlacedMemory* exact : {&exact_keys_, &exact_values_}) {
    bytes.add(exact->found(), exact->span());
  }
}

void HostKvStore::grow_to(std::int64_t tokens, const PlaceOfBlock& place_of) {
  require_tokens({0, tokens}, shape_.capacity);
  if (grown_ == 0) {
    for (PlacedMemory* exact : {&exact_keys_, &exact_values_}) {
      const ByteRange all{0, exact->size_bytes()};
      exact->take(std::span<const ByteRange>(&all, 1), shape_.place, kGrow);
    }
  }
  if (key_codes_.has_value()) key_codes_->grow_channels(tokens);
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    KvMemory& memory = this->memory(side);
    if (place_of == nullptr) {
      memory.grow(tokens, kGrow);
      continue;
    }
    for (std::int64_t block = memory.num_blocks(); block < memory.blocks_for(tokens); ++block) {
      memory.grow((block + 1) * memory.block_tokens(), place_of(side, block), kGrow);
    }
  }
  grown_ = std::min(memory(KvSide::kKeys).grown_tokens(), values_.grown_tokens());
}

bool HostKvStore::wants_channels(std::int64_t layer) const {
  return key_codes_.has_value() && !key_codes_->is_calibrated(layer);
}

void HostKvStore::fix_channels(std::int64_t layer, std::int64_t count, const KvRowsView& keys) {
  if (key_codes_ && wants_channels(layer)) key_codes_->calibrate(layer, count, keys);
}

void HostKvStore::fix_channels(std::int64_t layer,
                               std::int64_t kv_head,
                               std::int64_t count,
                               const void* keys) {
  if (key_codes_.has_value()) key_codes_->calibrate(layer, kv_head, count, keys);
}

void HostKvStore::write(std::int64_t layer,
                        TokenRange tokens,
                        const KvRowsView& keys,
                        const KvRowsView& values) {
  require_index("layer", layer, shape_.num_layers);
  require_tokens(tokens, grown_);
  const std::int64_t element = static_cast<std::int64_t>(size_of(shape_.dtype));
  const std::int64_t row_bytes = shape_.head_dim * element;
  auto* const write_block = element == 4 ? &write_key_block<4> : &write_key_block<2>;
  if (key_codes_.has_value()) key_codes_->write(layer, tokens, keys);

  for (std::int64_t g = 0; g < shape_.num_kv_heads; ++g) {
    write_values(layer,
                 g,
                 tokens,
                 static_cast<const std::byte*>(values.data) + g * values.head_stride * element,
                 values.token_stride * element);
    const std::byte* const key_rows =
        static_cast<const std::byte*>(keys.data) + g * keys.head_stride * element;
    const std::int64_t key_stride = keys.token_stride * element;
    if (key_codes_.has_value()) {
      write_exact(exact_keys_, layer, g, tokens, key_rows, key_stride);
      continue;
    }
    std::byte* const head_keys = keys_.head(layer, g);
    if (shape_.key_layout == KeyLayout::kRows) {
      copy_strided(
          head_keys + tokens.begin * row_bytes, key_rows, tokens.size(), row_bytes, key_stride);
      continue;
    }
    for_each_block(
        tokens, [&](std::int64_t block, std::int64_t place, std::int64_t first, std::int64_t rows) {
          write_block(head_keys + block * kKeyBlockTokens * row_bytes,
                      place,
                      key_rows + first * key_stride,
                      key_stride,
                      rows,
                      shape_.head_dim);
        });
  }
}

void HostKvStore::write_exact(PlacedMemory& to,
                              std::int64_t layer,
                              std::int64_t kv_head,
                              TokenRange tokens,
                              const std::byte* rows,
                              std::int64_t stride_bytes) {
  if (tokens.begin >= kExactTokens) return;
  const std::int64_t row_bytes = shape_.head_dim * static_cast<std::int64_t>(size_of(shape_.dtype));
  copy_strided(to.data() + exact_offset(layer, kv_head) + tokens.begin * row_bytes,
               rows,
               std::min(tokens.end, kExactTokens) - tokens.begin,
               row_bytes,
               stride_bytes);
}

void HostKvStore::write_values(std::int64_t layer,
                               std::int64_t kv_head,
                               TokenRange tokens,
                               const std::byte* rows,
                               std::int64_t stride_bytes) {
  const std::int64_t row_bytes = values_.shape().row_bytes;
  std::byte* const to = values_.head(layer, kv_head) + tokens.begin * row_bytes;
  if (has_full_values(shape_)) {
    copy_strided(to, rows, tokens.size(), row_bytes, stride_bytes);
    return;
  }
  write_exact(exact_values_, layer, kv_head, tokens, rows, stride_bytes);
  for (std::int64_t t = 0; t < tokens.size(); ++t) {
    quantise_row(shape_.value_precision,
                 shape_.dtype,
                 rows + t * stride_bytes,
                 shape_.head_dim,
                 to + t * row_bytes);
  }
}

void HostKvStore::write_row(std::int64_t layer,
                            std::int64_t kv_head,
                            std::int64_t slot,
                            const void* key,
                            const void* value) {
  require_head(layer, kv_head);
  require_tokens({slot, slot + 1}, grown_);
  const std::int64_t element = static_cast<std::int64_t>(size_of(shape_.dtype));
  const std::int64_t row_bytes = shape_.head_dim * element;
  write_values(layer, kv_head, {slot, slot + 1}, static_cast<const std::byte*>(value), row_bytes);
  if (key_codes_.has_value()) {
    key_codes_->write_row(layer, kv_head, slot, key);
    write_exact(exact_keys_,
                layer,
                kv_head,
                {slot, slot + 1},
                static_cast<const std::byte*>(key),
                row_bytes);
    return;
  }
  std::byte* const head_keys = keys_.head(layer, kv_head);
  if (shape_.key_layout == KeyLayout::kRows) {
    std::memcpy(head_keys + slot * row_bytes, key, static_cast<std::size_t>(row_bytes));
    return;
  }
  auto* const write_block = element == 4 ? &write_key_block<4> : &write_key_block<2>;
  write_block(head_keys + slot / kKeyBlockTokens * kKeyBlockTokens * row_bytes,
              slot % kKeyBlockTokens,
              static_cast<const std::byte*>(key),
              row_bytes,
              1,
              shape_.head_dim);
}

std::int64_t HostKvStore::exact_offset(std::int64_t layer, std::int64_t kv_head) const {
  return (kv_head * shape_.num_layers + layer) * kExactTokens * shape_.head_dim *
         static_cast<std::int64_t>(size_of(shape_.dtype));
}

BlockedKeyView HostKvStore::keys(std::int64_t layer, std::int64_t kv_head) const {
  require_keys(layer, kv_head, KeyLayout::kBlocked);
  return {keys_.head(layer, kv_head), shape_.dtype, shape_.head_dim, shape_.capacity};
}

RowView HostKvStore::key_rows(std::int64_t layer, std::int64_t kv_head) const {
  require_keys(layer, kv_head, KeyLayout::kRows);
  return {keys_.head(layer, kv_head), shape_.dtype, shape_.head_dim, shape_.capacity};
}

RowView HostKvStore::values(std::int64_t layer, std::int64_t kv_head) const {
  require_head(layer, kv_head);
  require_precision("values", has_full_values(shape_), "value_codes()");
  return {values_.head(layer, kv_head), shape_.dtype, shape_.head_dim, shape_.capacity};
}

ShadowKeyView HostKvStore::key_codes(std::int64_t layer,
                                     std::int64_t kv_head,
                                     std::int64_t token) const {
  require_precision("keys", key_codes_.has_value(), "keys() or key_rows()");
  return key_codes_->keys(layer, kv_head, token);  // NOLINT(bugprone-unchecked-optional-access)
}

RowView HostKvStore::exact_keys(std::int64_t layer, std::int64_t kv_head) const {
  require_head(layer, kv_head);
  require_precision("keys", key_codes_.has_value(), "keys() or key_rows()");
  return {exact_keys_.data() + exact_offset(layer, kv_head),
          shape_.dtype,
          shape_.head_dim,
          kExactTokens};
}

QuantisedRowView HostKvStore::value_codes(std::int64_t layer, std::int64_t kv_head) const {
  require_head(layer, kv_head);
  require_precision("values", !has_full_values(shape_), "values()");
  return {.rows = values_.head(layer, kv_head),
          .precision = shape_.value_precision,
          .dtype = shape_.dtype,
          .head_dim = shape_.head_dim,
          .row_bytes = values_.shape().row_bytes,
          .capacity = shape_.capacity,
          .exact = exact_values_.data() + exact_offset(layer, kv_head),
          .num_exact = kExactTokens};
}

KvRowsView HostKvStore::key_rows_from(std::int64_t layer, std::int64_t slot) const {
  require_keys(layer, 0, KeyLayout::kRows);
  require_tokens({slot, shape_.capacity}, shape_.capacity);
  const std::int64_t element = static_cast<std::int64_t>(size_of(shape_.dtype));
  return {keys_.head(layer, 0) + slot * shape_.head_dim * element,
          keys_.head_stride() / element,
          shape_.head_dim};
}

void HostKvStore::require_head(std::int64_t layer, std::int64_t kv_head) const {
  require_index("layer", layer, shape_.num_layers);
  require_index("kv_head", kv_head, shape_.num_kv_heads);
}

void HostKvStore::require_keys(std::int64_t layer, std::int64_t kv_head, KeyLayout layout) const {
  require_head(layer, kv_head);
  require_precision("keys", has_full_keys(shape_), "key_codes()");
  if (layout != shape_.key_layout) {
    const bool is_blocked = shape_.key_layout == KeyLayout::kBlocked;
    throw ConfigError(message("[host KV store] keys lie in ",
                              is_blocked ? "blocks" : "rows",
                              "; allowed: ",
                              is_blocked ? "keys()" : "key_rows()"));
  }
}

}  // namespace hybridgen
