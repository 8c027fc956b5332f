// SPDX-License-Identifier: Apache-2.0
#include "methods/method_config.h"

#include <algorithm>
#include <optional>

#include "core/names.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

// A whole number is welcome where a fraction is meant.
bool fits(const MethodValue& value, const MethodValue& like) {
  if (value.index() == like.index()) {
    return true;
  }
  const bool is_number =
      std::holds_alternative<std::int64_t>(value) || std::holds_alternative<double>(value);
  return is_number &&
         (std::holds_alternative<double>(like) || std::holds_alternative<std::int64_t>(like));
}

}  // namespace

std::string text_of(const MethodValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    return "'" + *text + "'";
  }
  if (const auto* flag = std::get_if<bool>(&value)) {
    return *flag ? "True" : "False";
  }
  if (const auto* number = std::get_if<double>(&value)) {
    return message(*number);
  }
  return std::to_string(std::get<std::int64_t>(value));
}

bool is_same(const MethodValue& a, const MethodValue& b) {
  const auto number = [](const MethodValue& value) -> std::optional<double> {
    if (const auto* whole = std::get_if<std::int64_t>(&value)) {
      return static_cast<double>(*whole);
    }
    const auto* real = std::get_if<double>(&value);
    return real == nullptr ? std::nullopt : std::optional(*real);
  };
  const auto x = number(a);
  const auto y = number(b);
  return x && y ? *x == *y : a == b;
}

MethodConfig::MethodConfig(const MethodInfo& info, const EngineOptions& options)
    : info_(info), options_(options) {
  std::vector<std::string> names;
  names.reserve(info.tunables.size());
  for (const Tunable& known : info.tunables) {
    names.push_back(known.name);
  }
  for (const auto& [name, given] : options.method_config) {
    const auto found = std::ranges::find(info.tunables, name, &Tunable::name);
    if (found == info.tunables.end()) {
      std::string allowed;
      for (const std::string& known : names) {
        allowed += (allowed.empty() ? "" : ", ") + known;
      }
      const std::string nearest = nearest_name(name, names);
      throw ConfigError(message("[method ",
                                info.name,
                                "] option '",
                                name,
                                "' is not known; allowed: ",
                                allowed.empty() ? "none" : allowed,
                                nearest.empty() ? "" : "; did you mean '" + nearest + "'?"));
    }
    if (!fits(given, found->default_value)) {
      refuse(name, "");
    }
  }
}

const Tunable& MethodConfig::tunable(std::string_view name) const {
  const auto found = std::ranges::find(info_.tunables, name, &Tunable::name);
  if (found == info_.tunables.end()) {
    throw std::logic_error(message("method ", info_.name, " has no option ", name));
  }
  return *found;
}

const MethodValue& MethodConfig::value(std::string_view name) const {
  const auto given = options_.method_config.find(std::string(name));
  return given == options_.method_config.end() ? tunable(name).default_value : given->second;
}

void MethodConfig::refuse(std::string_view name, const std::string& why) const {
  throw ConfigError(message("[method ",
                            info_.name,
                            "] ",
                            name,
                            " is ",
                            text_of(value(name)),
                            "; allowed: ",
                            tunable(name).allowed,
                            why.empty() ? "" : "; " + why));
}

bool MethodConfig::flag(std::string_view name) const {
  const auto* flag = std::get_if<bool>(&value(name));
  if (flag == nullptr) {
    refuse(name, "");
  }
  return *flag;
}

std::int64_t MethodConfig::integer(std::string_view name,
                                   std::int64_t minimum,
                                   std::int64_t maximum) const {
  const auto* number = std::get_if<std::int64_t>(&value(name));
  if (number == nullptr || *number < minimum) {
    refuse(name, "");
  }
  if (*number > maximum) {
    refuse(name, message("at most ", maximum));
  }
  return *number;
}

double MethodConfig::number(std::string_view name,
                            double minimum,
                            double maximum,
                            bool open) const {
  const MethodValue& given = value(name);
  const auto* whole = std::get_if<std::int64_t>(&given);
  const auto* number = std::get_if<double>(&given);
  if (whole == nullptr && number == nullptr) {
    refuse(name, "");
  }
  const double x = number != nullptr ? *number : static_cast<double>(*whole);
  if (!(x >= minimum && x <= maximum) || (open && x == minimum)) {  // a NaN fails too
    refuse(name, "");
  }
  return x;
}

std::string MethodConfig::choice(std::string_view name, std::string_view allowed) const {
  const auto* text = std::get_if<std::string>(&value(name));
  if (text == nullptr) {
    refuse(name, "");
  }
  std::size_t begin = 0;
  while (begin <= allowed.size()) {
    const std::size_t end = std::min(allowed.find(", ", begin), allowed.size());
    if (allowed.substr(begin, end - begin) == *text) {
      return *text;
    }
    begin = end + 2;
  }
  refuse(name, "");
}

TokenCount MethodConfig::tokens(std::string_view name) const {
  if (const auto* whole = std::get_if<std::int64_t>(&value(name))) {
    if (*whole < 1) {
      refuse(name, "");
    }
    return TokenCount::count(*whole);
  }
  const double share = number(name, 0.0, 1.0, /*open=*/true);
  return share == 1.0 ? TokenCount::all() : TokenCount::share(share);
}

std::function<std::int64_t(std::int64_t)> MethodConfig::budget(std::string_view name,
                                                               std::int64_t minimum) const {
  if (const auto* whole = std::get_if<std::int64_t>(&value(name))) {
    if (*whole < minimum || *whole > kMaxTokens) {
      refuse(name, *whole < minimum ? "" : message("at most ", kMaxTokens));
    }
    return [tokens = *whole](std::int64_t) { return tokens; };
  }
  const double share = number(name, 0.0, 1.0, /*open=*/minimum > 0);
  return [share, minimum](std::int64_t prompt_tokens) {
    return std::max(minimum, static_cast<std::int64_t>(share * static_cast<double>(prompt_tokens)));
  };
}

}  // namespace hybridgen
