// SPDX-License-Identifier: Apache-2.0
#include "kvcache/stored_rows.h"

#include <cstring>

namespace hybridgen {

StoredRows::Piece StoredRows::find_piece(std::int64_t token) const {
  const std::int64_t each = memory_.block_tokens();
  const std::int64_t capacity = memory_.shape().capacity;
  const std::int64_t block = token / each;
  if (landing_->has(block)) {
    return {landing_->unit(block, kv_head_) - block * each * memory_.shape().row_bytes,
            std::min((block + 1) * each, capacity)};
  }
  std::int64_t end = block + 1;
  while (end * each < capacity && !landing_->has(end)) ++end;
  return {own_.origin, std::min(end * each, capacity)};
}

void StoredRows::copy(std::span<const std::int32_t> positions, std::byte* out) const {
  const std::int64_t row_bytes = memory_.shape().row_bytes;
  for_each_piece(positions, [&](const std::byte* origin, std::size_t begin, std::size_t count) {
    for (const std::int32_t position : positions.subspan(begin, count)) {
      std::memcpy(out, origin + position * row_bytes, static_cast<std::size_t>(row_bytes));
      out += row_bytes;
    }
  });
}

}  // namespace hybridgen
