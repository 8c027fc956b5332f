// SPDX-License-Identifier: Apache-2.0
// What all retention policies share: the tokens in the slots of every (layer, KV head), and the
// checks of what callers pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "hybridgen/selection/retention_policy.h"

namespace hybridgen {

class RetentionBase : public RetentionPolicy {
 public:
  std::int64_t budget() const final { return budget_; }
  std::span<const std::int32_t> positions(std::int64_t layer, std::int64_t kv_head) const final;

 protected:
  struct Slots {
    std::vector<std::int32_t> positions;
    std::int64_t prompt = 0;  ///< tokens the prompt had
    std::int64_t next = 0;    ///< position of the token that comes next

    std::int64_t size() const { return static_cast<std::int64_t>(positions.size()); }
    /// Puts the next token into `slot`, which is a used one or size().
    void put(std::int64_t slot);
  };

  /// `name` begins every message and must outlive the object, as a literal does. The budget is the
  /// sum of two counts that passed check_count.
  RetentionBase(std::string_view name,
                const RetentionShape& shape,
                std::int64_t first_count,
                std::int64_t second_count);

  std::string_view name() const { return name_; }
  const RetentionShape& shape() const { return shape_; }

  /// Place of a (layer, KV head) in arrays of one entry each.
  std::size_t index(std::int64_t layer, std::int64_t kv_head) const;
  std::size_t num_sets() const { return slots_.size(); }
  Slots& slots(std::size_t set) { return slots_[set]; }
  const Slots& slots(std::size_t set) const { return slots_[set]; }

  /// Empties the slots and makes room, so that a full cache never allocates.
  Slots& start(std::size_t set, std::int64_t num_tokens);
  /// Slots to reserve: the budget, but a budget meant as "all" takes no memory before its tokens.
  std::int64_t room(std::int64_t num_tokens) const;

  void check_prompt(std::int64_t num_tokens) const;
  /// The new token must be the one that comes next.
  void check_position(const Slots& slots, std::int64_t position) const;

 private:
  std::string_view name_;
  RetentionShape shape_;
  std::int64_t budget_;
  std::vector<Slots> slots_;
};

/// `value`, or ConfigError unless it is from `least` to the largest position.
std::int64_t check_count(std::string_view operation,
                         std::string_view argument,
                         std::int64_t value,
                         std::int64_t least,
                         std::string_view way_out);

}  // namespace hybridgen
