// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_tiers.h"

#include <algorithm>
#include <string>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

// Tiers that turn out to have less memory than was said, in one growth: each once, and once more.
constexpr int kMostAttempts = 3;

std::size_t index_of(KvSide side) { return static_cast<std::size_t>(side); }

/// The tier that a block lies in; of an interleaved one that which is the smaller, as a rule.
TierKind tier_of(BlockPlace place) {
  return place == BlockPlace::kDram   ? TierKind::kDram
         : place == BlockPlace::kDisk ? TierKind::kDisk
                                      : TierKind::kCxl;
}

}  // namespace

KvHolding::KvHolding(KvHolding&& other) noexcept
    : tiers_(std::exchange(other.tiers_, nullptr)), request_(other.request_) {}

KvHolding& KvHolding::operator=(KvHolding&& other) noexcept {
  if (this != &other) {
    release();
    tiers_ = std::exchange(other.tiers_, nullptr);
    request_ = other.request_;
  }
  return *this;
}

KvHolding::~KvHolding() { release(); }

void KvHolding::release() noexcept {
  if (tiers_ != nullptr) std::exchange(tiers_, nullptr)->end(request_);
}

void KvHolding::set_memory(TierMemory& memory, bool is_rewritten) {
  KvTiers::Entry& entry = tiers_->entries_.at(request_);
  entry.memory = &memory;
  entry.is_rewritten = is_rewritten;
}

void KvHolding::grow(std::int64_t tokens) {
  KvTiers::Entry& entry = tiers_->entries_.at(request_);
  if (tokens > entry.asked) tiers_->grow(request_, entry, tokens);
}

double KvHolding::share_in_cxl(KvSide side) const {
  if (tiers_ == nullptr || tiers_->places_.cxl.nodes.empty()) return 0.0;
  KvTiers::Entry& entry = tiers_->entries_.at(request_);
  if (entry.shares_at != tiers_->ledger_.num_changes()) tiers_->count_shares(request_, entry);
  return entry.shares_in_cxl[index_of(side)];
}

KvTiers::KvTiers(KvPlacement placement,
                 TierPlaces places,
                 Budgets& budgets,
                 TraceRecorder& trace,
                 TierStatistics& statistics)
    : placement_(placement),
      places_(std::move(places)),
      budgets_(budgets),
      trace_(trace),
      statistics_(statistics),
      room_(budgets, placement == KvPlacement::kInterleave),
      mover_(trace) {}

bool KvTiers::fits_now(std::int64_t dram_bytes,
                       std::int64_t kv_bytes,
                       const OpenBytes& open) const {
  const std::optional<TierBytes> wanted = room_.with(kv_bytes, dram_bytes, open);
  return wanted.has_value() && holds_open(*wanted, open) &&
         place_blocks({.placement = placement_, .room = *wanted}, ledger_.blocks(), {}).fits;
}

// Whether memory holds what cannot go to the disk, of those that there are and of one more.
bool KvTiers::holds_open(const TierBytes& room, const OpenBytes& more) const {
  if (!budgets_.has(TierKind::kDisk)) return true;
  std::int64_t resting = more.resting;
  std::int64_t growing = more.growing;
  for (const auto& [request, entry] : entries_) {
    resting += entry.open.resting;
    growing = std::max(growing, entry.open.growing);
  }
  return resting + growing <= room[TierKind::kDram] + room[TierKind::kCxl];
}

KvHolding KvTiers::hold(std::int64_t request,
                        std::int64_t dram_bytes,
                        std::int64_t kv_bytes,
                        const OpenBytes& open) {
  settle();
  const std::optional<TierBytes> wanted = room_.with(kv_bytes, dram_bytes, open);
  if (!wanted.has_value()) {
    // The budgets say best what is missing.
    static_cast<void>(budgets_[TierKind::kDram].reserve(dram_bytes, "admit request"));
    static_cast<void>(budgets_[TierKind::kDram].reserve(kv_bytes + dram_bytes, "admit request"));
    throw OutOfMemoryError(message("[admit request] wants ",
                                   human_bytes(static_cast<double>(kv_bytes)),
                                   " of host memory for keys and values, which other requests "
                                   "have; run fewer or shorter ones at a time"));
  }
  if (!holds_open(*wanted, open)) {
    throw OutOfMemoryError(message(
        "[admit request] wants ",
        human_bytes(static_cast<double>(open.resting + open.growing)),
        " of memory for keys and values that are still written to; allowed: ",
        human_bytes(static_cast<double>((*wanted)[TierKind::kDram] + (*wanted)[TierKind::kCxl])),
        " for all requests together, whatever a disk has; raise KVConfig(dram=...), lower "
        "max_num_batched_tokens or run fewer requests at a time"));
  }
  const auto decide = [&] {
    return place_blocks({.placement = placement_, .room = *wanted}, ledger_.blocks(), {});
  };
  PlacementDecision decision = decide();
  while (!decision.fits && note_done(/*waits=*/true)) decision = decide();
  for (int attempt = 1; decision.fits && !begin(decision.moves, *wanted) && attempt < kMostAttempts;
       ++attempt) {
    finish_moves();
    decision = decide();
  }
  while (used()[TierKind::kDram] > (*wanted)[TierKind::kDram] && note_done(/*waits=*/true)) {
  }
  Reservation dram;
  room_.promise(kv_bytes, *wanted, used(), open);
  try {
    dram = budgets_[TierKind::kDram].reserve(dram_bytes, "admit request");
    Entry& entry = entries_[request];
    entry.kv_bytes = kv_bytes;
    entry.open = open;
    entry.dram = std::move(dram);
  } catch (...) {
    room_.take_back(kv_bytes, used(), open);
    throw;
  }
  return {*this, request};
}

void KvTiers::end(std::int64_t request) noexcept {
  mover_.forget(request, [this](const TierMove& move) { leaving_.add(move.from, -move.bytes); });
  const auto found = entries_.find(request);
  const std::int64_t kv_bytes = found->second.kv_bytes;
  const OpenBytes open = found->second.open;
  ledger_.forget(request);
  entries_.erase(found);
  room_.reopen();
  room_.take_back(kv_bytes, used(), open);
  has_changed_ = true;
}

void KvTiers::settle() {
  if (!room_.has_lower_tiers()) return;
  for (auto& [request, entry] : entries_) close_written(request, entry);
  update();
}

void KvTiers::update() {
  note_done(/*waits=*/false);
  if (!std::exchange(has_changed_, false)) return;
  room_.take_back(0, used());
  const PlacementDecision decision = place_blocks(rule(), ledger_.blocks(), {});
  if (decision.fits) begin(decision.moves, room_.room());
}

void KvTiers::finish_moves() {
  while (note_done(/*waits=*/true)) {
  }
}

PlacementRule KvTiers::rule() const {
  PlacementRule rule{.placement = placement_, .room = room_.room()};
  rule.low_water =
      low_water_bytes(rule.room, static_cast<std::int64_t>(entries_.size()), largest_key_block_);
  return rule;
}

void KvTiers::grow(std::int64_t request, Entry& entry, std::int64_t tokens) {
  tokens = std::min(tokens, entry.memory->capacity());
  if (!room_.has_lower_tiers()) {  // nothing to decide, nor to remember
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      take_up_to(entry, side, tokens, BlockPlace::kDram);
    }
    entry.asked = tokens;
    return;
  }
  update();
  if (!room_.is_shut()) refusal_ = nullptr;  // of another time
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues})
    take_rest(request, entry, side, tokens);
  std::vector<NewBlock> blocks = growth_of(request, entry, tokens);
  for (int attempt = 1; !blocks.empty(); ++attempt) {
    close_written(request, entry);
    const std::size_t num_before = ledger_.blocks().size();
    place(request, blocks);
    std::size_t done = 0;
    try {
      for (; done < blocks.size(); ++done) {
        take_block(entry, ledger_.blocks()[num_before + done], tokens);
      }
      break;
    } catch (const OutOfMemoryError&) {
      refusal_ = std::current_exception();
      const BlockPlace refused = ledger_.blocks()[num_before + done].place;
      ledger_.keep_first(num_before + done);
      if (attempt == kMostAttempts) throw;
      shut(refused);
      blocks.erase(blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(done));
    }
  }
  entry.asked = tokens;
}

// Blocks that tokens up to `tokens` begin, by their first tokens, keys before values.
std::vector<NewBlock> KvTiers::growth_of(std::int64_t request,
                                         const Entry& entry,
                                         std::int64_t tokens) {
  std::vector<std::pair<std::int64_t, NewBlock>> blocks;
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    const std::int64_t each = entry.memory->block_tokens(side);
    for (std::int64_t i = entry.num_blocks[index_of(side)]; i * each < tokens; ++i) {
      const TokenRange range{i * each, std::min((i + 1) * each, entry.memory->capacity())};
      blocks.push_back(
          {range.begin, {.id = {request, side, i}, .bytes = entry.memory->bytes_of(side, range)}});
    }
  }
  std::ranges::stable_sort(blocks, {}, [](const auto& block) { return block.first; });
  std::vector<NewBlock> growth;
  growth.reserve(blocks.size());
  for (const auto& [begin, block] : blocks) {
    growth.push_back(block);
    if (block.id.side == KvSide::kKeys) {
      largest_key_block_ = std::max(largest_key_block_, block.bytes);
    }
  }
  return growth;
}

// Adds blocks to the ledger, once what must leave their places has left.
void KvTiers::place(std::int64_t request, const std::vector<NewBlock>& blocks) {
  for (;;) {
    const PlacementDecision decision = place_blocks(rule(), ledger_.blocks(), blocks);
    if (!decision.fits) {
      if (note_done(/*waits=*/true)) continue;
      throw_out_of_room(request, blocks);
    }
    begin(decision.moves, room_.room());
    const std::size_t num_before = ledger_.blocks().size();
    const bool goes_to_disk = entries_.at(request).open.to_disk > 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      ledger_.add({.id = blocks[i].id,
                   .bytes = blocks[i].bytes,
                   .place = decision.places[i],
                   .goes_to_disk = goes_to_disk});
    }
    if (wait_for_room(decision.places)) return;
    ledger_.keep_first(num_before);  // a move failed
  }
}

// Whether the tiers of `places` have what the ledger says once moves are done that leave them.
bool KvTiers::wait_for_room(const std::vector<BlockPlace>& places) {
  const TierBytes room = rule().room;
  const auto is_too_full = [&] {
    return std::ranges::any_of(places, [&](BlockPlace place) {
      return std::ranges::any_of(kHostTiers, [&](TierKind tier) {
        TierBytes touched;
        touched.add(place, 2);
        return touched[tier] > 0 && used()[tier] > room[tier];
      });
    });
  };
  if (!is_too_full()) return true;
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  bool has_room = false;
  while (!has_room && note_done(/*waits=*/true)) has_room = !is_too_full();
  statistics_.growth_waits += 1;
  statistics_.growth_wait_s += static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-9;
  return has_room;
}

// The part of a block begun before that tokens up to `tokens` need.
void KvTiers::take_rest(std::int64_t request, Entry& entry, KvSide side, std::int64_t tokens) {
  const std::int64_t taken = entry.taken[index_of(side)];
  const std::int64_t end = entry.num_blocks[index_of(side)] * entry.memory->block_tokens(side);
  if (taken >= std::min(tokens, end)) return;
  const std::size_t newest = ledger_.find({request, side, entry.num_blocks[index_of(side)] - 1});
  take_up_to(entry, side, std::min(tokens, end), ledger_.blocks()[newest].place);
}

void KvTiers::take_block(Entry& entry, const TierBlock& block, std::int64_t tokens) {
  const std::int64_t end = (block.id.index + 1) * entry.memory->block_tokens(block.id.side);
  take_up_to(entry, block.id.side, std::min(tokens, end), block.place);
  entry.num_blocks[index_of(block.id.side)] = block.id.index + 1;
}

void KvTiers::take_up_to(Entry& entry, KvSide side, std::int64_t tokens, BlockPlace place) {
  std::int64_t& taken = entry.taken[index_of(side)];
  const std::int64_t granule = entry.memory->granule_tokens(side);
  const std::int64_t end =
      std::min((tokens + granule - 1) / granule * granule, entry.memory->capacity());
  if (end <= taken) return;
  entry.memory->take(side, {taken, end}, place_of(place));
  taken = end;
}

// Whole blocks of tokens that were written before this growth, or this step.
void KvTiers::close_written(std::int64_t request, Entry& entry) {
  if (entry.is_rewritten || entry.memory == nullptr) return;
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    const std::int64_t end =
        entry.memory->closed_tokens(side, entry.asked) / entry.memory->block_tokens(side);
    std::int64_t& closed = entry.closed[index_of(side)];
    if (end <= closed) continue;
    ledger_.close_before(request, side, closed = end);
    has_changed_ |= entry.open.to_disk > 0;
  }
}

// Whether all of them. What leaves a tier keeps its pages until that is noted: what comes in its
// place is left out as long, and decided about again.
bool KvTiers::begin(const std::vector<BlockMove>& moves, const TierBytes& room) {
  bool has_begun_all = true;
  for (const BlockMove& move : moves) {
    const TierBlock block = ledger_.blocks()[move.block];
    if ((leaving_.sum() > 0 || !has_begun_all) && !fits_into(room, move, block.bytes)) {
      has_begun_all = false;
      continue;
    }
    mover_.add(move_of(block, move, memory_of(block.id, move.from, move.to)));
    ledger_.move(move.block, move.to);
    ledger_.set_moving(move.block, true);
    leaving_.add(move.from, block.bytes);
  }
  return has_begun_all;
}

bool KvTiers::fits_into(const TierBytes& room, const BlockMove& move, std::int64_t bytes) const {
  TierBytes coming;
  coming.add(move.to, bytes);
  const TierBytes there = used();
  return std::ranges::all_of(kHostTiers, [&](TierKind tier) {
    return coming[tier] == 0 || there[tier] + coming[tier] <= room[tier];
  });
}

TokenRange KvTiers::tokens_of(const BlockId& block) const {
  const Entry& entry = entries_.at(block.request);
  const std::int64_t each = entry.memory->block_tokens(block.side);
  return {block.index * each,
          std::min((block.index + 1) * each, entry.taken[index_of(block.side)])};
}

MovedMemory KvTiers::memory_of(const BlockId& block, BlockPlace from, BlockPlace to) const {
  return {.memory = entries_.at(block.request).memory,
          .tokens = tokens_of(block),
          .from = &place_of(from),
          .to = &place_of(to)};
}

// Whether any move has ended since.
bool KvTiers::note_done(bool waits) {
  std::vector<TierMoveDone> all = mover_.take_done(waits);
  for (TierMoveDone& done : all) {
    const TierMove& move = done.move;
    complete(done, memory_of(move.block, move.from, move.to), trace_, statistics_);
    leaving_.add(move.from, -move.bytes);
    statistics_.move_s += done.seconds;
    const std::size_t block = ledger_.find(move.block);
    ledger_.set_moving(block, false);
    if (done.error != nullptr) {
      statistics_.failed_moves += 1;
      refusal_ = done.error;
      ledger_.move(block, move.from);
      shut(move.to);
    } else {
      const bool is_down = move.to > move.from;
      (is_down ? statistics_.moves_down : statistics_.moves_up) += 1;
      (is_down ? statistics_.moved_down_bytes : statistics_.moved_up_bytes) += move.bytes;
    }
    has_changed_ = true;
  }
  return !all.empty();
}

void KvTiers::shut(BlockPlace place) { room_.shut(tier_of(place), used()); }

void KvTiers::count_shares(std::int64_t request, Entry& entry) const {
  std::array<TierBytes, 2> bytes{};
  for (const TierBlock& block : ledger_.blocks()) {
    if (block.id.request == request) bytes[index_of(block.id.side)].add(block.place, block.bytes);
  }
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    const TierBytes& of_side = bytes[index_of(side)];
    entry.shares_in_cxl[index_of(side)] =
        of_side.sum() == 0
            ? 0.0
            : static_cast<double>(of_side[TierKind::kCxl]) / static_cast<double>(of_side.sum());
  }
  entry.shares_at = ledger_.num_changes();
}

TierBytes KvTiers::used() const {
  TierBytes bytes = leaving_;
  for (const TierKind tier : kHostTiers) bytes[tier] += ledger_.bytes(tier);
  return bytes;
}

const PagePlace& KvTiers::place_of(BlockPlace place) const {
  return place == BlockPlace::kDram  ? places_.dram
         : place == BlockPlace::kCxl ? places_.cxl
                                     : places_.both;
}

void KvTiers::throw_out_of_room(std::int64_t request, const std::vector<NewBlock>& blocks) const {
  if (refusal_ != nullptr) std::rethrow_exception(refusal_);
  std::int64_t wanted = 0;
  for (const NewBlock& block : blocks) wanted += block.bytes;
  std::string tiers;
  const TierBytes room = room_.room();
  for (const TierKind tier : kHostTiers) {
    if (room[tier] == 0) continue;
    tiers += message(tiers.empty() ? "" : ", ",
                     human_bytes(static_cast<double>(room[tier] - ledger_.bytes(tier))),
                     " free of ",
                     human_bytes(static_cast<double>(room[tier])),
                     " of ",
                     hybridgen::name_of(tier));
  }
  throw OutOfMemoryError(message("[grow the KV cache] request ",
                                 request,
                                 " needs ",
                                 human_bytes(static_cast<double>(wanted)),
                                 " more; allowed: ",
                                 tiers,
                                 "; raise KVConfig(dram=...) or run fewer or shorter requests"));
}

}  // namespace hybridgen
