// SPDX-License-Identifier: Apache-2.0
// The K and V of an engine's requests over the tiers of host memory: holds room for them, takes
// memory as tokens come where the placement says, and lets what must go elsewhere move in the
// background. Deciding is kv_placement.h's, moving tier_mover.h's.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <map>
#include <vector>

#include "hybridgen/core/tiers.h"
#include "hybridgen/kvcache/tier_statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "kvcache/kv_placement.h"
#include "kvcache/kv_room.h"
#include "kvcache/tier_blocks.h"
#include "kvcache/tier_memory.h"
#include "kvcache/tier_mover.h"
#include "kvcache/tier_moves.h"
#include "memory/budgets.h"

namespace hybridgen {

/// Memory nodes of the tiers that are memory.
struct TierPlaces {
  PagePlace dram{};  ///< without nodes: where the system likes, unverified
  PagePlace cxl{};
  PagePlace both{};  ///< by turns
};

class KvTiers;

/// A request's part of the tiers, from its admission to its end. Ends before its memory does.
class KvHolding {
 public:
  KvHolding() = default;
  KvHolding(KvHolding&& other) noexcept;
  KvHolding& operator=(KvHolding&& other) noexcept;
  ~KvHolding();

  /// The memory that tokens will lie in, which must outlive this. `is_rewritten`: rows are written
  /// at any time, not only the newest ones, so that no block may leave memory.
  void set_memory(TierMemory& memory, bool is_rewritten);

  /// Before tokens up to `tokens` are written, while no host job reads. Those of the call before
  /// are written by now. OutOfMemoryError, which names the tiers, if there is no place for them;
  /// everybody else's blocks are as they were.
  void grow(std::int64_t tokens);

  /// Share of the bytes of a side that lie in CXL memory, in [0, 1].
  double share_in_cxl(KvSide side) const;

 private:
  friend class KvTiers;
  KvHolding(KvTiers& tiers, std::int64_t request) : tiers_(&tiers), request_(request) {}
  void release() noexcept;
  KvTiers* tiers_ = nullptr;
  std::int64_t request_ = 0;
};

/// Used by one thread; what moves blocks is another one of its own.
class KvTiers {
 public:
  /// All references must outlive it, and it all its holdings.
  KvTiers(KvPlacement placement,
          TierPlaces places,
          Budgets& budgets,
          TraceRecorder& trace,
          TierStatistics& statistics);

  const TierPlaces& places() const { return places_; }
  /// Whether the tiers have so much now: of DRAM for what only DRAM can hold, and of any for K and
  /// V with their slack_bytes.
  bool fits_now(std::int64_t dram_bytes, std::int64_t kv_bytes, const OpenBytes& open = {}) const;
  /// Reserves it. Blocks of others leave DRAM where `dram_bytes`, which nothing else can take the
  /// place of, need theirs. OutOfMemoryError.
  [[nodiscard]] KvHolding hold(std::int64_t request,
                               std::int64_t dram_bytes,
                               std::int64_t kv_bytes,
                               const OpenBytes& open = {});

  /// Between steps, when all is written that grow() was called for: takes note of that and of moves
  /// that are done, and uses room that others left.
  void settle();
  /// Waits for all moves; for tests, and for who measures them.
  void finish_moves();

  const TierLedger& ledger() const { return ledger_; }
  TierBytes room() const { return room_.room(); }

 private:
  friend class KvHolding;
  struct Entry {
    std::int64_t kv_bytes = 0;
    OpenBytes open;
    Reservation dram;
    TierMemory* memory = nullptr;
    bool is_rewritten = false;
    std::int64_t asked = 0;                    ///< tokens, by grow()
    std::array<std::int64_t, 2> taken{};       ///< tokens that have memory, by side
    std::array<std::int64_t, 2> num_blocks{};  ///< in the ledger, by side
    std::array<std::int64_t, 2> closed{};      ///< blocks, by side
    std::int64_t shares_at = -1;               ///< changes of the ledger until then
    std::array<double, 2> shares_in_cxl{};
  };
  void update();
  bool holds_open(const TierBytes& room, const OpenBytes& more) const;
  void end(std::int64_t request) noexcept;
  void grow(std::int64_t request, Entry& entry, std::int64_t tokens);
  std::vector<NewBlock> growth_of(std::int64_t request, const Entry& entry, std::int64_t tokens);
  void place(std::int64_t request, const std::vector<NewBlock>& blocks);
  bool wait_for_room(const std::vector<BlockPlace>& places);
  void take_rest(std::int64_t request, Entry& entry, KvSide side, std::int64_t tokens);
  void take_block(Entry& entry, const TierBlock& block, std::int64_t tokens);
  void take_up_to(Entry& entry, KvSide side, std::int64_t tokens, BlockPlace place);
  void close_written(std::int64_t request, Entry& entry);
  PlacementRule rule() const;
  bool begin(const std::vector<BlockMove>& moves, const TierBytes& room);
  bool fits_into(const TierBytes& room, const BlockMove& move, std::int64_t bytes) const;
  TokenRange tokens_of(const BlockId& block) const;
  MovedMemory memory_of(const BlockId& block, BlockPlace from, BlockPlace to) const;
  bool note_done(bool waits);
  void shut(BlockPlace place);
  void count_shares(std::int64_t request, Entry& entry) const;
  TierBytes used() const;
  [[noreturn]] void throw_out_of_room(std::int64_t request,
                                      const std::vector<NewBlock>& blocks) const;
  const PagePlace& place_of(BlockPlace place) const;

  KvPlacement placement_;
  TierPlaces places_;
  Budgets& budgets_;
  TraceRecorder& trace_;
  TierStatistics& statistics_;
  KvRoom room_;
  TierLedger ledger_;
  std::map<std::int64_t, Entry> entries_;
  TierBytes leaving_;  ///< by tier, of blocks that the ledger has elsewhere but that are still here
  std::exception_ptr refusal_;          ///< the newest
  std::int64_t largest_key_block_ = 0;  ///< bytes
  bool has_changed_ = false;            ///< room or blocks, since settle()
  TierMover mover_;                     ///< last: its thread ends before what it works on
};

}  // namespace hybridgen
