// SPDX-License-Identifier: Apache-2.0
#include "core/option_table.h"

#include <cctype>
#include <charconv>
#include <cmath>

#include "core/names.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kMaxBytes = std::int64_t{1} << 60;
constexpr std::size_t kMaxShown = 300;

bool is_digit(char letter) { return letter >= '0' && letter <= '9'; }

// Bytes of "k", "mi", "gb", "tib", ...; 0 if it is no unit.
double unit_of(std::string_view unit) {
  if (unit.ends_with('b')) unit.remove_suffix(1);
  if (unit.empty()) return 1.0;
  const std::size_t power = std::string_view("kmgt").find(unit[0]);
  const bool is_binary = unit.substr(1) == "i";
  if (power == std::string_view::npos || (unit.size() > 1 && !is_binary)) return 0.0;
  return std::pow(is_binary ? 1024.0 : 1000.0, static_cast<double>(power + 1));
}

// "1.5 GiB": the number, then its unit; 0 if it is something else.
double size_of_text(const std::string& text) {
  std::string all;
  for (const char letter : text) {
    if (letter != ' ') all += static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  double number = 0.0;
  const char* end = all.data() + all.size();
  const auto [rest, error] = std::from_chars(all.data(), end, number, std::chars_format::fixed);
  const bool is_number = error == std::errc() && is_digit(all[0]) && is_digit(rest[-1]);
  return is_number ? number * unit_of({rest, end}) : 0.0;
}

}  // namespace

void refuse_option(std::string_view operation,
                   const OptionInfo& option,
                   const OptionValue& value,
                   std::string_view why) {
  std::string shown = text_of(value);
  if (shown.size() > kMaxShown) shown = shown.substr(0, kMaxShown) + "...";
  const std::string start = message("[", operation, "] ", option.name, " is ", shown);
  const std::string reason = why.empty() ? "" : message("; ", why);
  throw ConfigError(message(start, "; allowed: ", option.allowed, reason));
}

void refuse_unknown_option(std::string_view operation,
                           std::string_view name,
                           const std::vector<OptionInfo>& known) {
  std::vector<std::string> names;
  std::string allowed;
  for (const OptionInfo& each : known) {
    allowed += (names.empty() ? "" : ", ") + each.name;
    names.push_back(each.name);
  }
  name = name.substr(0, kMaxShown);
  const std::string nearest = nearest_name(name, names);
  const std::string meant = nearest.empty() ? "" : message("; did you mean '", nearest, "'?");
  const std::string start = message("[", operation, "] option '", name, "' is not known");
  throw ConfigError(message(start, "; allowed: ", names.empty() ? "none" : allowed, meant));
}

std::string Whole::text() const {
  // The largest count is no news to who gave too small a number.
  return high >= kMaxTokens ? message("an integer >= ", low)
                            : message("an integer in [", low, ", ", high, "]");
}

std::string Interval::text() const {
  if (high >= std::numeric_limits<double>::max()) {
    return message("a number ", low_open ? "> " : ">= ", low);
  }
  return message("a number in ", low_open ? "(" : "[", low, ", ", high, high_open ? ")" : "]");
}

std::string one_of(const std::vector<std::string>& names) {
  std::string all;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const bool is_last = i + 1 == names.size();
    all += message(i == 0 ? "" : (is_last ? " or " : ", "), "'", names[i], "'");
  }
  return all;
}

bool read_whole(const OptionValue& value, const Whole& allowed, std::int64_t& whole) {
  const auto* found = value.as<std::int64_t>();
  if (found == nullptr || *found < allowed.low || *found > allowed.high) return false;
  whole = *found;
  return true;
}

bool read_number(const OptionValue& value, const Interval& allowed, double& number) {
  const auto* whole = value.as<std::int64_t>();
  const auto* real = value.as<double>();
  if (whole == nullptr && real == nullptr) return false;
  const double x = real != nullptr ? *real : static_cast<double>(*whole);
  const bool is_high_enough = allowed.low_open ? x > allowed.low : x >= allowed.low;
  const bool is_low_enough = allowed.high_open ? x < allowed.high : x <= allowed.high;
  if (!is_high_enough || !is_low_enough) return false;  // a NaN is neither
  number = x;
  return true;
}

bool read_fraction(const OptionValue& value, const Interval& allowed, double& fraction) {
  return value.as<double>() != nullptr && read_number(value, allowed, fraction);
}

bool read_bytes(const OptionValue& value, std::int64_t& bytes) {
  const auto* text = value.as<std::string>();
  if (text == nullptr) return read_whole(value, {1, kMaxBytes}, bytes);
  const double size = size_of_text(*text);
  if (!(size >= 1.0 && size <= static_cast<double>(kMaxBytes))) return false;
  bytes = static_cast<std::int64_t>(size);
  return true;
}

bool read_token_count(const OptionValue& value, TokenCount& count) {
  std::int64_t tokens = 0;
  double share = 0.0;
  const auto* both = value.as<OptionValue::List>();
  if (value == OptionValue("all")) {
    count = TokenCount::all();
  } else if (value == OptionValue("auto")) {
    count = TokenCount::usual();
  } else if (both != nullptr && both->size() == 2 && read_whole((*both)[0], {1}, tokens) &&
             read_number((*both)[1], kInside, share)) {
    count = TokenCount::larger_of(tokens, share);
  } else if (read_whole(value, {1}, tokens)) {
    count = TokenCount::count(tokens);
  } else if (read_fraction(value, kInside, share)) {
    count = TokenCount::share(share);
  } else {
    return false;
  }
  return true;
}

OptionValue value_of(const TokenCount& count) {
  const std::optional<std::int64_t> tokens = count.as_count();
  const std::optional<double> share = count.as_share();
  if (tokens && share) return OptionValue::List{*tokens, *share};
  if (tokens) return *tokens;
  return share ? OptionValue(*share) : OptionValue("all");
}

bool read_budget(const OptionValue& value, std::int64_t minimum, TokenBudget& budget) {
  std::int64_t tokens = 0;
  double share = 0.0;
  if (read_whole(value, {minimum}, tokens)) {
    budget.tokens = tokens;
  } else if (read_fraction(value, minimum > 0 ? kPositiveShare : kShare, share)) {
    budget.tokens = share;
  } else {
    return false;
  }
  return true;
}

OptionValue value_of(const TokenBudget& budget) {
  return std::visit([](auto tokens) { return OptionValue(tokens); }, budget.tokens);
}

}  // namespace hybridgen
