// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "kernels/cpu_kernels.h"
#include "selection/selector_checks.h"

namespace hybridgen {

namespace {

class TopKSelector final : public TokenSelector {
 public:
  explicit TopKSelector(const SelectorShape& shape)
      : num_heads_(static_cast<std::size_t>(shape.num_kv_heads * shape.query_heads_per_kv_head)),
        thresholds_(static_cast<std::size_t>(shape.num_layers) * num_heads_,
                    std::numeric_limits<float>::quiet_NaN()) {}

  std::string_view name() const override { return "topk"; }
  bool reads_keys() const override { return false; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPostQkt; }
  PartState state() const override { return {}; }  // thresholds change no result

  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& scratch) const override {
    require_room(name(), logits, positions, values);
    if (positions.empty()) return;
    float& threshold = thresholds_[static_cast<std::size_t>(layer) * num_heads_ +
                                   static_cast<std::size_t>(query_head)];
    if (!kernels::top_k(logits.data(),
                        static_cast<std::int64_t>(logits.size()),
                        static_cast<std::int64_t>(positions.size()),
                        positions.data(),
                        values.data(),
                        scratch,
                        &threshold)) {
      throw NumericError(message("[topk] a logit of layer ",
                                 layer,
                                 ", query head ",
                                 query_head,
                                 " is NaN; allowed: numbers; check the checkpoint, or run it in "
                                 "float32 if activations overflow"));
    }
  }

 private:
  std::size_t num_heads_;
  /// [L, H] where the step before found its tokens. Saves time and changes no result; a head's
  /// element is touched by one task at a time.
  mutable std::vector<float> thresholds_;
};

}  // namespace

std::unique_ptr<TokenSelector> make_top_k_selector(const SelectorShape& shape) {
  return std::make_unique<TopKSelector>(shape);
}

}  // namespace hybridgen
