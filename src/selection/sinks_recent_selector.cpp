// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"

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
  SelectionStrategy strategy() const override { return SelectionStrategy::kPreQkt; }

  void plan(std::int64_t /*layer*/,
            std::int64_t num_offloaded,
            std::span<std::int32_t> positions) override {
    const auto k = static_cast<std::int64_t>(positions.size());
    if (k > num_offloaded) {
      throw ConfigError(message("[sinks_recent] k is ",
                                k,
                                "; allowed: 0 to n_c (n_c is ",
                                num_offloaded,
                                "); pass min(k, n_c)"));
    }
    const std::int64_t first = std::min(sinks_, k);
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t position = i < first ? i : num_offloaded - k + i;
      positions[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(position);
    }
  }

 private:
  std::int64_t sinks_;
};

}  // namespace

std::unique_ptr<TokenSelector> make_sinks_recent_selector(std::int64_t sinks) {
  return std::make_unique<SinksRecentSelector>(sinks);
}

}  // namespace hybridgen
