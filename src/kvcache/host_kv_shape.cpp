// SPDX-License-Identifier: Apache-2.0
#include "kvcache/host_kv_shape.h"

#include <limits>
#include <string_view>

#include "hybridgen/core/error.h"

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

PagePlace place_of(const HostKvShape& shape) {
  return shape.numa_parts.empty() && shape.numa_node != -1 ? place_on_node(shape.numa_node)
                                                           : shape.place;
}

std::int64_t full_row_bytes(const HostKvShape& shape) {
  return shape.head_dim * static_cast<std::int64_t>(size_of(shape.dtype));
}

KvMemoryShape memory_shape(const HostKvShape& shape, std::int64_t row_bytes, bool is_as_read) {
  return {.num_kv_heads = shape.num_kv_heads,
          .num_layers = shape.num_layers,
          .capacity = shape.capacity,
          .row_bytes = row_bytes,
          .place = shape.place,
          .numa_parts = shape.numa_parts,
          .pins = is_as_read ? shape.pins : nullptr};
}

}  // namespace

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
  shape.place = place_of(shape);
  return shape;
}

ShadowShape codes_shape(const HostKvShape& shape) {
  return {.num_layers = shape.num_layers,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .dtype = shape.dtype,
          .capacity = shape.capacity,
          .precision = shape.key_precision == KvPrecision::kInt8 ? ShadowPrecision::kInt8
                                                                 : ShadowPrecision::kInt4,
          .segment_tokens = kKeySegmentTokens,
          .numa_parts = shape.numa_parts,
          .place = shape.place};
}

KvMemoryShape key_memory_shape(const HostKvShape& shape) {
  return memory_shape(shape, full_row_bytes(shape), shape.key_layout == KeyLayout::kRows);
}

KvMemoryShape value_memory_shape(const HostKvShape& shape) {
  const bool is_full = has_full_values(shape);
  return memory_shape(
      shape,
      is_full ? full_row_bytes(shape) : quantised_row_bytes(shape.value_precision, shape.head_dim),
      is_full);
}

std::int64_t exact_bytes(const HostKvShape& shape) {
  return shape.num_kv_heads * shape.num_layers * kExactTokens * full_row_bytes(shape);
}

}  // namespace hybridgen
