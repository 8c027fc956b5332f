// SPDX-License-Identifier: Apache-2.0
// In which order the emulator runs what a device runs in any order. A kernel whose result differs
// between two of these has a race.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hybridgen::cuda_emulator {

/// Of the threads of a block, between two points where they wait.
enum class ThreadOrder : std::uint8_t { kForward, kReverse, kRandom };

enum class BlockOrder : std::uint8_t { kForward, kReverse };

struct Schedule {
  ThreadOrder threads = ThreadOrder::kForward;
  BlockOrder blocks = BlockOrder::kForward;
  std::uint64_t seed = 0;  ///< of ThreadOrder::kRandom; each launch starts with it
};

/// "threads random (seed 7), blocks reverse".
std::string description(const Schedule& schedule);

/// Every order of threads with both orders of blocks; the random ones with `seed`.
std::vector<Schedule> all_schedules(std::uint64_t seed);

/// The schedule of launches that this OS thread makes.
const Schedule& current_schedule();

/// Sets current_schedule() while it lives.
class ScopedSchedule {
 public:
  explicit ScopedSchedule(const Schedule& schedule);
  ~ScopedSchedule();
  ScopedSchedule(const ScopedSchedule&) = delete;
  ScopedSchedule& operator=(const ScopedSchedule&) = delete;

 private:
  Schedule before_;
};

}  // namespace hybridgen::cuda_emulator
