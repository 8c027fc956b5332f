// SPDX-License-Identifier: Apache-2.0
// What this process holds of host memory and of disks, of all its engines and models together.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>

#include "hybridgen/core/tiers.h"
#include "runtime/process.h"

namespace hybridgen {

/// Host memory as the system sees it, in bytes.
struct HostMemory {
  std::int64_t available = 0;  ///< that this process could still take
  std::int64_t resident = 0;   ///< that it has written to, files apart
};

/// Host memory this process could still take: min(MemAvailable without the nodes that are a
/// device's own or outside the cpuset, cgroup limit - usage), bytes.
std::int64_t available_host_bytes();
HostMemory measure_host_memory();

/// What an engine may have of a tier, and has.
struct TierClaim {
  TierKind tier = TierKind::kDram;
  std::int64_t capacity = 0;
  std::int64_t own = 0;       ///< bytes that it has
  bool is_everyones = false;  ///< `capacity` is that of all engines together
};

/// One pool of bytes: weights in host memory, what is resident on a device that is the host's CPUs,
/// and the tiers below. Counts what is promised, be it written to or not, so that nothing is
/// promised twice. Thread-safe, as engines run on several threads.
class ProcessMemory {
 public:
  /// That of this process.
  static ProcessMemory& instance();
  explicit ProcessMemory(std::function<HostMemory()> measure) : measure_(std::move(measure)) {}
  ProcessMemory(const ProcessMemory&) = delete;
  ProcessMemory& operator=(const ProcessMemory&) = delete;

  /// Promised to requests; kDevice: of devices that are the host's CPUs.
  std::int64_t used(TierKind tier) const;
  std::int64_t weights() const;
  /// Promised of all that is memory, weights included; no disk.
  std::int64_t used() const;
  /// What could be promised beside that, of any memory: asks the system, of whose memory a part is
  /// left to libraries and to others.
  std::int64_t measure_free();
  /// What requests of all engines could be promised together: asks the system.
  std::int64_t measure_all_for_requests();
  /// What could be promised now, by what the system said last.
  std::int64_t free();

  /// Bytes that can be promised on a claim. Asks the system only if it was never asked before.
  std::int64_t free(const TierClaim& claim);
  /// Promises them, unless there are fewer, which it then asks the system about once more. Returns
  /// what was free: fewer than `bytes` mean that nothing was done.
  std::int64_t take(const TierClaim& claim, std::int64_t bytes);
  void give_back(TierKind tier, std::int64_t bytes) noexcept;

  /// Weights are counted, not refused: they are there already.
  void add_weights(std::int64_t bytes) noexcept;

 private:
  // All with the lock held.
  std::int64_t& used_of(TierKind tier) { return used_[static_cast<std::size_t>(tier)]; }
  std::int64_t used_memory() const;
  void measure();
  std::int64_t free_memory();
  std::int64_t free_of(const TierClaim& claim);

  std::function<HostMemory()> measure_;
  mutable std::mutex mutex_;
  std::array<std::int64_t, 4> used_{};  ///< by tier
  std::int64_t weights_ = 0;
  std::int64_t total_ = -1;  ///< that this process can have; -1: not measured yet
};

/// Weights of a model in host memory, counted as long as this lives. Movable.
class HeldWeights {
 public:
  HeldWeights() = default;
  explicit HeldWeights(std::int64_t bytes) : bytes_(bytes) {
    ProcessMemory::instance().add_weights(bytes);
  }
  HeldWeights(HeldWeights&& other) noexcept : bytes_(std::exchange(other.bytes_, 0)) {}
  HeldWeights& operator=(HeldWeights&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~HeldWeights() {
    // In a forked child nobody gives back the lock that another thread may have held.
    if (bytes_ != 0 && maker_.is_this_one()) ProcessMemory::instance().add_weights(-bytes_);
  }

 private:
  std::int64_t bytes_ = 0;
  MakerProcess maker_;
};

}  // namespace hybridgen
