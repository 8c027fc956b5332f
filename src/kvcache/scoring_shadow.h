// SPDX-License-Identifier: Apache-2.0
// A copy of one request's offloaded keys in 8 or 4 bits, all layers, for choosing tokens only: the
// scan over all tokens reads it instead of the keys; the tokens that score best get exact logits
// from the keys themselves.
//
// A key is stored as K[t, d] ~ centre[d] + spread[d] * step[t] * value, with one odd integer of
// 8 or 4 bits per element. Centres and spreads belong to a channel of a (layer, KV head) and are
// fixed by the first keys; a token's step makes room for its own largest element, so that nothing
// ever saturates, however far keys drift. The spreads multiply the query and the centres add one
// constant per query, so that neither costs anything in the scan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "hybridgen/core/kv_views.h"
#include "hybridgen/core/types.h"
#include "hybridgen/memory/numa_part.h"
#include "kvcache/kv_memory.h"
#include "memory/placed_bytes.h"
#include "memory/placed_memory.h"

namespace hybridgen {

struct ShadowShape {
  std::int64_t num_layers = 0;
  std::int64_t num_kv_heads = 0;  ///< G
  std::int64_t head_dim = 0;      ///< D
  DType dtype = DType::kFloat32;  ///< of the keys that are written
  std::int64_t capacity = 0;      ///< tokens asked for; rounded up to a multiple of 32 inside
  ShadowPrecision precision = ShadowPrecision::kInt8;
  /// Tokens that share centres and spreads, a multiple of 32; 0: all.
  std::int64_t segment_tokens = 0;
  int numa_node = -1;  ///< -1: the system's choice
  std::vector<NumaPart>
      numa_parts{};   ///< nodes of the KV heads; if not empty, instead of numa_node
  PagePlace place{};  ///< of what grows; numa_node decides where that is given
};

/// Of its codes.
KvMemoryShape memory_shape(const ShadowShape& shape);

/// Addressed by slot, like HostKvStore. Once a (layer, KV head) is calibrated, tokens do not
/// influence each other and writers and readers of different tokens may run at the same time.
class ScoringShadow {
 public:
  /// Throws ConfigError for sizes out of range or a node that cannot be had, OutOfMemoryError if
  /// the addresses are not to be had.
  explicit ScoringShadow(const ShadowShape& shape);

  /// Bytes that a shadow of this shape takes.
  static std::int64_t required_bytes(const ShadowShape& shape);

  /// Rows that tell what the channels of a segment look like.
  static constexpr std::int64_t kFewestRows = 64;

  const ShadowShape& shape() const { return shape_; }

  /// As HostKvStore::grow.
  void grow(std::int64_t tokens);
  /// Only of the channels of the segments that hold [0, tokens).
  void grow_channels(std::int64_t tokens);
  KvMemory& memory() { return blocks_; }
  /// Adds where its pages lie. DeviceError if the system does not tell.
  void report(PlacedBytes& bytes) const;

  /// Fixes centres and spreads of a layer's first segment by `count` >= 1 keys that resemble those
  /// to come. The first write does it with its own keys; call this before it where more are at
  /// hand: rotary embeddings move the centres with the position, so the whole prompt serves better
  /// than its beginning. What was written before must be written again. A later segment is
  /// calibrated by the first write to it, if that has kFewestRows, and else by what the segment
  /// before holds.
  void calibrate(std::int64_t layer, std::int64_t count, const KvRowsView& keys);
  /// The same of one KV head, rows [count, D] contiguous.
  void calibrate(std::int64_t layer, std::int64_t kv_head, std::int64_t count, const void* keys);
  bool is_calibrated(std::int64_t layer) const;

  /// Rows of `tokens` (row 0 of the view is tokens.begin). ConfigError if outside what has grown.
  void write(std::int64_t layer, TokenRange tokens, const KvRowsView& keys);
  /// The same of one KV head, rows [tokens, D] contiguous.
  void write(std::int64_t layer, std::int64_t kv_head, TokenRange tokens, const void* keys);

  /// One row [D] of one KV head.
  void write_row(std::int64_t layer, std::int64_t kv_head, std::int64_t slot, const void* key);

  /// Of the segment that holds `token`.
  ShadowKeyView keys(std::int64_t layer, std::int64_t kv_head, std::int64_t token = 0) const;

 private:
  // `head` counts (layer, KV head) pairs; rows are the keys of one of them.
  std::int64_t head_index(std::int64_t layer, std::int64_t kv_head) const;
  const void* rows_of(const KvRowsView& keys, std::int64_t kv_head) const;
  std::int64_t segment_index(std::int64_t head, std::int64_t token) const;
  ShadowKeyView segment_of(std::int64_t head, std::int64_t token) const;
  float* centres(std::int64_t segment_index);  ///< spreads follow
  void calibrate_segment(std::int64_t head,
                         std::int64_t token,
                         std::int64_t count,
                         const void* rows,
                         std::int64_t stride);
  void calibrate_by_the_one_before(std::int64_t head, std::int64_t token);
  void write_head(std::int64_t head, TokenRange tokens, const void* rows, std::int64_t stride);
  void write_in_segment(std::int64_t head,
                        TokenRange tokens,
                        const void* rows,
                        std::int64_t stride);

  ShadowShape shape_;
  KvMemory blocks_;
  /// float32 [segments, G, L, 2, D]: centres, spreads. Segments first, as they come with tokens.
  PlacedMemory channels_;
  std::int64_t num_grown_segments_ = 0;
  std::vector<std::uint8_t> is_calibrated_;  ///< [segments, G, L]
};

}  // namespace hybridgen
