// SPDX-License-Identifier: Apache-2.0
// Options as users write them, in Python or on a command line: values by name, and what is known
// about each name. A struct of options has a table (core/option_table.h) between it and these.
#pragma once

#include <concepts>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace hybridgen {

struct OptionValue;
using OptionMap = std::map<std::string, OptionValue>;

struct OptionValue {
  using List = std::vector<OptionValue>;
  /// What no option takes, as messages show it.
  struct Other {
    std::string text;
    friend bool operator==(const Other&, const Other&) = default;
  };

  OptionValue() = default;  ///< None
  OptionValue(bool flag) : value(flag) {}
  template <std::integral Whole>
    requires(!std::same_as<Whole, bool>)
  OptionValue(Whole number) : value(static_cast<std::int64_t>(number)) {}
  OptionValue(double number) : value(number) {}
  OptionValue(const char* text) : value(std::string(text)) {}
  OptionValue(std::string_view text) : value(std::string(text)) {}
  OptionValue(std::string text) : value(std::move(text)) {}
  OptionValue(List list) : value(std::move(list)) {}
  OptionValue(OptionMap map) : value(std::move(map)) {}
  OptionValue(Other other) : value(std::move(other)) {}

  bool is_none() const { return std::holds_alternative<std::monostate>(value); }
  /// The value if it is of this kind, else nullptr.
  template <typename Kind>
  const Kind* as() const {
    return std::get_if<Kind>(&value);
  }

  std::variant<std::monostate, bool, std::int64_t, double, std::string, List, OptionMap, Other>
      value;
};

bool operator==(const OptionValue& a, const OptionValue& b);
/// Whether two values mean the same: 0 and 0.0 do.
bool is_same(const OptionValue& a, const OptionValue& b);
/// As Python writes it: "'topk'", "True", "None", "0.5".
std::string text_of(const OptionValue& value);

/// What there is to know about an option.
struct OptionInfo {
  std::string name;
  std::string type;  ///< in Python: "int | float"
  std::string allowed;
  std::string meaning;
  OptionValue default_value;
};

}  // namespace hybridgen
