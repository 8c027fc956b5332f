// SPDX-License-Identifier: Apache-2.0
// Where the rows of one side of a (layer, KV head) lie: at the store's own addresses or, of blocks
// that are on the disk, where they were read to. In pieces, in each of which a token's row is
// row_bytes behind the one before.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "hybridgen/core/types.h"
#include "kvcache/disk_landing.h"
#include "kvcache/kv_memory.h"

namespace hybridgen {

class StoredRows {
 public:
  /// Token t in [asked, end): at origin + t * row_bytes. The origin may lie outside of any memory.
  struct Piece {
    const std::byte* origin = nullptr;
    std::int64_t end = 0;
  };

  /// Refers to both; `landing` null: nothing is on the disk.
  StoredRows(const KvMemory& memory,
             std::int64_t layer,
             std::int64_t kv_head,
             const DiskLanding* landing)
      : memory_(memory),
        landing_(landing),
        kv_head_(kv_head),
        own_{memory.head(layer, kv_head), memory.shape().capacity} {}

  /// Whether there is one piece.
  bool is_one_piece() const { return landing_ == nullptr; }
  /// The one that holds a token.
  Piece piece_at(std::int64_t token) const { return is_one_piece() ? own_ : find_piece(token); }

  /// visit(origin, TokenRange) for the pieces of a range, in token order.
  template <typename Visit>
  void for_each_piece(TokenRange tokens, const Visit& visit) const {
    for (std::int64_t begin = tokens.begin; begin < tokens.end;) {
      const Piece piece = piece_at(begin);
      const std::int64_t end = std::min(piece.end, tokens.end);
      visit(piece.origin, TokenRange{begin, end});
      begin = end;
    }
  }
  /// visit(origin, index of the first, count) for the pieces that hold `positions`, which ascend.
  template <typename Visit>
  void for_each_piece(std::span<const std::int32_t> positions, const Visit& visit) const {
    for (std::size_t begin = 0; begin < positions.size();) {
      const Piece piece = piece_at(positions[begin]);
      const auto rest = positions.subspan(begin);
      const auto count =
          static_cast<std::size_t>(std::ranges::lower_bound(rest, piece.end) - rest.begin());
      visit(piece.origin, begin, count);
      begin += count;
    }
  }

  /// Copies their rows [count, row_bytes] out.
  void copy(std::span<const std::int32_t> positions, std::byte* out) const;

 private:
  Piece find_piece(std::int64_t token) const;

  const KvMemory& memory_;
  const DiskLanding* landing_;
  std::int64_t kv_head_;
  Piece own_;
};

}  // namespace hybridgen
