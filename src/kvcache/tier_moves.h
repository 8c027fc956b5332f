// SPDX-License-Identifier: Apache-2.0
// What becomes of a block's memory when it changes its tier: on the thread that moves, beside
// whoever uses it, and between two steps.
//   pages             the system moves them under their addresses
//   pinned pages      copies come beside them, and take their place between two steps
//   to and from disk  see KvDisk
#pragma once

#include "hybridgen/kvcache/tier_statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "kvcache/kv_placement.h"
#include "kvcache/tier_memory.h"
#include "kvcache/tier_mover.h"

namespace hybridgen {

/// The memory of a block, and the places that it moves between; all outlive the move.
struct MovedMemory {
  TierMemory* memory = nullptr;
  TokenRange tokens;
  const PagePlace* from = nullptr;
  const PagePlace* to = nullptr;
};

/// The first half, for a TierMover.
TierMove move_of(const TierBlock& block, const BlockMove& move, const MovedMemory& moved);

/// The second, while nobody uses the block. What fails is `done.error` then, and the block is where
/// it was.
void complete(TierMoveDone& done,
              const MovedMemory& moved,
              TraceRecorder& trace,
              TierStatistics& statistics);

}  // namespace hybridgen
