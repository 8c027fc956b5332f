// SPDX-License-Identifier: Apache-2.0
#include "selection/retention_base.h"

#include <algorithm>
#include <limits>

#include "hybridgen/core/error.h"

namespace hybridgen {

namespace {

constexpr std::int64_t kMaxCount = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kGrowth = 1024;  // generated tokens that a not yet full cache has room for

void check_index(std::string_view operation,
                 std::string_view argument,
                 std::int64_t value,
                 std::int64_t end) {
  if (value < 0 || value >= end) {
    throw ConfigError(message("[",
                              operation,
                              "] ",
                              argument,
                              " is ",
                              value,
                              "; allowed: 0 to ",
                              end - 1,
                              "; pass one of the model's, or correct the shape"));
  }
}

}  // namespace

std::int64_t check_count(std::string_view operation,
                         std::string_view argument,
                         std::int64_t value,
                         std::int64_t least,
                         std::string_view way_out) {
  if (value < least || value > kMaxCount) {
    throw ConfigError(message("[",
                              operation,
                              "] ",
                              argument,
                              " is ",
                              value,
                              "; allowed: ",
                              least,
                              " to ",
                              kMaxCount,
                              "; ",
                              way_out));
  }
  return value;
}

void RetentionBase::Slots::put(std::int64_t slot) {
  const auto position = static_cast<std::int32_t>(next);
  if (slot == size()) {
    positions.push_back(position);
  } else {
    positions[static_cast<std::size_t>(slot)] = position;
  }
  ++next;
}

RetentionBase::RetentionBase(std::string_view name,
                             const RetentionShape& shape,
                             std::int64_t first_count,
                             std::int64_t second_count)
    : name_(name), shape_(shape), budget_(first_count + second_count) {
  constexpr std::string_view kWayOut = "pass the model's own";
  check_count(name, "number of layers", shape.num_layers, 1, kWayOut);
  check_count(name, "number of KV heads", shape.num_kv_heads, 1, kWayOut);
  check_count(name, "number of query heads per KV head", shape.query_heads_per_kv_head, 1, kWayOut);
  slots_.resize(static_cast<std::size_t>(shape.num_layers * shape.num_kv_heads));
}

std::span<const std::int32_t> RetentionBase::positions(std::int64_t layer,
                                                       std::int64_t kv_head) const {
  return slots_[index(layer, kv_head)].positions;
}

std::size_t RetentionBase::index(std::int64_t layer, std::int64_t kv_head) const {
  check_index(name_, "layer", layer, shape_.num_layers);
  check_index(name_, "KV head", kv_head, shape_.num_kv_heads);
  return static_cast<std::size_t>(layer * shape_.num_kv_heads + kv_head);
}

RetentionBase::Slots& RetentionBase::start(std::size_t set, std::int64_t num_tokens) {
  Slots& started = slots_[set];
  started.positions.clear();
  started.positions.reserve(static_cast<std::size_t>(room(num_tokens)));
  started.prompt = num_tokens;
  started.next = num_tokens;
  return started;
}

std::int64_t RetentionBase::room(std::int64_t num_tokens) const {
  return std::min(budget_, num_tokens + kGrowth);
}

void RetentionBase::check_prompt(std::int64_t num_tokens) const {
  check_count(name_, "number of prompt tokens", num_tokens, 0, "pass the length of the prompt");
}

void RetentionBase::check_position(const Slots& slots, std::int64_t position) const {
  if (position != slots.next || position > kMaxCount) {
    throw ConfigError(message("[",
                              name_,
                              "] position of the new token is ",
                              position,
                              "; allowed: ",
                              slots.next,
                              ", the one after the newest token, up to ",
                              kMaxCount,
                              "; call keep_after_prefill once and replace once per decode step"));
  }
}

}  // namespace hybridgen
