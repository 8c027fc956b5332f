// SPDX-License-Identifier: Apache-2.0
// The fewest offloaded tokens that have a given share of a query head's softmax among them.
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen {

namespace {

class MassSelector final : public TokenSelector {
 public:
  MassSelector(const SelectorShape& shape, double mass)
      : mass_(mass), largest_(make_top_k_selector(shape)) {
    if (!(mass > 0.0 && mass < 1.0)) {
      throw ConfigError(message("[mass selector] mass is ",
                                mass,
                                "; allowed: a number between 0 and 1, both excluded; for all "
                                "tokens choose by \"topk\" with k \"all\""));
    }
  }

  std::string_view name() const override { return "mass"; }
  bool reads_keys() const override { return false; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPostQkt; }
  PartState state() const override { return {}; }

  bool says_how_many() const override { return true; }
  std::int64_t how_many(std::span<const float> weights,
                        std::int64_t most,
                        std::vector<float>& scratch) const override {
    return kernels::count_mass(
        weights.data(), static_cast<std::int64_t>(weights.size()), mass_, most, scratch);
  }

  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& scratch) const override {
    largest_->select(layer, query_head, logits, positions, values, scratch);
  }

 private:
  double mass_;
  std::unique_ptr<TokenSelector> largest_;
};

}  // namespace

std::unique_ptr<TokenSelector> make_mass_selector(const SelectorShape& shape, double mass) {
  return std::make_unique<MassSelector>(shape, mass);
}

}  // namespace hybridgen
