// SPDX-License-Identifier: Apache-2.0
// Memory of one request's K and V as whoever places it sees it: tokens of a side come in, and
// change their tier under unchanged addresses.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"
#include "kvcache/tier_blocks.h"
#include "memory/placed_memory.h"

namespace hybridgen {

class TierMemory {
 public:
  TierMemory() = default;
  TierMemory(const TierMemory&) = delete;
  TierMemory& operator=(const TierMemory&) = delete;
  virtual ~TierMemory() = default;

  /// Tokens that there may be.
  virtual std::int64_t capacity() const = 0;
  /// Tokens of a tier block, and of what can be taken at a time, which divides it.
  virtual std::int64_t block_tokens(KvSide side) const = 0;
  virtual std::int64_t granule_tokens(KvSide side) const = 0;
  /// Of all layers and heads. Ranges begin at a multiple of the granule and end at one or with the
  /// capacity; so below.
  virtual std::int64_t bytes_of(KvSide side, TokenRange tokens) const = 0;

  /// Brings in memory for tokens that have none. OutOfMemoryError if the place has too little; then
  /// none of it is there.
  virtual void take(KvSide side, TokenRange tokens, const PagePlace& place) = 0;
  /// May run beside readers and writers of the same tokens, and beside take() of others.
  virtual PageMove move(KvSide side, TokenRange tokens, const PagePlace& place) = 0;

  // Of pinned blocks, instead of move(); see KvMemory.
  virtual bool is_pinned(KvSide /*side*/, TokenRange /*tokens*/) const { return false; }
  /// On the thread that moves, beside readers and, without `contents`, writers.
  virtual void bring_copies(KvSide /*side*/,
                            TokenRange /*tokens*/,
                            const PagePlace& /*place*/,
                            bool /*contents*/) {}
  /// Completes it, while nobody uses the tokens.
  virtual PageMove switch_to_copies(KvSide /*side*/,
                                    TokenRange /*tokens*/,
                                    const PagePlace& /*from*/,
                                    bool /*contents*/) {
    return {};
  }

  // Of whole blocks that are closed; see KvDisk. Where there is no disk nobody calls them.
  /// Tokens of the first `written` ones whose blocks nobody writes to or looks into again but to
  /// read them through KvDisk.
  virtual std::int64_t closed_tokens(KvSide /*side*/, std::int64_t written) const {
    return written;
  }
  /// On the thread that moves, beside readers. Throw what KvDisk's write and bring_back do.
  virtual void write_to_disk(KvSide /*side*/, TokenRange /*tokens*/) {}
  virtual void read_from_disk(KvSide /*side*/, TokenRange /*tokens*/, const PagePlace& /*place*/) {}
  /// Completes them, while nobody reads.
  virtual void leave_for_disk(KvSide /*side*/, TokenRange /*tokens*/) noexcept {}
  virtual void arrive_from_disk(KvSide /*side*/, TokenRange /*tokens*/) noexcept {}
};

}  // namespace hybridgen
