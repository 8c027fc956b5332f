// SPDX-License-Identifier: Apache-2.0
// A HostKvStore's memory as KvTiers sees it.
#pragma once

#include <cstdint>
#include <numeric>

#include "kvcache/host_kv_store.h"
#include "kvcache/tier_memory.h"

namespace hybridgen {

class StoreMemory final : public TierMemory {
 public:
  /// Refers to it.
  explicit StoreMemory(HostKvStore& store) : store_(store) {}

  std::int64_t capacity() const override { return store_.shape().capacity; }
  std::int64_t block_tokens(KvSide side) const override {
    return std::lcm(kTierBlockTokens, granule_tokens(side));
  }
  std::int64_t granule_tokens(KvSide side) const override {
    return store_.memory(side).block_tokens();
  }
  std::int64_t bytes_of(KvSide side, TokenRange tokens) const override {
    return store_.memory(side).bytes_of(blocks_of(side, tokens));
  }
  void take(KvSide side, TokenRange tokens, const PagePlace& place) override;
  PageMove move(KvSide side, TokenRange tokens, const PagePlace& place) override;

  bool is_pinned(KvSide side, TokenRange tokens) const override;
  void bring_copies(KvSide side, TokenRange tokens, const PagePlace& place, bool contents) override;
  PageMove switch_to_copies(KvSide side,
                            TokenRange tokens,
                            const PagePlace& from,
                            bool contents) override;

  std::int64_t closed_tokens(KvSide side, std::int64_t written) const override;
  void write_to_disk(KvSide side, TokenRange tokens) override;
  void read_from_disk(KvSide side, TokenRange tokens, const PagePlace& place) override;
  void leave_for_disk(KvSide side, TokenRange tokens) noexcept override;
  void arrive_from_disk(KvSide side, TokenRange tokens) noexcept override;

 private:
  BlockRange blocks_of(KvSide side, TokenRange tokens) const;
  HostKvStore& store_;
};

/// Bytes of what KvTiers places of a store of this shape, and of its largest tier block.
struct BytesToPlace {
  std::int64_t all = 0;
  std::int64_t largest_block = 0;
};
BytesToPlace bytes_to_place(const HostKvShape& shape);

/// What cannot go to a disk of a store that grows by `most_growth` tokens at once, at most.
OpenBytes open_bytes(const HostKvShape& shape, std::int64_t most_growth);

}  // namespace hybridgen
