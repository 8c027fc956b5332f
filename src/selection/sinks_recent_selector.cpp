// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "selection/selector_checks.h"

namespace hybridgen {

namespace {

class SinksRecentSelector final : public TokenSelector {
 public:
  explicit SinksRecentSelector(std::int64_t sinks) : sinks_(sinks) {
    if (sinks < 0) {
      throw ConfigError(message(
          "[sinks_recent] sinks is ", sinks, "; allowed: >= 0; pass 0 for recent tokens only"));
    }
  }

  std::string_view name() const override { return "sinks_recent"; }
  bool reads_keys() const override { return false; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPreQkt; }
  PartState state() const override { return {}; }

  std::span<const std::int32_t> plan(const PlanContext& context,
                                     std::vector<std::int32_t>& scratch) const override {
    const std::int64_t k = context.k;
    require_k(name(), context);
    if (scratch.size() < static_cast<std::size_t>(k)) scratch.resize(static_cast<std::size_t>(k));
    const std::int64_t first = std::min(sinks_, k);
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t position = i < first ? i : context.num_offloaded - k + i;
      scratch[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(position);
    }
    return std::span(scratch).first(static_cast<std::size_t>(k));
  }

 private:
  std::int64_t sinks_;
};

}  // namespace

std::unique_ptr<TokenSelector> make_sinks_recent_selector(std::int64_t sinks) {
  return std::make_unique<SinksRecentSelector>(sinks);
}

}  // namespace hybridgen
