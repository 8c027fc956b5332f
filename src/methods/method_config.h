// SPDX-License-Identifier: Apache-2.0
// Reads a method's own options: every value a user gave is checked against the method's table.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "hybridgen/methods/method.h"

namespace hybridgen {

class MethodConfig {
 public:
  static constexpr std::int64_t kMaxTokens =
      (std::int64_t{1} << 31) - 1;  ///< positions are 32 bits

  /// ConfigError for an option that the table lacks (with the nearest) or of another kind of value.
  MethodConfig(const MethodInfo& info, const EngineOptions& options);

  bool flag(std::string_view name) const;
  /// An integer in [minimum, maximum]; ConfigError otherwise.
  std::int64_t integer(std::string_view name,
                       std::int64_t minimum,
                       std::int64_t maximum = kMaxTokens) const;
  /// A number in [minimum, maximum], or above minimum if `open`; ConfigError otherwise.
  double number(std::string_view name, double minimum, double maximum, bool open = false) const;
  /// One of the names in `allowed`, separated by ", "; ConfigError otherwise.
  std::string choice(std::string_view name, std::string_view allowed) const;
  /// An integer >= minimum is a number of tokens, a float in (0, 1] a share.
  TokenCount tokens(std::string_view name) const;
  /// Like tokens, with zero allowed: resolves against `prompt_tokens` by truncation.
  std::function<std::int64_t(std::int64_t)> budget(std::string_view name,
                                                   std::int64_t minimum) const;
  /// ConfigError naming the method, the option, its value, what is allowed and the way out.
  [[noreturn]] void refuse(std::string_view name, const std::string& why) const;

 private:
  const MethodValue& value(std::string_view name) const;
  const Tunable& tunable(std::string_view name) const;

  const MethodInfo& info_;
  const EngineOptions& options_;
};

std::string text_of(const MethodValue& value);

/// Whether two values of an option mean the same: 0 and 0.0 do.
bool is_same(const MethodValue& a, const MethodValue& b);

}  // namespace hybridgen
