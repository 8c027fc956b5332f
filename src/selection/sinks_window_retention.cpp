// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "selection/retention_base.h"

namespace hybridgen {

namespace {

constexpr std::string_view kName = "sinks and window retention";

class SinksWindowRetention final : public RetentionBase {
 public:
  SinksWindowRetention(const RetentionShape& shape, std::int64_t sinks, std::int64_t window)
      : RetentionBase(
            kName,
            shape,
            check_count(kName, "sinks", sinks, 0, "pass 0 for the window only"),
            check_count(kName, "window", window, 1, "pass 1 for the sinks and the newest token")),
        sinks_(sinks),
        window_(window) {}

  bool wants_weights() const override { return false; }

  std::span<const std::int32_t> keep_after_prefill(std::int64_t layer,
                                                   std::int64_t kv_head,
                                                   std::int64_t num_tokens,
                                                   std::span<const float> /*sums*/) override {
    const std::size_t set = index(layer, kv_head);
    check_prompt(num_tokens);
    Slots& kept = start(set, num_tokens);
    const std::int64_t count = std::min(budget(), num_tokens);
    const std::int64_t first = std::min(sinks_, count);
    for (std::int64_t slot = 0; slot < count; ++slot) {
      const std::int64_t position = slot < first ? slot : num_tokens - count + slot;
      kept.positions.push_back(static_cast<std::int32_t>(position));
    }
    return kept.positions;
  }

  std::int64_t replace(std::int64_t layer,
                       std::int64_t kv_head,
                       std::int64_t position,
                       const float* /*weights*/,
                       std::int64_t /*stride*/) override {
    Slots& kept = slots(index(layer, kv_head));
    check_position(kept, position);
    std::int64_t slot = kept.size();
    if (slot == budget()) {
      // The window is a ring whose oldest token lay in its first slot when it began to turn.
      const std::int64_t turned = position - std::max(kept.prompt, budget());
      slot = sinks_ + turned % window_;
    }
    kept.put(slot);
    return slot;
  }

 private:
  std::int64_t sinks_;
  std::int64_t window_;
};

}  // namespace

std::unique_ptr<RetentionPolicy> make_sinks_window_retention(const RetentionShape& shape,
                                                             std::int64_t sinks,
                                                             std::int64_t window) {
  return std::make_unique<SinksWindowRetention>(shape, sinks, window);
}

}  // namespace hybridgen
