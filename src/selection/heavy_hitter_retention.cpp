// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <memory>
#include <string_view>

#include "selection/scored_retention.h"

namespace hybridgen {

namespace {

constexpr std::string_view kName = "heavy hitter retention";

class HeavyHitterRetention final : public ScoredRetention {
 public:
  HeavyHitterRetention(const RetentionShape& shape, std::int64_t heavy, std::int64_t recent)
      : ScoredRetention(
            kName,
            shape,
            check_count(kName, "heavy", heavy, 0, "pass 0 for recent tokens only"),
            check_count(kName, "recent", recent, 1, "the newest token is always kept")) {}
};

}  // namespace

std::unique_ptr<RetentionPolicy> make_heavy_hitter_retention(const RetentionShape& shape,
                                                             std::int64_t heavy,
                                                             std::int64_t recent) {
  return std::make_unique<HeavyHitterRetention>(shape, heavy, recent);
}

}  // namespace hybridgen
