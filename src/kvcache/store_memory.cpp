// SPDX-License-Identifier: Apache-2.0
#include "kvcache/store_memory.h"

#include <algorithm>

#include "kvcache/scoring_shadow.h"

namespace hybridgen {

void StoreMemory::take(KvSide side, TokenRange tokens, const PagePlace& place) {
  KvMemory& memory = store_.memory(side);
  constexpr const char* kOperation = "grow the KV cache";
  // Without nodes nobody decides: the store knows where its heads like to lie.
  place.nodes.empty() ? memory.grow(tokens.end, kOperation)
                      : memory.grow(tokens.end, place, kOperation);
}

PageMove StoreMemory::move(KvSide side, TokenRange tokens, const PagePlace& place) {
  return store_.memory(side).move(blocks_of(side, tokens), place);
}

BlockRange StoreMemory::blocks_of(KvSide side, TokenRange tokens) const {
  const std::int64_t each = granule_tokens(side);
  return {tokens.begin / each, (tokens.end + each - 1) / each};
}

BytesToPlace bytes_to_place(const HostKvShape& shape) {
  const HostKvShape rounded = checked(shape);
  BytesToPlace bytes;
  for (const KvMemoryShape& side :
       {has_full_keys(rounded) ? key_memory_shape(rounded) : memory_shape(codes_shape(rounded)),
        value_memory_shape(rounded)}) {
    const std::int64_t row = side.num_kv_heads * side.num_layers * side.row_bytes;
    const std::int64_t block =
        tier_block_tokens(side.row_bytes, static_cast<std::int64_t>(page_bytes()));
    bytes.all += row * side.capacity;
    bytes.largest_block = std::max(bytes.largest_block, row * std::min(block, side.capacity));
  }
  return bytes;
}

}  // namespace hybridgen
