// SPDX-License-Identifier: Apache-2.0
// Accounting of one memory tier: capacity, used, and reservations that give back on destruction.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "hybridgen/core/tiers.h"
#include "memory/process_memory.h"

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

/// What one engine may have of a tier. Of host memory and disks its process has one pool, which
/// every reservation counts in too. reserve() is called by one thread (the engine's), everything
/// else by any.
class MemoryBudget {
 public:
  /// A tier that is nobody else's. capacity_bytes > 0, else ConfigError. `setting` names the option
  /// that sets it, for messages (e.g. "KVConfig(dram=...)").
  MemoryBudget(TierKind tier, std::int64_t capacity_bytes, std::string setting);
  /// A tier of `process`. `is_everyones`: its engines have `capacity_bytes` together, as when a
  /// user said so; else each has, as far as there is memory.
  MemoryBudget(TierKind tier,
               std::int64_t capacity_bytes,
               std::string setting,
               ProcessMemory& process,
               bool is_everyones);
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  TierKind tier() const { return tier_; }
  std::int64_t capacity_bytes() const { return capacity_bytes_; }
  /// Of this budget's own reservations.
  std::int64_t used_bytes() const { return used_bytes_; }
  /// Those of all engines of the process, if they share the tier.
  std::int64_t process_bytes() const;
  std::int64_t free_bytes() const;
  const std::string& setting() const { return setting_; }

  /// Throws OutOfMemoryError naming operation, tier, bytes wanted, free, capacity and the setting,
  /// and what other engines hold.
  [[nodiscard]] Reservation reserve(std::int64_t bytes, const std::string& operation);

 private:
  friend class Reservation;
  TierClaim claim() const { return {tier_, capacity_bytes_, used_bytes_, is_everyones_}; }
  void give_back(std::int64_t bytes) noexcept;

  TierKind tier_;
  std::int64_t capacity_bytes_;
  std::atomic<std::int64_t> used_bytes_ = 0;
  std::string setting_;
  ProcessMemory* process_ = nullptr;
  bool is_everyones_ = false;
};

}  // namespace hybridgen
