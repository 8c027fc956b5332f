// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/option_value.h"

#include <optional>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

std::optional<double> number_of(const OptionValue& value) {
  if (const auto* whole = value.as<std::int64_t>()) return static_cast<double>(*whole);
  const auto* real = value.as<double>();
  return real == nullptr ? std::nullopt : std::optional(*real);
}

struct Writer {
  std::string operator()(std::monostate) const { return "None"; }
  std::string operator()(bool flag) const { return flag ? "True" : "False"; }
  std::string operator()(std::int64_t number) const { return std::to_string(number); }
  std::string operator()(double number) const {
    const std::string text = message(number);
    const bool is_whole = text.find_first_not_of("-0123456789") == std::string::npos;
    return is_whole ? text + ".0" : text;
  }
  std::string operator()(const std::string& text) const { return message("'", text, "'"); }
  std::string operator()(const OptionValue::Other& other) const { return other.text; }
  std::string operator()(const OptionValue::List& list) const {
    std::string all;
    for (const OptionValue& each : list) all += (all.empty() ? "" : ", ") + text_of(each);
    return "(" + all + ")";
  }
  std::string operator()(const OptionMap& map) const {
    std::string all;
    for (const auto& [name, each] : map) {
      all += message(all.empty() ? "" : ", ", "'", name, "': ", text_of(each));
    }
    return "{" + all + "}";
  }
};

}  // namespace

bool operator==(const OptionValue& a, const OptionValue& b) { return a.value == b.value; }

bool is_same(const OptionValue& a, const OptionValue& b) {
  const auto x = number_of(a);
  const auto y = number_of(b);
  return x && y ? *x == *y : a == b;
}

std::string text_of(const OptionValue& value) { return std::visit(Writer{}, value.value); }

}  // namespace hybridgen
