// SPDX-License-Identifier: Apache-2.0
// Accounting of one memory tier: capacity, used, and reservations that give back on destruction.
#pragma once

#include <cstdint>
#include <string>

#include "hybridgen/core/tiers.h"

namespace hybridgen {

class MemoryBudget;

/// Bytes held in a budget. Movable; releases in the destructor. Must not outlive its budget.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();
  std::int64_t bytes() const { return bytes_; }

  /// Takes over what `other`, of the same budget or empty, holds.
  void add(Reservation&& other) noexcept;
  /// Holds `bytes`, not more than there are, less.
  void give_back(std::int64_t bytes) noexcept;

 private:
  friend class MemoryBudget;
  Reservation(MemoryBudget* budget, std::int64_t bytes) : budget_(budget), bytes_(bytes) {}
  void release() noexcept;
  MemoryBudget* budget_ = nullptr;
  std::int64_t bytes_ = 0;
};

/// Used by one thread (the engine's).
class MemoryBudget {
 public:
  /// capacity_bytes > 0, else ConfigError. `setting` names the option that sets it, for messages
  /// (e.g. "KVConfig(dram=...)").
  MemoryBudget(TierKind tier, std::int64_t capacity_bytes, std::string setting);
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  TierKind tier() const { return tier_; }
  std::int64_t capacity_bytes() const { return capacity_bytes_; }
  std::int64_t used_bytes() const { return used_bytes_; }
  std::int64_t free_bytes() const { return capacity_bytes_ - used_bytes_; }
  const std::string& setting() const { return setting_; }

  /// Throws OutOfMemoryError naming operation, tier, bytes wanted, free, capacity and the setting.
  [[nodiscard]] Reservation reserve(std::int64_t bytes, const std::string& operation);

 private:
  friend class Reservation;
  TierKind tier_;
  std::int64_t capacity_bytes_;
  std::int64_t used_bytes_ = 0;
  std::string setting_;
};

/// Host memory this process could still take: min(MemAvailable, cgroup limit - usage), bytes.
std::int64_t available_host_bytes();

}  // namespace hybridgen
