// SPDX-License-Identifier: Apache-2.0
// A struct of options as a table: one row for each option, which says everything about it once.
// Constructors from keyword arguments, checks and their messages, Python's option classes, flags of
// the command line, stubs and documents are read from it.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hybridgen/core/option_value.h"
#include "hybridgen/core/token_counts.h"

namespace hybridgen {

/// "[operation] name is VALUE; allowed: ...; why".
[[noreturn]] void refuse_option(std::string_view operation,
                                const OptionInfo& option,
                                const OptionValue& value,
                                std::string_view why = "");
/// Names what there is, and the nearest.
[[noreturn]] void refuse_unknown_option(std::string_view operation,
                                        std::string_view name,
                                        const std::vector<OptionInfo>& known);

/// A member of a struct of options, as its table knows it.
template <typename Options>
struct OptionRow {
  OptionInfo info;
  std::function<OptionValue(const Options&)> get;
  std::function<bool(Options&, const OptionValue&)> set;  ///< false: not allowed, nothing changed

  OptionRow means(std::string meaning) && {
    info.meaning = std::move(meaning);
    return std::move(*this);
  }
};

template <typename Options>
class OptionTable {
 public:
  explicit OptionTable(std::vector<OptionRow<Options>> rows) : rows_(std::move(rows)) {
    for (OptionRow<Options>& row : rows_) {
      if (row.info.default_value.is_none()) row.info.default_value = row.get(Options{});
    }
  }

  const std::vector<OptionRow<Options>>& rows() const { return rows_; }
  /// nullptr if there is none.
  const OptionRow<Options>* find(std::string_view name) const {
    for (const OptionRow<Options>& row : rows_) {
      if (row.info.name == name) return &row;
    }
    return nullptr;
  }
  std::vector<OptionInfo> described() const {
    std::vector<OptionInfo> infos;
    infos.reserve(rows_.size());
    for (const OptionRow<Options>& row : rows_) infos.push_back(row.info);
    return infos;
  }

  /// Sets what `given` names. ConfigError for an unknown name or a value that is not allowed.
  void assign(std::string_view operation, Options& options, const OptionMap& given) const {
    for (const auto& [name, value] : given) {
      if (find(name) == nullptr) refuse_unknown_option(operation, name, described());
    }
    for (const OptionRow<Options>& row : rows_) {
      const auto found = given.find(row.info.name);
      if (found == given.end() || row.set(options, found->second)) continue;
      refuse_option(operation, row.info, found->second);
    }
  }
  Options read(std::string_view operation, const OptionMap& given) const {
    Options options;
    assign(operation, options, given);
    return options;
  }
  OptionMap values(const Options& options) const {
    OptionMap all;
    for (const OptionRow<Options>& row : rows_) all.emplace(row.info.name, row.get(options));
    return all;
  }
  /// ConfigError for the first value that could not have been set.
  void check(std::string_view operation, const Options& options) const {
    Options scratch;
    for (const OptionRow<Options>& row : rows_) {
      const OptionValue value = row.get(options);
      if (!row.set(scratch, value)) refuse_option(operation, row.info, value);
    }
  }
  /// For values that are allowed by themselves, but not together.
  [[noreturn]] void refuse(std::string_view operation,
                           const Options& options,
                           std::string_view name,
                           std::string_view why) const {
    refuse_option(operation, find(name)->info, find(name)->get(options), why);
  }

 private:
  std::vector<OptionRow<Options>> rows_;
};

/// Rows of a struct that is a member of another one.
template <typename Outer, typename Inner>
OptionRow<Outer> lifted(const OptionRow<Inner>& row, Inner Outer::* member) {
  return {row.info,
          [get = row.get, member](const Outer& o) { return get(o.*member); },
          [set = row.set, member](Outer& o, const OptionValue& v) { return set(o.*member, v); }};
}

/// Whole numbers that are allowed.
struct Whole {
  std::int64_t low = 0;
  std::int64_t high = kMaxTokens;
  std::string text() const;  ///< "an integer >= 1", "an integer in [0, 7]"
};

/// Numbers that are allowed; NaN never is, infinity if `high` is infinite.
struct Interval {
  double low = 0.0;
  double high = std::numeric_limits<double>::max();
  bool low_open = false;
  bool high_open = false;
  std::string text() const;  ///< "a number in (0, 1]", "a number >= 0"
};
inline constexpr Interval kShare{0.0, 1.0};                             // [0, 1]
inline constexpr Interval kPositiveShare{0.0, 1.0, /*low_open=*/true};  // (0, 1]
inline constexpr Interval kInside{0.0, 1.0, /*low_open=*/true, /*high_open=*/true};
inline constexpr Interval kPositive{.low_open = true};  // finite

bool read_whole(const OptionValue& value, const Whole& allowed, std::int64_t& whole);
/// A whole number is welcome where a fraction is meant.
bool read_number(const OptionValue& value, const Interval& allowed, double& number);
/// The same, but not for a whole number, which there means a count.
bool read_fraction(const OptionValue& value, const Interval& allowed, double& fraction);
/// Bytes from 1 to 1 EiB: a number, or text such as "64GiB" or "1.5 GB".
bool read_bytes(const OptionValue& value, std::int64_t& bytes);
/// A count >= 1, a share in (0, 1), "all", "auto" (TokenCount::usual) or a list of both.
bool read_token_count(const OptionValue& value, TokenCount& count);
OptionValue value_of(const TokenCount& count);
/// A count >= `minimum`, or a share of the prompt, above 0 unless `minimum` is.
bool read_budget(const OptionValue& value, std::int64_t minimum, TokenBudget& budget);
OptionValue value_of(const TokenBudget& budget);

/// Type of an option that read_bytes reads.
inline constexpr const char* kBytesType = "int | str";

/// A row for a member that `read` sets, if it returns true, and `show` gives back.
template <typename Options, typename Value, typename Read, typename Show>
OptionRow<Options> option(std::string name,
                          Value Options::* member,
                          std::string type,
                          std::string allowed,
                          const Read& read,
                          const Show& show) {
  return {{std::move(name), std::move(type), std::move(allowed), {}, {}},
          [=](const Options& o) { return OptionValue(show(o.*member)); },
          [=](Options& o, const OptionValue& v) {
            Value value = o.*member;
            if (!read(v, value)) return false;
            o.*member = std::move(value);
            return true;
          }};
}

template <typename Options>
OptionRow<Options> option(std::string name, bool Options::* member) {
  const auto read = [](const OptionValue& v, bool& flag) {
    if (const auto* found = v.as<bool>()) return flag = *found, true;
    return false;
  };
  return option(std::move(name), member, "bool", "True or False", read, std::identity());
}

template <typename Options, std::integral Integer>
OptionRow<Options> option(std::string name, Integer Options::* member, Whole allowed) {
  const auto read = [=](const OptionValue& v, Integer& number) {
    std::int64_t whole = 0;
    if (!read_whole(v, allowed, whole)) return false;
    number = static_cast<Integer>(whole);
    return true;
  };
  return option(std::move(name), member, "int", allowed.text(), read, std::identity());
}

template <typename Options, std::floating_point Real>
OptionRow<Options> option(std::string name, Real Options::* member, Interval allowed) {
  // What a float holds of an allowed bound is allowed.
  Interval bounds = allowed;
  bounds.low = std::min(allowed.low, static_cast<double>(static_cast<Real>(allowed.low)));
  bounds.high = std::max(allowed.high, static_cast<double>(static_cast<Real>(allowed.high)));
  const auto read = [=](const OptionValue& v, Real& number) {
    double found = 0.0;
    if (!read_number(v, bounds, found)) return false;
    number = static_cast<Real>(found);
    return true;
  };
  const auto show = [](Real number) { return static_cast<double>(number); };
  return option(std::move(name), member, "float", allowed.text(), read, show);
}

template <typename Options>
OptionRow<Options> option(std::string name, std::string Options::* member, std::string allowed) {
  const auto read = [](const OptionValue& v, std::string& text) {
    const auto* found = v.as<std::string>();
    if (found == nullptr || found->empty()) return false;
    text = *found;
    return true;
  };
  return option(std::move(name), member, "str", std::move(allowed), read, std::identity());
}

template <typename Options>
OptionRow<Options> option(std::string name, TokenBudget Options::* member, std::int64_t minimum) {
  const auto read = [=](const OptionValue& v, TokenBudget& tokens) {
    return read_budget(v, minimum, tokens);
  };
  const std::string allowed = Whole{minimum}.text() + " (tokens) or " +
                              (minimum > 0 ? kPositiveShare : kShare).text() +
                              " (share of the prompt)";
  const auto show = [](const TokenBudget& tokens) { return value_of(tokens); };
  return option(std::move(name), member, "int | float", allowed, read, show);
}

template <typename Enum>
using Names = std::vector<std::pair<std::string, Enum>>;
std::string one_of(const std::vector<std::string>& names);  ///< "'a', 'b' or 'c'"

/// One of the names of an enumeration: the only place where they are read.
template <typename Options, typename Enum>
OptionRow<Options> option(std::string name,
                          Enum Options::* member,
                          const std::type_identity_t<Names<Enum>>& names) {
  std::vector<std::string> texts;
  for (const auto& [text, value] : names) texts.push_back(text);
  const auto read = [=](const OptionValue& v, Enum& chosen) {
    for (const auto& [text, value] : names) {
      if (v == OptionValue(text)) return chosen = value, true;
    }
    return false;
  };
  const auto show = [=](Enum chosen) {
    for (const auto& [text, value] : names) {
      if (value == chosen) return OptionValue(text);
    }
    return OptionValue(OptionValue::Other{"no name"});
  };
  return option(std::move(name), member, "str", one_of(texts), read, show);
}

/// The same row, with a word (or None) for one value of the member.
template <typename Options, typename Value>
OptionRow<Options> or_word(OptionRow<Options> row,
                           Value Options::* member,
                           const std::type_identity_t<Value>& meant,
                           const OptionValue& word) {
  const bool is_none = word.is_none();
  row.info.type = is_none ? row.info.type + " | None" : "str | " + row.info.type;
  row.info.allowed = text_of(word) + " or " + row.info.allowed;
  row.get = [=, get = row.get](const Options& o) { return o.*member == meant ? word : get(o); };
  row.set = [=, set = row.set](Options& o, const OptionValue& v) {
    if (v == word) return o.*member = meant, true;
    return set(o, v);
  };
  return row;
}

}  // namespace hybridgen
