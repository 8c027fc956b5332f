// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/scheduler_options.h"

#include <cmath>
#include <limits>

#include "core/option_tables.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

using S = SchedulerOptions;
using Row = OptionRow<S>;

// Token positions have 32 bits; with these two bounds no product of the scheduler leaves 64.
constexpr std::int64_t kMaxTerm = 1'000'000;
constexpr Interval kBelowOne{0.0, 1.0, /*low_open=*/false, /*high_open=*/true};
constexpr Interval kFactor{0.0, 1e6};

// The fraction that a decimal such as 1.2 stands for: the last convergent with small terms.
Rational nearest_fraction(double x) {
  Rational before{1, 0};
  Rational last{static_cast<std::int64_t>(std::floor(x)), 1};
  double rest = x - std::floor(x);
  while (rest > 1e-9) {
    const double inverse = 1.0 / rest;
    const double whole = std::floor(inverse);
    rest = inverse - whole;
    const double numerator =
        whole * static_cast<double>(last.numerator) + static_cast<double>(before.numerator);
    const double denominator =
        whole * static_cast<double>(last.denominator) + static_cast<double>(before.denominator);
    if (numerator > kMaxTerm || denominator > kMaxTerm) break;
    before = std::exchange(
        last,
        Rational{static_cast<std::int64_t>(numerator), static_cast<std::int64_t>(denominator)});
  }
  return last;
}

bool has_valid_terms(const Rational& factor) {
  return factor.numerator >= 1 && factor.numerator <= kMaxTerm && factor.denominator >= 1 &&
         factor.denominator <= kMaxTerm;
}

// A decimal, or a list of numerator and denominator.
bool read_rational(const OptionValue& value, Rational& factor) {
  Rational found;
  double decimal = 0.0;
  const auto* terms = value.as<OptionValue::List>();
  if (terms != nullptr && terms->size() == 2) {
    if (!read_whole((*terms)[0], {1}, found.numerator)) return false;
    if (!read_whole((*terms)[1], {1}, found.denominator)) return false;
  } else if (read_number(value, kFactor, decimal)) {
    found = nearest_fraction(decimal);
  }
  const bool is_read = terms != nullptr || decimal > 0.0;
  if (is_read && has_valid_terms(found)) return factor = found, true;
  return false;
}

OptionValue value_of(const Rational& factor) {
  if (has_valid_terms(factor)) {
    return static_cast<double>(factor.numerator) / static_cast<double>(factor.denominator);
  }
  return OptionValue::Other{message(factor.numerator, "/", factor.denominator)};
}

// A factor of at least 1, or below it.
Row factor(std::string name, Rational S::* member, bool grows) {
  const auto read = [grows](const OptionValue& v, Rational& found) {
    return read_rational(v, found) && (found.numerator >= found.denominator) == grows;
  };
  const std::string allowed = (grows ? Interval{1.0, kFactor.high} : kBelowOne).text();
  return option(std::move(name), member, "float", allowed, read, [](const Rational& found) {
    return value_of(found);
  });
}

bool read_k_max(const OptionValue& value, std::optional<std::int64_t>& k_max) {
  std::int64_t found = 0;
  if (!value.is_none() && !read_whole(value, {1}, found)) return false;
  k_max = value.is_none() ? std::nullopt : std::optional(found);
  return true;
}

OptionValue value_of(const std::optional<std::int64_t>& k_max) {
  return k_max ? OptionValue(*k_max) : OptionValue();
}

// "auto" is 128 without a profile of the model.
Row k_min_option() {
  Row row = or_word(option("k_min", &S::k_min, Whole{1}), &S::k_min, S{}.k_min, "auto");
  row.get = [](const S& o) { return OptionValue(o.k_min); };
  row.info.default_value = "auto";
  return std::move(row).means(
      "First and smallest K of a steered request; \"auto\" is the value in ``k_min.json``, or "
      "128 without one.");
}

}  // namespace

const OptionTable<SchedulerOptions>& scheduler_table() {
  static const OptionTable<S> table(
      {k_min_option(),
       option("k_max",
              &S::k_max,
              "int | None",
              "an integer >= k_min, or None",
              read_k_max,
              [](const std::optional<std::int64_t>& k_max) { return value_of(k_max); })
           .means("Largest K of a steered request; None: all offloaded tokens."),
       option("adapt_k", &S::adapt_k).means("Whether a steered request may change K."),
       option("adapt_strategy", &S::adapt_strategy).means("Whether it may change the strategy."),
       option("strategy",
              &S::initial_strategy,
              {{"post", SelectionStrategy::kPostQkt}, {"pre", SelectionStrategy::kPreQkt}})
           .means("What a steered request starts with."),
       option("return_to_post",
              &S::return_to_post,
              {{"never", ReturnToPost::kNever}, {"estimate", ReturnToPost::kEstimate}})
           .means("Whether a request that chooses before may choose after again, once the scan of "
                  "all keys is estimated to fit beside the device's work."),
       factor("grow", &S::grow, true).means("Factor of one rise of K."),
       factor("shrink", &S::shrink, false).means("Factor of one fall of K."),
       option("interval", &S::interval, Whole{1}).means("Decode steps per decision."),
       option("warmup", &S::warmup, Whole{})
           .means("Steps without measuring after the prompt and after each change of strategy."),
       option("deadband", &S::deadband, kFactor)
           .means("Nothing changes while the host is slower than the device by less than this "
                  "share."),
       option("k_max_ratio", &S::k_max_ratio, kPositiveShare)
           .means("Largest share of the offloaded tokens that K may be; ``k_min`` wins."),
       option("return_margin", &S::return_margin, kBelowOne)
           .means("Share of the device's time that a scan must leave for a return."),
       option("return_hold", &S::return_hold, Whole{1})
           .means("Decisions in a row that must estimate so.")});
  return table;
}

void SchedulerOptions::validate() const {
  scheduler_table().check("scheduler", *this);
  if (k_max && *k_max < k_min) {
    scheduler_table().refuse("scheduler", *this, "k_max", message("k_min is ", k_min));
  }
}

OptionClass scheduler_class() {
  static const char* const kName = "SchedulerConfig";
  // K and the strategy are the method's; what follows is the steering's.
  std::vector<OptionInfo> options = {hybridgen_table().find("k")->info,
                                     hybridgen_table().find("strategy")->info};
  for (const OptionInfo& option : scheduler_table().described()) {
    if (option.name != "strategy") options.push_back(option);
  }
  const auto checked = [options](const OptionMap& given) {
    OptionMap of_method;
    OptionMap of_steering;
    for (const auto& [name, value] : given) {
      (name == "k" || name == "strategy" ? of_method : of_steering).emplace(name, value);
    }
    const HybridGenOptions method = hybridgen_table().read(kName, of_method);
    const SchedulerOptions steering = scheduler_table().read(kName, of_steering);
    const bool has_k_min = given.contains("k_min") && given.at("k_min") != OptionValue("auto");
    if (has_k_min && steering.k_max && *steering.k_max < steering.k_min) {
      scheduler_table().refuse(kName, steering, "k_max", message("k_min is ", steering.k_min));
    }
    for (const OptionInfo& option : options) {
      const auto found = of_steering.find(option.name);
      if (method.scheduler || found == of_steering.end()) continue;
      if (is_same(found->second, option.default_value)) continue;
      const std::string k = text_of(given.contains("k") ? given.at("k") : OptionValue("auto"));
      OptionInfo unsteered = option;
      unsteered.allowed = text_of(option.default_value);
      refuse_option(kName,
                    unsteered,
                    OptionValue::Other{text_of(found->second) + " with k " + k},
                    "only a steered K reads it; set k=None");
    }
    return as_written(options, given);
  };
  return {kName,
          "",
          "How many offloaded tokens a step attends to (K), and when they are chosen. By default K "
          "is fixed, and so large that answers stay those of full attention; the same input gives "
          "the same text. With ``k=None`` the feedback scheduler steers both (paper §4.3): it "
          "compares the host's time with the device's every few steps, lets K rise while the host "
          "keeps up, lets it fall to ``k_min`` otherwise, and then chooses tokens before their "
          "logits are known. So generated text may depend on the machine's speed. Only a steered K "
          "reads the options after ``strategy``.",
          options,
          checked};
}

}  // namespace hybridgen
