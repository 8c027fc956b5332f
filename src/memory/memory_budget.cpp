// SPDX-License-Identifier: Apache-2.0
#include "memory/memory_budget.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "hybridgen/core/error.h"
#include "runtime/control_group.h"

namespace hybridgen {

Reservation::Reservation(Reservation&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    release();
    budget_ = std::exchange(other.budget_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

Reservation::~Reservation() { release(); }

void Reservation::add(Reservation&& other) noexcept {
  if (budget_ == nullptr) budget_ = other.budget_;
  bytes_ += std::exchange(other.bytes_, 0);
  other.budget_ = nullptr;
}

void Reservation::give_back(std::int64_t bytes) noexcept {
  if (budget_ != nullptr) budget_->used_bytes_ -= bytes;
  bytes_ -= bytes;
}

void Reservation::release() noexcept {
  if (budget_ != nullptr) budget_->used_bytes_ -= bytes_;
  budget_ = nullptr;
  bytes_ = 0;
}

MemoryBudget::MemoryBudget(TierKind tier, std::int64_t capacity_bytes, std::string setting)
    : tier_(tier), capacity_bytes_(capacity_bytes), setting_(std::move(setting)) {
  if (capacity_bytes < 1) {
    throw ConfigError(message("[memory budget] capacity of the ",
                              name_of(tier),
                              " tier is ",
                              capacity_bytes,
                              " bytes; allowed: >= 1; raise ",
                              setting_));
  }
}

Reservation MemoryBudget::reserve(std::int64_t bytes, const std::string& operation) {
  if (bytes < 0) {
    throw ConfigError(
        message("[", operation, "] bytes is ", bytes, "; allowed: >= 0; pass a size in bytes"));
  }
  if (bytes > free_bytes()) {
    throw OutOfMemoryError(message("[",
                                   operation,
                                   "] wants ",
                                   human_bytes(static_cast<double>(bytes)),
                                   " (",
                                   bytes,
                                   " bytes) of the ",
                                   name_of(tier_),
                                   " tier; allowed: at most the ",
                                   human_bytes(static_cast<double>(free_bytes())),
                                   " free of ",
                                   human_bytes(static_cast<double>(capacity_bytes_)),
                                   "; raise ",
                                   setting_,
                                   " or run fewer or shorter requests at a time"));
  }
  used_bytes_ += bytes;
  return Reservation(this, bytes);
}

std::int64_t available_host_bytes() {
  std::int64_t available = 0;
  if (const auto kib = read_keyed_integer("/proc/meminfo", "MemAvailable:")) {
    available = *kib * 1024;
  } else {  // no procfs
    available = std::int64_t{sysconf(_SC_AVPHYS_PAGES)} * std::int64_t{sysconf(_SC_PAGESIZE)};
  }
  return std::min(available, control_group_free_bytes().value_or(available));
}

}  // namespace hybridgen
