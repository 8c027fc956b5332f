// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_emulator/async_copies.h"

#include "support/cuda_emulator/sanitizer.h"

namespace hybridgen::cuda_emulator {

void AsyncCopies::clear() {
  copies_.clear();
  group_ = 0;
}

void AsyncCopies::add(void* to, const void* from, int bytes) {
  const EmulatorsOwnAccesses own;
  copies_.push_back({.to = to, .from = from, .bytes = bytes, .group = group_});
}

void AsyncCopies::commit() { ++group_; }

std::optional<AsyncCopies::Copy> AsyncCopies::next_due(int pending) {
  const EmulatorsOwnAccesses own;
  // Copies that were never committed belong to no group that a wait could mean.
  if (copies_.empty() || copies_.front().group >= group_ - pending) return std::nullopt;
  const Copy copy = copies_.front();
  copies_.pop_front();
  return copy;
}

}  // namespace hybridgen::cuda_emulator
