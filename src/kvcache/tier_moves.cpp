// SPDX-License-Identifier: Apache-2.0
#include "kvcache/tier_moves.h"

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

const char* name_of(KvSide side) { return side == KvSide::kKeys ? "keys" : "values"; }

OutOfMemoryError cannot_move(const PageMove& left, KvSide side, const PagePlace& to) {
  return OutOfMemoryError(message("[move keys and values] ",
                                  human_bytes(static_cast<double>(left.left_bytes)),
                                  " of ",
                                  name_of(side),
                                  " cannot move to the ",
                                  hybridgen::name_of(to.tier),
                                  " tier: ",
                                  left.why,
                                  "; lower ",
                                  to.setting));
}

void move_pages(const MovedMemory& moved, KvSide side) {
  const PageMove result = moved.memory->move(side, moved.tokens, *moved.to);
  if (result.left_bytes == 0) return;
  static_cast<void>(moved.memory->move(side, moved.tokens, *moved.from));  // it has just had room
  throw cannot_move(result, side, *moved.to);
}

void switch_to_copies(TierMoveDone& done,
                      const MovedMemory& moved,
                      TraceRecorder& trace,
                      TierStatistics& statistics) {
  const KvSide side = done.move.block.side;
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  try {
    const PageMove result =
        moved.memory->switch_to_copies(side, moved.tokens, *moved.from, done.move.has_contents);
    if (result.left_bytes > 0) throw cannot_move(result, side, *moved.to);
    statistics.switches += 1;
  } catch (...) {
    done.error = std::current_exception();
  }
  const std::int64_t end_ns = TraceRecorder::now_ns();
  statistics.switch_s += static_cast<double>(end_ns - begin_ns) * 1e-9;
  trace.record({.name = side == KvSide::kKeys ? "switch keys" : "switch values",
                .lane = TraceLane::kMoves,
                .worker = static_cast<std::int32_t>(done.move.block.request),
                .begin_ns = begin_ns,
                .end_ns = end_ns,
                .bytes = done.move.bytes});
}

}  // namespace

TierMove move_of(const TierBlock& block, const BlockMove& move, const MovedMemory& moved) {
  TierMove result;
  result.block = block.id;
  result.bytes = block.bytes;
  result.from = move.from;
  result.to = move.to;
  const KvSide side = block.id.side;
  if (move.to == BlockPlace::kDisk) {
    result.work = [=] { moved.memory->write_to_disk(side, moved.tokens); };
  } else if (move.from == BlockPlace::kDisk) {
    result.work = [=] { moved.memory->read_from_disk(side, moved.tokens, *moved.to); };
  } else if (moved.memory->is_pinned(side, moved.tokens)) {
    // What is written to a block meanwhile must not be lost.
    const bool contents = block.is_closed;
    result.is_by_copy = true;
    result.has_contents = contents;
    result.work = [=] { moved.memory->bring_copies(side, moved.tokens, *moved.to, contents); };
  } else {
    result.work = [=] { move_pages(moved, side); };
  }
  return result;
}

void complete(TierMoveDone& done,
              const MovedMemory& moved,
              TraceRecorder& trace,
              TierStatistics& statistics) {
  const TierMove& move = done.move;
  if (move.is_by_copy && done.error == nullptr) switch_to_copies(done, moved, trace, statistics);
  const bool is_back = move.from == BlockPlace::kDisk && done.error == nullptr;
  const bool is_out = move.from == BlockPlace::kDisk
                          ? done.error != nullptr
                          : move.to == BlockPlace::kDisk && done.error == nullptr;
  if (is_back) moved.memory->arrive_from_disk(move.block.side, moved.tokens);
  if (is_out) moved.memory->leave_for_disk(move.block.side, moved.tokens);
}

}  // namespace hybridgen
