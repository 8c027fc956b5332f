// SPDX-License-Identifier: Apache-2.0
#include "memory/process_memory.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "memory/host_topology.h"
#include "runtime/control_group.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

// The rest is for what libraries take by themselves.
constexpr double kShare = 0.95;

}  // namespace

std::int64_t available_host_bytes() {
  // Once: to know whose a node is takes reading all that the kernel says of each.
  static const std::vector<int> others =
      read_host_facts("/", available_cpus(), has_numa()).nodes_of_others();
  return read_process_bytes("/", others)
      .value_or(std::int64_t{sysconf(_SC_AVPHYS_PAGES)} * std::int64_t{sysconf(_SC_PAGESIZE)});
}

HostMemory measure_host_memory() {
  const auto kib = read_keyed_integer("/proc/self/status", "RssAnon:");
  return {available_host_bytes(), kib.value_or(0) * 1024};
}

ProcessMemory& ProcessMemory::instance() {
  struct Own {
    ProcessMemory memory{measure_host_memory};
    MakerProcess maker;
  };
  static std::atomic<Own*> own = new Own;
  Own* found = own;
  if (!found->maker.is_this_one()) {
    // A forked child has none of the engines, and a lock that another thread may have held.
    auto* const fresh = new Own;
    if (own.compare_exchange_strong(found, fresh)) return fresh->memory;
    delete fresh;
  }
  return found->memory;
}

std::int64_t ProcessMemory::used(TierKind tier) const {
  const std::scoped_lock lock(mutex_);
  return used_[static_cast<std::size_t>(tier)];
}

std::int64_t ProcessMemory::weights() const {
  const std::scoped_lock lock(mutex_);
  return weights_;
}

std::int64_t ProcessMemory::used() const {
  const std::scoped_lock lock(mutex_);
  return used_memory();
}

std::int64_t ProcessMemory::used_memory() const {
  std::int64_t bytes = weights_;
  for (const TierKind tier : {TierKind::kDevice, TierKind::kDram, TierKind::kCxl}) {
    bytes += used_[static_cast<std::size_t>(tier)];
  }
  return bytes;
}

void ProcessMemory::measure() {
  const HostMemory host = measure_();
  // Of what is promised the system no longer has what was written to; the rest it still shows.
  total_ = std::min(used_memory(), host.resident) +
           static_cast<std::int64_t>(kShare * static_cast<double>(host.available));
}

std::int64_t ProcessMemory::free_memory() {
  if (total_ < 0) measure();
  return std::max<std::int64_t>(0, total_ - used_memory());
}

std::int64_t ProcessMemory::measure_free() {
  const std::scoped_lock lock(mutex_);
  measure();
  return free_memory();
}

std::int64_t ProcessMemory::measure_all_for_requests() {
  const std::scoped_lock lock(mutex_);
  measure();
  return std::max<std::int64_t>(0, total_ - weights_);
}

std::int64_t ProcessMemory::free() {
  const std::scoped_lock lock(mutex_);
  return free_memory();
}

std::int64_t ProcessMemory::free_of(const TierClaim& claim) {
  const std::int64_t counted = claim.is_everyones ? used_of(claim.tier) : claim.own;
  const std::int64_t free = std::max<std::int64_t>(0, claim.capacity - counted);
  return claim.tier == TierKind::kDisk ? free : std::min(free, free_memory());
}

std::int64_t ProcessMemory::free(const TierClaim& claim) {
  const std::scoped_lock lock(mutex_);
  return free_of(claim);
}

std::int64_t ProcessMemory::take(const TierClaim& claim, std::int64_t bytes) {
  const std::scoped_lock lock(mutex_);
  std::int64_t free = free_of(claim);
  if (bytes > free) {
    measure();  // the system may have got some back
    free = free_of(claim);
  }
  if (bytes <= free) used_of(claim.tier) += bytes;
  return free;
}

void ProcessMemory::give_back(TierKind tier, std::int64_t bytes) noexcept {
  const std::scoped_lock lock(mutex_);
  used_of(tier) -= bytes;
}

void ProcessMemory::add_weights(std::int64_t bytes) noexcept {
  const std::scoped_lock lock(mutex_);
  weights_ += bytes;
  if (bytes > 0) total_ = -1;  // they came from what the system had
}

}  // namespace hybridgen
