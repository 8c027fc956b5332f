// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
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
  std::string_view name() const override { return "topk"; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPostQkt; }

  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& scratch) const override {
    require_room(name(), logits, positions, values);
    if (positions.empty()) return;
    if (!kernels::top_k(logits.data(),
                        static_cast<std::int64_t>(logits.size()),
                        static_cast<std::int64_t>(positions.size()),
                        positions.data(),
                        values.data(),
                        scratch)) {
      throw NumericError(message("[topk] a logit of layer ",
                                 layer,
                                 ", query head ",
                                 query_head,
                                 " is NaN; allowed: numbers; check the checkpoint, or run it in "
                                 "float32 if activations overflow"));
    }
  }
};

}  // namespace

std::unique_ptr<TokenSelector> make_top_k_selector() { return std::make_unique<TopKSelector>(); }

}  // namespace hybridgen
