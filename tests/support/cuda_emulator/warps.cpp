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

}  // namespace

void Warps::start_block(int threads) {
  const auto count = static_cast<std::size_t>((threads + kLanes - 1) / kLanes);
  while (warps_.size() < count) warps_.push_back(std::make_unique<Groups>());
  for (std::size_t i = 0; i < count; ++i) {
    for (WarpGroup& group : *warps_[i]) group.arrived = group.reading = 0;
  }
}

std::string Warps::what_is_wrong(const Block& block,
                                 std::uint32_t mask,
                                 const char* operation) const {
  const int warp = block.thread() / kLanes;
  const std::uint32_t own = bit(block.lane());
  if ((mask & own) == 0) return described(operation, mask) + " does not name its own lane";
  if (const std::uint32_t missing = mask & ~block.live_lanes(warp); missing != 0) {
    return described(operation, mask) + " names lane " + std::to_string(std::countr_zero(missing)) +
           ", which has ended or never was";
  }
  for (const WarpGroup& group : *warps_[static_cast<std::size_t>(warp)]) {
    // Who waits there waits for this lane, which would wait for them here.
    const std::uint32_t elsewhere = group.arrived & mask;
    if (elsewhere == 0 || group.is_complete() || (group.mask & own) == 0) continue;
    if (group.mask == mask && are_equal(group.operation, operation)) continue;
    return described(operation, mask) + " meets lane " +
           std::to_string(std::countr_zero(elsewhere)) + " in " +
           described(group.operation, group.mask);
  }
  return "";
}

WarpGroup& Warps::join_group(const Block& block, std::uint32_t mask, const char* operation) {
  WarpGroup* joined = nullptr;
  for (WarpGroup& group : *warps_[static_cast<std::size_t>(block.thread() / kLanes)]) {
    if (group.arrived == 0) {
      if (joined == nullptr) joined = &group;
    } else if (!group.is_complete() && group.mask == mask) {
      joined = &group;
      break;
    }
  }
  if (joined->arrived == 0) {
    joined->mask = mask;
    joined->operation = operation;
    joined->ordering.renew();
  }
  joined->arrived |= bit(block.lane());
  joined->reading |= bit(block.lane());
  return *joined;
}

WarpGroup& Warps::exchange(Block& block,
                           std::uint32_t mask,
                           const char* operation,
                           const void* data,
                           std::size_t bytes,
                           std::source_location where) {
  WarpGroup* joined = nullptr;
  std::string wrong;
  {
    const EmulatorsOwnAccesses own;
    wrong = what_is_wrong(block, mask, operation);
    if (wrong.empty()) {
      joined = &join_group(block, mask, operation);
      auto& payload = (*joined->payloads)[static_cast<std::size_t>(block.lane())];
      if (bytes > 0) std::memcpy(payload.data(), data, bytes);
    }
  }
  if (joined == nullptr) block.fail(wrong);
  joined->ordering.release();
  if (joined->is_complete()) {
    const int first = block.thread() - block.lane();
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((mask & bit(lane)) != 0 && lane != block.lane()) block.let_go(first + lane);
    }
  } else {
    block.wait_for_warp(operation, where);
  }
  joined->ordering.acquire();
  return *joined;
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
      return described(group.operation, group.mask) + " names lane " + std::to_string(lane) +
             ", which has ended";
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
  if (lane < 0 || lane >= kLanes || (group_.mask & bit(lane)) == 0) {
    block_.fail(described(group_.operation, group_.mask) + " reads lane " + std::to_string(lane) +
                ", which the mask does not name");
  }
  const EmulatorsOwnAccesses own;
  std::memcpy(to, (*group_.payloads)[static_cast<std::size_t>(lane)].data(), bytes);
}

}  // namespace hybridgen::cuda_emulator
