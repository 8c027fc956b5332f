// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/methods/method.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "core/names.h"
#include "core/option_tables.h"
#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "methods/methods.h"

namespace hybridgen {
namespace {

struct Entry {
  MethodInfo info;
  MethodFactory make;
};

/// The library's own first, then those that users registered.
class Registry {
 public:
  static Registry& instance() {
    // Never destroyed: what users registered may belong to an interpreter that is gone by then.
    static auto* const registry = new Registry;  // NOLINT(cppcoreguidelines-owning-memory)
    return *registry;
  }

  std::vector<Entry> entries() const {
    const std::lock_guard lock(mutex_);
    return entries_;
  }

  void add(Entry entry) {
    const std::lock_guard lock(mutex_);
    const auto name = [](const Entry& each) { return each.info.name; };
    const auto found = std::ranges::find(entries_, entry.info.name, name);
    if (entry.info.name.empty() || found < entries_.begin() + num_own_) {
      throw ConfigError(message("[register_method] name is '",
                                entry.info.name,
                                "'; allowed: any that is not one of the library's own"));
    }
    if (found == entries_.end()) {
      entries_.push_back(std::move(entry));
    } else {
      *found = std::move(entry);
    }
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Entry> entries_{{full_info(), full_method},
                              {hybridgen_info(), hybridgen_method},
                              {flexgen_info(), flexgen_method},
                              {moe_lightning_info(), moe_lightning_method},
                              {streaming_llm_info(), streaming_llm_method},
                              {h2o_info(), h2o_method},
                              {keyformer_info(), keyformer_method},
                              {infinigen_info(), infinigen_method},
                              {hgca_info(), hgca_method}};
  std::ptrdiff_t num_own_ = std::ssize(entries_);
};

}  // namespace

void register_method(MethodInfo info, MethodFactory make) {
  Registry::instance().add({std::move(info), std::move(make)});
}

Method make_method(const EngineOptions& options) {
  std::vector<std::string> names;
  std::string allowed;
  for (const Entry& entry : Registry::instance().entries()) {
    const std::string& name = entry.info.name;
    if (name == options.method) {
      Method method = entry.make(options);
      check_composition(method);
      refuse_unread(method, options);
      return method;
    }
    allowed += (allowed.empty() ? "" : ", ") + name;
    names.push_back(name);
  }
  const std::string nearest = nearest_name(options.method, names);
  throw ConfigError(message("[method] '",
                            options.method,
                            "' is not known; allowed: ",
                            allowed,
                            nearest.empty() ? "" : "; did you mean '" + nearest + "'?"));
}

std::uint64_t content_of(std::span<const std::int64_t> prompt) {
  std::uint64_t hash = 0xCBF29CE484222325ULL;  // FNV-1a, an id at a time
  for (const std::int64_t id : prompt) {
    hash = (hash ^ static_cast<std::uint64_t>(id)) * 0x100000001B3ULL;
  }
  return hash;
}

namespace {

[[noreturn]] void refuse(const Method& method, const std::string& why) {
  throw ConfigError(message("[composition ", method.name, "] ", why));
}

void check_work(const Method& method, const HostWork& work) {
  if (is<Nothing>(work) == method.offloads()) {
    refuse(method,
           is<Nothing>(work)
               ? "tokens leave the device and the host sends nothing; allowed: any payload, or "
                 "residency all"
               : "the host sends a payload and no token ever leaves the device; allowed: payload "
                 "nothing, or residency window or none");
  }
  if (std::holds_alternative<ByPlanner>(choice_of(work)) && !method.has(PartRole::kPlanner)) {
    refuse(method, "choice is the planner's and there is none; add a part that plans");
  }
  const bool by_selectors = std::holds_alternative<BySelectors>(choice_of(work));
  const bool can_select = method.has(PartRole::kSelector);
  const bool is_post = method.strategy == SelectionStrategy::kPostQkt;
  if (by_selectors && !can_select && !method.can_plan()) {
    refuse(method, "choice is selector and there is none; name a selector or a pre_selector");
  }
  if (by_selectors && !(is_post ? can_select : method.can_plan())) {
    refuse(method, message("strategy is ", name_of(method.strategy), " and it has no selector"));
  }
  if (by_selectors && is_post && query_of(work) == HostQuery::kNone) {
    refuse(method, "the host needs a query and gets none; allowed: query exact or guessed");
  }
  if (by_selectors && is_post && is<Attend>(work)) {
    refuse(method,
           "partial attention over tokens chosen after their logits; allowed: strategy pre");
  }
  if (method.residency != Residency::kNone) {
    return;
  }
  if (!is<Attend>(work) || query_of(work) != HostQuery::kExact) {
    refuse(method,
           "no token is on the device; allowed there: query exact, payload partial_attention");
  }
  if (chooses(work)) {
    refuse(method,
           "no token is on the device and the newest may not be chosen; allowed: choice all");
  }
}

}  // namespace

void check_composition(const Method& method) {
  if (method.name.empty()) {
    throw ConfigError("[composition] name is empty; allowed: any other text");
  }
  if (method.residency == Residency::kRetained && !method.has(PartRole::kRetention)) {
    refuse(method, "tokens are retained and nobody chooses them; add a retention policy");
  }
  for (const HostWork* work : {&method.work, &method.early_work}) {
    if (is<FetchKeys>(*work) && !method.has(PartRole::kKeptValues)) {
      refuse(method,
             "keys alone are fetched and nobody says how many values are; add a KeptValues part");
    }
  }
  const PartFactory* selector = find_part(method.parts, PartRole::kSelector);
  if (selector != nullptr && selector->says_how_many && method.has(PartRole::kKeyProxy)) {
    refuse(method,
           "a selector says how many tokens it takes by exact logits, and a copy of the keys is "
           "scored; allowed: one of them");
  }
  const bool keeps_places = method.positions != PositionMode::kOriginal;
  if (keeps_places && !method.has(PartRole::kRetention)) {
    refuse(method, "positions depend on who is retained and nobody is; add a retention policy");
  }
  for (const PartFactory& part : method.parts) {
    if (part.host_limit && part.role != PartRole::kHostPlacement) {
      refuse(method,
             "a part limits the host's tokens and decides nothing; allowed: host_limit of a "
             "host placement");
    }
  }
  if (natural_key_layout(method) == KeyLayout::kRows && method.key_layout != KeyLayout::kRows) {
    refuse(method, "keys are shipped whole and lie in blocks; allowed there: key_layout rows");
  }
  if (method.first_layer < 0) {
    refuse(method, message("first_layer is ", method.first_layer, "; allowed: >= 0"));
  }
  check_work(method, method.work);
  if (method.first_layer > 0) {
    check_work(method, method.early_work);
  }
  const bool guesses_at_once =
      method.first_layer < 1 && query_of(method.work) == HostQuery::kGuessed;
  if (guesses_at_once || query_of(method.early_work) == HostQuery::kGuessed) {
    refuse(method,
           "a guessed query needs a layer before it; allowed: a guessed rule from first_layer >= 1 "
           "on, with an early_rule that does not guess");
  }
}

std::optional<SchedulerOptions> steering_of(const Method& method,
                                            const std::optional<SchedulerOptions>& asked) {
  if (!asked || !sends_k(method.work)) {
    return std::nullopt;
  }
  SchedulerOptions options = *asked;
  options.initial_strategy = method.strategy;
  options.adapt_strategy =
      options.adapt_strategy && method.has(PartRole::kSelector) && method.can_plan();
  return options;
}

KeyLayout natural_key_layout(const Method& method) {
  const auto ships_all = [](const HostWork& work) {
    return is<FetchKeys>(work) || (is<Fetch>(work) && !chooses(work));
  };
  // Only rows can be shipped whole; blocks are faster to scan, and some selectors read them.
  return ships_all(method.work) || ships_all(method.early_work) ? KeyLayout::kRows
                                                                : KeyLayout::kBlocked;
}

std::vector<OptionClass> method_option_classes() {
  std::vector<OptionClass> classes;
  for (const MethodInfo& info : list_methods()) {
    const auto checked = [info](const OptionMap& given) {
      EngineOptions options;
      options.method = info.name;
      options.method_config = given;
      // Whether hybridgen reads them depends on what is said elsewhere, in a SchedulerConfig.
      if (info.name == "hybridgen") {
        static_cast<void>(hybridgen_options(options));
      } else {
        static_cast<void>(make_method(options));
      }
      return as_written(info.tunables, given);
    };
    classes.push_back({info.class_name, info.name, info.summary, info.tunables, checked});
  }
  return classes;
}

std::vector<MethodInfo> list_methods() {
  std::vector<MethodInfo> methods;
  for (const Entry& entry : Registry::instance().entries()) {
    methods.push_back(entry.info);
  }
  return methods;
}

}  // namespace hybridgen
