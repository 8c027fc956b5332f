// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/token_counts.h"

#include <algorithm>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

void require(bool holds, const std::string& value) {
  if (!holds) {
    throw ConfigError(message("[token count] k is ",
                              value,
                              "; allowed: an integer in [1, 2^31 - 1], a share in (0, 1) or all"));
  }
}

}  // namespace

TokenCount TokenCount::count(std::int64_t tokens) {
  require(tokens >= 1 && tokens <= kMaxTokens, std::to_string(tokens));
  TokenCount result;
  result.count_ = tokens;
  return result;
}

TokenCount TokenCount::share(double share) {
  require(share > 0.0 && share < 1.0, message(share));
  TokenCount result;
  result.share_ = share;
  return result;
}

TokenCount TokenCount::larger_of(std::int64_t tokens, double share) {
  TokenCount result = count(tokens);
  result.share_ = TokenCount::share(share).share_;
  return result;
}

std::int64_t TokenCount::resolve(std::int64_t available) const {
  if (available <= 0) {
    return 0;
  }
  if (is_all()) {
    return available;
  }
  std::int64_t wanted = count_.value_or(1);
  if (share_) {
    wanted = std::max(wanted, static_cast<std::int64_t>(*share_ * static_cast<double>(available)));
  }
  return std::clamp<std::int64_t>(wanted, 1, available);
}

std::optional<std::int64_t> WindowSetting::resolve(std::int64_t prompt_tokens) const {
  if (count || !share) {
    return count;
  }
  if (*share == 0.0) {
    return 0;
  }
  return std::max(kFewestOfAShare,
                  static_cast<std::int64_t>(*share * static_cast<double>(prompt_tokens)));
}

std::string TokenCount::text() const {
  if (count_ && share_) {
    return message("max(", *count_, ", ", *share_, ")");
  }
  if (count_) {
    return std::to_string(*count_);
  }
  return share_ ? message(*share_) : "all";
}

std::int64_t TokenBudget::resolve(std::int64_t prompt_tokens, std::int64_t minimum) const {
  if (const auto* count = std::get_if<std::int64_t>(&tokens)) return *count;
  const double share = std::get<double>(tokens);
  return std::max(minimum, static_cast<std::int64_t>(share * static_cast<double>(prompt_tokens)));
}

}  // namespace hybridgen
