// SPDX-License-Identifier: Apache-2.0
#include "memory/memory_budget.h"

#include <algorithm>
#include <utility>

#include "hybridgen/core/error.h"

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
  if (budget_ != nullptr) budget_->give_back(bytes);
  bytes_ -= bytes;
}

void Reservation::release() noexcept {
  if (budget_ != nullptr) budget_->give_back(bytes_);
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

MemoryBudget::MemoryBudget(TierKind tier,
                           std::int64_t capacity_bytes,
                           std::string setting,
                           ProcessMemory& process,
                           bool is_everyones)
    : MemoryBudget(tier, capacity_bytes, std::move(setting)) {
  process_ = &process;
  is_everyones_ = is_everyones;
}

std::int64_t MemoryBudget::process_bytes() const {
  return process_ == nullptr ? used_bytes() : process_->used(tier_);
}

std::int64_t MemoryBudget::free_bytes() const {
  return process_ == nullptr ? capacity_bytes_ - used_bytes() : process_->free(claim());
}

void MemoryBudget::give_back(std::int64_t bytes) noexcept {
  used_bytes_ -= bytes;
  if (process_ != nullptr) process_->give_back(tier_, bytes);
}

Reservation MemoryBudget::reserve(std::int64_t bytes, const std::string& operation) {
  if (bytes < 0) {
    throw ConfigError(
        message("[", operation, "] bytes is ", bytes, "; allowed: >= 0; pass a size in bytes"));
  }
  const auto shown = [](std::int64_t size) { return human_bytes(static_cast<double>(size)); };
  const std::int64_t free = process_ == nullptr ? free_bytes() : process_->take(claim(), bytes);
  if (bytes > free) {
    const std::int64_t others = process_bytes() - used_bytes();
    const bool is_machines = free + (is_everyones_ ? others : 0) + used_bytes() < capacity_bytes_;
    throw OutOfMemoryError(
        message("[",
                operation,
                "] wants ",
                shown(bytes),
                " (",
                bytes,
                " bytes) of the ",
                name_of(tier_),
                " tier; allowed: at most the ",
                shown(free),
                " free of ",
                shown(capacity_bytes_),
                others > 0 ? message(", of which other engines hold ", shown(others)) : "",
                is_machines ? "; the machine has no more memory, free some" : "; raise " + setting_,
                others > 0 ? ", close other engines," : "",
                " or run fewer or shorter requests at a time"));
  }
  used_bytes_ += bytes;
  return Reservation(this, bytes);
}

}  // namespace hybridgen
