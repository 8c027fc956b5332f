// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_emulator/schedule.h"

namespace hybridgen::cuda_emulator {

namespace {

thread_local Schedule schedule_of_this_thread;

}  // namespace

std::string description(const Schedule& schedule) {
  std::string text = "threads ";
  switch (schedule.threads) {
    case ThreadOrder::kForward:
      text += "forward";
      break;
    case ThreadOrder::kReverse:
      text += "reverse";
      break;
    case ThreadOrder::kRandom:
      text += "random (seed " + std::to_string(schedule.seed) + ")";
      break;
  }
  return text + (schedule.blocks == BlockOrder::kForward ? ", blocks forward" : ", blocks reverse");
}

std::vector<Schedule> all_schedules(std::uint64_t seed) {
  std::vector<Schedule> schedules;
  for (const BlockOrder blocks : {BlockOrder::kForward, BlockOrder::kReverse}) {
    for (const ThreadOrder threads :
         {ThreadOrder::kForward, ThreadOrder::kReverse, ThreadOrder::kRandom}) {
      schedules.push_back({.threads = threads, .blocks = blocks, .seed = seed});
    }
  }
  return schedules;
}

const Schedule& current_schedule() { return schedule_of_this_thread; }

ScopedSchedule::ScopedSchedule(const Schedule& schedule) : before_(schedule_of_this_thread) {
  schedule_of_this_thread = schedule;
}

ScopedSchedule::~ScopedSchedule() { schedule_of_this_thread = before_; }

}  // namespace hybridgen::cuda_emulator
