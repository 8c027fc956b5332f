// SPDX-License-Identifier: Apache-2.0
// Host memory of one side (K, V, or the codes of K) of one request: addresses for its whole
// capacity, which never move, and pages for the blocks of tokens that there are. All KV heads of
// all layers grow together. No page, and no huge one that is not full, belongs to two of them:
// [G][L][capacity], with nothing behind the rest of the addresses. Where a device is to read them
// by itself pages are pinned as they come: one call per layer and head and growth, or fewer where
// these lie side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "hybridgen/memory/numa_part.h"
#include "memory/pinned_spans.h"
#include "memory/placed_memory.h"

namespace hybridgen {

struct KvMemoryShape {
  std::int64_t num_kv_heads = 0;  ///< G
  std::int64_t num_layers = 0;    ///< L
  std::int64_t capacity = 0;      ///< tokens
  std::int64_t row_bytes = 0;     ///< of a token, in one layer and head
  /// Where blocks go that nobody else decides about.
  PagePlace place{};
  /// Nodes of the KV heads, each preferred for its own; never strict.
  std::vector<NumaPart> numa_parts{};
  PagePins* pins = nullptr;  ///< null: the system may move pages as it likes
};

/// Blocks [begin, end).
struct BlockRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

class KvMemory {
 public:
  KvMemory() = default;
  /// Throws OutOfMemoryError if there are no addresses.
  explicit KvMemory(const KvMemoryShape& shape);

  const KvMemoryShape& shape() const { return shape_; }
  /// Of the first token; those behind it lie row_bytes apart.
  std::byte* head(std::int64_t layer, std::int64_t kv_head) {
    return memory_.data() + offset_of(layer, kv_head);
  }
  const std::byte* head(std::int64_t layer, std::int64_t kv_head) const {
    return memory_.data() + offset_of(layer, kv_head);
  }
  /// Bytes from one KV head to the next.
  std::int64_t head_stride() const { return shape_.num_layers * stride_; }

  /// Tokens of a block: its rows fill whole pages, but for the last block's.
  std::int64_t block_tokens() const { return block_tokens_; }
  /// Tokens and blocks that have come so far.
  std::int64_t grown_tokens() const;
  std::int64_t num_blocks() const { return num_blocks_; }
  /// Of [0, tokens).
  std::int64_t blocks_for(std::int64_t tokens) const;
  /// Bytes of blocks, over all layers and heads.
  std::int64_t bytes_of(BlockRange blocks) const;

  /// Blocks for [0, tokens) come, at `place`, or the shape's own. Throws what
  /// PlacedMemory::take and PagePins::pin do; then none has come. Before anybody uses the tokens.
  void grow(std::int64_t tokens, std::string_view operation);
  void grow(std::int64_t tokens, const PagePlace& place, std::string_view operation);

  // Of blocks that have come. Addresses stay; pages are brought in again, moved and given back as
  // PlacedMemory says, of all layers or (>= 0) of one. Pages that move may be in use meanwhile.
  void take(BlockRange blocks,
            const PagePlace& place,
            std::string_view operation,
            std::int64_t layer = -1);
  PageMove move(BlockRange blocks, const PagePlace& place);
  void give_back(BlockRange blocks, std::int64_t layer = -1) noexcept;

  // The system does not move pages of pinned blocks. Instead copies come beside them, while others
  // use them, and take their place under their addresses while nobody does. A block that is to move
  // alone has to have come by a growth of its own: what was pinned by one call is unpinned by one.
  /// Any part of them.
  bool is_pinned(BlockRange blocks) const { return pinned_.has_any(spans_of(blocks)); }
  /// All of them, in one layer.
  bool is_all_pinned(BlockRange blocks, std::int64_t layer) const {
    return pinned_.is_wanted() && pinned_.has_all(spans_of(blocks, layer));
  }
  /// Copies of blocks come at `place`; without `contents` for now, where these may still change.
  /// Throws what PlacedMemory::take does.
  void bring_copies(BlockRange blocks, const PagePlace& place, bool contents);
  /// Blocks of which copies have come go to where these are, and are pinned again. `contents`: as
  /// given to bring_copies(). Throws nothing but std::bad_alloc: what could not stays at `from`.
  PageMove switch_to_copies(BlockRange blocks, const PagePlace& from, bool contents);
  /// Blocks that were taken again, as far as the device pins them: nobody depends on it.
  void pin_again(BlockRange blocks) noexcept;

  /// Of the blocks that have come, as the system says.
  PagesFound found() const;
  /// All addresses.
  PageSpan span() const { return memory_.span(); }

 private:
  std::int64_t offset_of(std::int64_t layer, std::int64_t kv_head) const {
    return (kv_head * shape_.num_layers + layer) * stride_;
  }
  std::vector<ByteRange> ranges_of(BlockRange blocks,
                                   std::int64_t layer,
                                   std::int64_t first_head,
                                   std::int64_t num_heads) const;
  std::vector<ByteRange> ranges_of(BlockRange blocks, std::int64_t layer = -1) const {
    return ranges_of(blocks, layer, 0, shape_.num_kv_heads);
  }
  std::vector<PageSpan> spans_of(BlockRange blocks, std::int64_t layer = -1) const;
  void copy_beside(BlockRange blocks);
  std::int64_t full_units() const;
  void join_full_units(std::int64_t at_most);

  KvMemoryShape shape_;
  std::int64_t stride_ = 0;  ///< bytes of a (layer, KV head) and what nobody uses behind it
  std::int64_t block_tokens_ = 1;
  std::int64_t num_blocks_ = 0;
  std::int64_t joined_units_ = 0;  ///< of 2 MiB, that were looked at, in the order of full_units()
  PlacedMemory memory_;
  PlacedMemory beside_;  ///< copies, at the same ranges; no addresses until there are any
  PinnedSpans pinned_;   ///< of memory_; by the thread that lets it grow
  std::unique_ptr<std::mutex> moving_ = std::make_unique<std::mutex>();  ///< or joining
};

}  // namespace hybridgen
