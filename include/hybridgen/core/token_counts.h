// SPDX-License-Identifier: Apache-2.0
// Numbers of tokens that are known only with a request: counts, and shares of something.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <variant>

namespace hybridgen {

/// Positions have 32 bits.
inline constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();

/// How many offloaded tokens take part: a count, a share of the offloaded tokens, the larger of
/// both, or all.
class TokenCount {
 public:
  static TokenCount all() { return {}; }
  static TokenCount count(std::int64_t tokens);                    ///< ConfigError unless >= 1
  static TokenCount share(double share);                           ///< ConfigError unless in (0, 1)
  static TokenCount larger_of(std::int64_t tokens, double share);  ///< the same errors
  /// The larger of 256 tokens and an eighth: what keeps close to full attention's answers.
  static TokenCount usual() { return larger_of(256, 0.125); }

  /// Tokens out of `available`: at least 1, at most `available`; 0 if nothing is available.
  std::int64_t resolve(std::int64_t available) const;
  std::string text() const;  ///< "all", "128", "0.05" or "max(256, 0.125)"
  bool is_all() const { return !count_ && !share_; }
  std::optional<std::int64_t> as_count() const { return count_; }
  std::optional<double> as_share() const { return share_; }
  friend bool operator==(const TokenCount&, const TokenCount&) = default;

 private:
  std::optional<std::int64_t> count_;
  std::optional<double> share_;
};

/// Tokens of a request that stay on the device: a count, a share of the prompt, or as many as fit.
struct WindowSetting {
  /// A share above 0 means no fewer tokens: a tenth of a short prompt is too little to answer by.
  static constexpr std::int64_t kFewestOfAShare = 256;

  std::optional<std::int64_t> count;  ///< >= 0; the newest token is always resident
  std::optional<double> share;        ///< in [0, 1]

  /// Tokens for a prompt of `prompt_tokens`, maybe more than it has; none: as many as fit.
  std::optional<std::int64_t> resolve(std::int64_t prompt_tokens) const;
  friend bool operator==(const WindowSetting&, const WindowSetting&) = default;
};

/// Tokens that are kept of a request: a count, or a share of its prompt in [0, 1].
struct TokenBudget {
  std::variant<std::int64_t, double> tokens;

  /// Tokens for a prompt of `prompt_tokens`; of a share at least `minimum`.
  std::int64_t resolve(std::int64_t prompt_tokens, std::int64_t minimum) const;
};

}  // namespace hybridgen
