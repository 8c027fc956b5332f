// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_emulator/warps.h"

#include <bit>
#include <string_view>

#include "support/cuda_emulator/block.h"

namespace hybridgen::cuda_emulator {

namespace {

constexpr int kLanes = 32;

std::uint32_t bit(int lane) { return std::uint32_t{1} << lane; }

/// "__shfl_sync with mask 0x0000ffff".
std::string described(const char* operation, std::uint32_t mask) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text = operation;
  text += " with mask 0x";
  for (int shift = 28; shift >= 0; shift -= 4) text += kDigits[(mask >> shift) & 15];
  return text;
}

bool are_equal(const char* a, const char* b) { return std::string_view(a) == b; }

/// The lanes of a warp that exist and have not ended.
std::uint32_t live_lanes(const Block& block, int warp) {
  std::uint32_t lanes = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (block.is_live(warp * kLanes + lane)) lanes |= bit(lane);
  }
  return lanes;
}

}  // namespace

void Warps::start_block(int threads) {
  const auto count = static_cast<std::size_t>((threads + kLanes - 1) / kLanes);
  while (warps_.size() < count) warps_.push_back(std::make_unique<Groups>());
  for (std::size_t i = 0; i < count; ++i) {
    for (WarpGroup& group : *warps_[i]) group.arrived = group.reading = 0;
  }
}

WarpGroup& Warps::group_of(Block& block,
                           std::uint32_t mask,
                           const char* operation,
                           std::size_t bytes) {
  const int warp = block.thread() / kLanes;
  if ((mask & bit(block.lane())) == 0) {
    block.fail(described(operation, mask) + " does not name its own lane");
  }
  if (const std::uint32_t missing = mask & ~live_lanes(block, warp); missing != 0) {
    block.fail(described(operation, mask) + " names lane " +
               std::to_string(std::countr_zero(missing)) + ", which has ended or never was");
  }
  WarpGroup* free = nullptr;
  for (WarpGroup& group : *warps_[static_cast<std::size_t>(warp)]) {
    if (group.arrived == 0) {
      if (free == nullptr) free = &group;
      continue;
    }
    if (group.is_complete()) continue;  // being read
    if (group.mask == mask && group.bytes == bytes && are_equal(group.operation, operation)) {
      return group;
    }
    if (const std::uint32_t elsewhere = group.arrived & mask; elsewhere != 0) {
      block.fail(described(operation, mask) + " meets lane " +
                 std::to_string(std::countr_zero(elsewhere)) + " in " +
                 described(group.operation, group.mask));
    }
  }
  free->mask = mask;
  free->operation = operation;
  free->bytes = bytes;
  free->ordering.renew();
  return *free;
}

WarpGroup& Warps::exchange(Block& block,
                           std::uint32_t mask,
                           const char* operation,
                           const void* data,
                           std::size_t bytes,
                           std::source_location where) {
  const EmulatorsOwnAccesses own;
  WarpGroup& group = group_of(block, mask, operation, bytes);
  const int own_lane = block.lane();
  if (bytes > 0) {
    std::memcpy(group.payloads[static_cast<std::size_t>(own_lane)].data(), data, bytes);
  }
  group.arrived |= bit(own_lane);
  group.reading |= bit(own_lane);
  group.ordering.release();
  if (group.is_complete()) {
    const int first = block.thread() - own_lane;
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((mask & bit(lane)) != 0 && lane != own_lane) block.let_go(first + lane);
    }
  } else {
    block.wait_for_warp(operation, where);
  }
  group.ordering.acquire();
  return group;
}

void Warps::finish_reading(Block& block, WarpGroup& group) {
  const EmulatorsOwnAccesses own;
  group.reading &= ~bit(block.lane());
  if (group.reading == 0) group.arrived = 0;
}

std::string Warps::thread_ended(int thread) const {
  const int lane = thread % kLanes;
  for (const WarpGroup& group : *warps_[static_cast<std::size_t>(thread / kLanes)]) {
    if (group.arrived != 0 && !group.is_complete() && (group.mask & bit(lane)) != 0) {
      return "thread " + std::to_string(thread) + " ends while lane " +
             std::to_string(std::countr_zero(group.arrived)) + " waits for it in " +
             described(group.operation, group.mask);
    }
  }
  return "";
}

WarpExchange::WarpExchange(std::uint32_t mask,
                           const char* operation,
                           const void* data,
                           std::size_t bytes,
                           std::source_location where)
    : block_(Block::current()),
      lane_(block_.lane()),
      group_(block_.warps().exchange(block_, mask, operation, data, bytes, where)) {}

WarpExchange::~WarpExchange() { block_.warps().finish_reading(block_, group_); }

void WarpExchange::read(int lane, void* to, std::size_t bytes) const {
  const EmulatorsOwnAccesses own;
  if (lane < 0 || lane >= kLanes || (group_.mask & bit(lane)) == 0) {
    block_.fail(described(group_.operation, group_.mask) + " reads lane " + std::to_string(lane) +
                ", which the mask does not name");
  }
  std::memcpy(to, group_.payloads[static_cast<std::size_t>(lane)].data(), bytes);
}

}  // namespace hybridgen::cuda_emulator
