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

bool StoreMemory::is_pinned(KvSide side, TokenRange tokens) const {
  return store_.memory(side).is_pinned(blocks_of(side, tokens));
}

void StoreMemory::bring_copies(KvSide side,
                               TokenRange tokens,
                               const PagePlace& place,
                               bool contents) {
  store_.memory(side).bring_copies(blocks_of(side, tokens), place, contents);
}

PageMove StoreMemory::switch_to_copies(KvSide side,
                                       TokenRange tokens,
                                       const PagePlace& from,
                                       bool contents) {
  return store_.memory(side).switch_to_copies(blocks_of(side, tokens), from, contents);
}

BlockRange StoreMemory::blocks_of(KvSide side, TokenRange tokens) const {
  const std::int64_t each = granule_tokens(side);
  return {tokens.begin / each, (tokens.end + each - 1) / each};
}

// The first write to a segment of coded keys reads the segment before it.
std::int64_t StoreMemory::closed_tokens(KvSide side, std::int64_t written) const {
  if (side == KvSide::kValues || has_full_keys(store_.shape())) return written;
  return std::max<std::int64_t>(0, written - 1) / kKeySegmentTokens * kKeySegmentTokens;
}

void StoreMemory::write_to_disk(KvSide side, TokenRange tokens) {
  store_.disk()->write(side, blocks_of(side, tokens).begin);
}

void StoreMemory::read_from_disk(KvSide side, TokenRange tokens, const PagePlace& place) {
  store_.disk()->bring_back(side, blocks_of(side, tokens).begin, place);
}

void StoreMemory::leave_for_disk(KvSide side, TokenRange tokens) noexcept {
  store_.disk()->leave(side, blocks_of(side, tokens).begin);
}

void StoreMemory::arrive_from_disk(KvSide side, TokenRange tokens) noexcept {
  store_.disk()->arrive(side, blocks_of(side, tokens).begin);
}

namespace {

struct PlacedSide {
  std::int64_t row = 0;    ///< bytes of a token, over all layers and heads
  std::int64_t block = 0;  ///< tokens
  std::int64_t capacity = 0;
};

PlacedSide side_of(const KvMemoryShape& shape) {
  return {shape.num_kv_heads * shape.num_layers * shape.row_bytes,
          tier_block_tokens(shape.row_bytes, static_cast<std::int64_t>(page_bytes())),
          shape.capacity};
}

PlacedSide keys_of(const HostKvShape& rounded) {
  return side_of(has_full_keys(rounded) ? key_memory_shape(rounded)
                                        : memory_shape(codes_shape(rounded)));
}

PlacedSide values_of(const HostKvShape& rounded) { return side_of(value_memory_shape(rounded)); }

}  // namespace

// At rest the block that is written to and the one before it, which the next growth closes.
OpenBytes open_bytes(const HostKvShape& shape, std::int64_t most_growth) {
  const HostKvShape rounded = checked(shape);
  OpenBytes open;
  const auto add = [&](const PlacedSide& side, std::int64_t more_tokens) {
    const std::int64_t blocks = (most_growth + side.block - 1) / side.block + 1;
    open.resting += side.row * std::min(side.capacity, 2 * side.block + more_tokens);
    open.growing += side.row * std::min(side.capacity, blocks * side.block);
  };
  add(keys_of(rounded), has_full_keys(rounded) ? 0 : kKeySegmentTokens);
  add(values_of(rounded), 0);
  return open;
}

BytesToPlace bytes_to_place(const HostKvShape& shape) {
  const HostKvShape rounded = checked(shape);
  BytesToPlace bytes;
  for (const PlacedSide& side : {keys_of(rounded), values_of(rounded)}) {
    const std::int64_t row = side.row;
    const std::int64_t block = side.block;
    bytes.all += row * side.capacity;
    bytes.largest_block = std::max(bytes.largest_block, row * std::min(block, side.capacity));
  }
  return bytes;
}

}  // namespace hybridgen
