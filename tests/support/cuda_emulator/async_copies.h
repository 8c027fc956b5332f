// SPDX-License-Identifier: Apache-2.0
// cp.async of one CUDA thread. A copy is made as late as CUDA allows, at the wait that guarantees
// it; until then its target is NaN.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>

namespace hybridgen::cuda_emulator {

class AsyncCopies {
 public:
  struct Copy {
    void* to;
    const void* from;
    int bytes;  ///< that are read, of 16 that are written; the rest is zero
    int group;
  };

  void clear();
  void add(void* to, const void* from, int bytes);
  void commit();
  /// The next copy, taken off, that must have been made when only the `pending` newest groups may
  /// be unfinished.
  std::optional<Copy> next_due(int pending);

 private:
  std::deque<Copy> copies_;
  int group_ = 0;  ///< that add() adds to
};

}  // namespace hybridgen::cuda_emulator
