// SPDX-License-Identifier: Apache-2.0
// Offloaded K and V of one request, all layers, in host memory.
//
// Where the CPU scans all keys every step they lie in blocks of kKeyBlockTokens tokens,
// dimension-major ([G][L][blocks][D][32]): one vector load holds one dimension of many tokens, no
// horizontal sums are needed and one load serves all query heads of the group. Where whole keys are
// shipped to the device or few are read, they lie in rows like the values.
// V rows are never read by the CPU beyond copying chosen ones (paper §4.4): [G][L][capacity][D].
// Either may lie in 8 or 4 bits: keys as the codes of a ScoringShadow, whatever their layout would
// be, values as the rows of quantised_rows.h; the first kExactTokens slots stay as they are beside
// them. stored_head.h reads all of them alike.
// All layers of a KV head lie together, so that heads can be divided over memory nodes.
// Addresses are there for the whole capacity and never move; memory comes with grow(), in blocks of
// tokens over all layers and heads (kv_memory.h).
// Addressed by slot, which is the token's position unless a method drops tokens for good; holds no
// count (TokenMapper does). Writers and readers of disjoint slots may run at the same time, except
// within one key block; of keys in 8 or 4 bits, the first write to kKeySegmentTokens slots also
// reads all of those before them and fixes how theirs are coded.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "hybridgen/core/kv_views.h"
#include "hybridgen/core/types.h"
#include "kvcache/host_kv_shape.h"
#include "kvcache/kv_disk.h"
#include "kvcache/kv_memory.h"
#include "kvcache/scoring_shadow.h"
#include "kvcache/tier_blocks.h"
#include "memory/placed_bytes.h"
#include "memory/placed_memory.h"

namespace hybridgen {

/// Where a block of a side that comes is to lie.
using PlaceOfBlock = std::function<PagePlace(KvSide side, std::int64_t block)>;

class HostKvStore {
 public:
  /// Throws ConfigError for non-positive sizes or a node that cannot be had, OutOfMemoryError if
  /// the addresses are not to be had.
  explicit HostKvStore(const HostKvShape& shape);

  /// Bytes of K plus V that a store of this shape takes, in whatever precision.
  static std::int64_t required_bytes(const HostKvShape& shape);
  /// Of K alone.
  static std::int64_t required_key_bytes(const HostKvShape& shape);

  const HostKvShape& shape() const { return shape_; }

  /// Brings in memory for slots [0, tokens), which may be written and read from then on; whoever
  /// reads beyond finds zeros. Nothing happens, at the cost of one comparison, where it is there.
  /// `place_of` (null: the shape decides) says where new blocks go. Throws OutOfMemoryError if the
  /// memory is not to be had, and can then be asked again.
  void grow(std::int64_t tokens, const PlaceOfBlock& place_of = nullptr) {
    if (tokens > grown_) grow_to(tokens, place_of);
  }
  /// Slots that may be written.
  std::int64_t grown_tokens() const { return grown_; }
  /// Of K, in whatever precision, or of V.
  KvMemory& memory(KvSide side);
  const KvMemory& memory(KvSide side) const;
  /// Whether a device can read full rows of a side where they are, which are pinned for it: none
  /// may be on a disk. `tokens` inside what has grown.
  bool is_read_in_place(KvSide side, std::int64_t layer, TokenRange tokens) const;
  /// Adds where its pages lie. DeviceError if the system does not tell.
  void report(PlacedBytes& bytes) const;

  /// Blocks may lie on the disk from now on. `device` must outlive this.
  void use_disk(const KvDiskDevice& device);
  /// Null: none may.
  KvDisk* disk() const { return disk_.get(); }

  /// Whether keys in 8 or 4 bits of a layer have no centres and spreads yet. The first write fixes
  /// them by its own rows; call fix_channels before it where more rows are at hand.
  bool wants_channels(std::int64_t layer) const;
  /// By `count` >= 1 keys that resemble those to come (ScoringShadow::calibrate); before any write
  /// to the layer. Nothing is done where the layer does not want them.
  void fix_channels(std::int64_t layer, std::int64_t count, const KvRowsView& keys);
  /// The same of one KV head, rows [count, D] contiguous.
  void fix_channels(std::int64_t layer, std::int64_t kv_head, std::int64_t count, const void* keys);

  /// Copies K and V rows of `tokens` (count = tokens.size(), row 0 of the views is tokens.begin)
  /// into layer `layer`. ConfigError if outside what has grown.
  void write(std::int64_t layer,
             TokenRange tokens,
             const KvRowsView& keys,
             const KvRowsView& values);

  /// Copies one K and one V row [D] of one KV head into `slot`.
  void write_row(std::int64_t layer,
                 std::int64_t kv_head,
                 std::int64_t slot,
                 const void* key,
                 const void* value);

  /// Keys of a kBlocked store; ConfigError for a kRows one, and the other way round, and for
  /// rows in another precision than asked for.
  BlockedKeyView keys(std::int64_t layer, std::int64_t kv_head) const;
  RowView key_rows(std::int64_t layer, std::int64_t kv_head) const;
  RowView values(std::int64_t layer, std::int64_t kv_head) const;
  /// Of the segment (kKeySegmentTokens) that holds `token`.
  ShadowKeyView key_codes(std::int64_t layer, std::int64_t kv_head, std::int64_t token = 0) const;
  /// The first kExactTokens tokens of keys that lie in codes, as the model computed them.
  RowView exact_keys(std::int64_t layer, std::int64_t kv_head) const;
  QuantisedRowView value_codes(std::int64_t layer, std::int64_t kv_head) const;

  /// Keys of all KV heads of a kRows store, row 0 at `slot`.
  KvRowsView key_rows_from(std::int64_t layer, std::int64_t slot) const;

 private:
  void grow_to(std::int64_t tokens, const PlaceOfBlock& place_of);
  std::int64_t exact_offset(std::int64_t layer, std::int64_t kv_head) const;
  void require_head(std::int64_t layer, std::int64_t kv_head) const;
  void require_keys(std::int64_t layer, std::int64_t kv_head, KeyLayout layout) const;
  // Keeps those of `tokens` that lie as they are beside codes.
  void write_exact(PlacedMemory& to,
                   std::int64_t layer,
                   std::int64_t kv_head,
                   TokenRange tokens,
                   const std::byte* rows,
                   std::int64_t stride_bytes);
  void write_values(std::int64_t layer,
                    std::int64_t kv_head,
                    TokenRange tokens,
                    const std::byte* rows,
                    std::int64_t stride_bytes);

  HostKvShape shape_;
  std::int64_t grown_ = 0;                  ///< tokens
  KvMemory keys_;                           ///< empty unless they are full
  std::optional<ScoringShadow> key_codes_;  ///< unless they are full
  KvMemory values_;
  PlacedMemory exact_keys_;       ///< [G][L][kExactTokens][D] beside codes
  PlacedMemory exact_values_;     ///< the same
  std::unique_ptr<KvDisk> disk_;  ///< last: ends before what it reads and writes
};

}  // namespace hybridgen
