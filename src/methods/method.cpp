// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/methods/method.h"

#include <array>

#include "core/names.h"
#include "core/option_tables.h"
#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "methods/methods.h"

namespace hybridgen {
namespace {

struct Entry {
  MethodInfo (*info)();
  Method (*build)(const EngineOptions&);
};

constexpr std::array kMethods = {Entry{full_info, full_method},
                                 Entry{hybridgen_info, hybridgen_method},
                                 Entry{flexgen_info, flexgen_method},
                                 Entry{moe_lightning_info, moe_lightning_method},
                                 Entry{streaming_llm_info, streaming_llm_method},
                                 Entry{h2o_info, h2o_method},
                                 Entry{keyformer_info, keyformer_method},
                                 Entry{infinigen_info, infinigen_method},
                                 Entry{hgca_info, hgca_method}};

}  // namespace

Method make_method(const EngineOptions& options) {
  std::vector<std::string> names;
  std::string allowed;
  for (const Entry& entry : kMethods) {
    const std::string name = entry.info().name;
    if (name == options.method) {
      Method method = entry.build(options);
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

void check_composition(const Method& method) {
  const auto refuse = [&](const std::string& why) {
    throw ConfigError(message("[composition ", method.name, "] ", why));
  };
  if (method.name.empty()) {
    throw ConfigError("[composition] name is empty; allowed: any other text");
  }
  if (method.residency == Residency::kRetained && !method.retention) {
    refuse("tokens are retained and nobody chooses them; add a retention policy");
  }
  if (method.first_layer < 0) {
    refuse(message("first_layer is ", method.first_layer, "; allowed: >= 0"));
  }
  for (const LayerRule* rule : {&method.rule, &method.early_rule}) {
    const bool sends = rule->payload != PayloadKind::kNothing;
    if (sends != method.offloads()) {
      refuse(sends ? "the host sends a payload and no token ever leaves the device; allowed: "
                     "payload nothing, or residency window or none"
                   : "tokens leave the device and the host sends nothing; allowed: any payload, or "
                     "residency all");
    }
    if (!sends) {
      continue;
    }
    if (rule->choice == HostChoice::kSelector && !method.selector && !method.pre_selector &&
        !method.pre_selects_by_partial_keys) {
      refuse("choice is selector and there is none; name a selector or a pre_selector");
    }
    if (rule->choice == HostChoice::kSelector &&
        (method.strategy == SelectionStrategy::kPostQkt
             ? !method.selector
             : !method.pre_selector && !method.pre_selects_by_partial_keys)) {
      refuse(message("strategy is ", name_of(method.strategy), " and it has no selector"));
    }
    const bool scores =
        rule->payload != PayloadKind::kKeysAndValues || rule->choice == HostChoice::kPartialKeys ||
        (rule->choice == HostChoice::kSelector && method.strategy == SelectionStrategy::kPostQkt);
    if (scores && rule->query == HostQuery::kNone) {
      refuse("the host needs a query and gets none; allowed: query exact or guessed");
    }
    if (rule->payload == PayloadKind::kLogitsAndValues && rule->choice == HostChoice::kAll) {
      refuse(
          "logits of all tokens without a selector; allowed: choice selector with k='all', or "
          "payload partial_attention");
    }
    if (rule->payload == PayloadKind::kPartialAttention && rule->choice == HostChoice::kSelector &&
        method.strategy == SelectionStrategy::kPostQkt) {
      refuse("partial attention over tokens chosen after their logits; allowed: strategy pre");
    }
    if (method.residency == Residency::kNone &&
        (rule->payload != PayloadKind::kPartialAttention || rule->query != HostQuery::kExact)) {
      refuse("no token is on the device; allowed there: query exact, payload partial_attention");
    }
    if (method.residency == Residency::kNone && rule->choice != HostChoice::kAll) {
      refuse("no token is on the device and the newest may not be chosen; allowed: choice all");
    }
  }
  const bool guesses_at_once = method.first_layer < 1 && method.rule.query == HostQuery::kGuessed;
  if (guesses_at_once || method.early_rule.query == HostQuery::kGuessed) {
    refuse(
        "a guessed query needs a layer before it; allowed: a guessed rule from first_layer >= 1 "
        "on, "
        "with an early_rule that does not guess");
  }
}

std::optional<SchedulerOptions> steering_of(const Method& method,
                                            const std::optional<SchedulerOptions>& asked) {
  if (!asked || method.rule.choice != HostChoice::kSelector ||
      method.rule.payload == PayloadKind::kPartialAttention) {
    return std::nullopt;
  }
  SchedulerOptions options = *asked;
  options.initial_strategy = method.strategy;
  const bool can_plan = method.pre_selector != nullptr || method.pre_selects_by_partial_keys;
  options.adapt_strategy = options.adapt_strategy && method.selector != nullptr && can_plan;
  return options;
}

KeyLayout natural_key_layout(const Method& method) {
  const auto ships_all = [](const LayerRule& rule) {
    return rule.choice == HostChoice::kAll && (rule.payload == PayloadKind::kKeysAndValues ||
                                               rule.payload == PayloadKind::kKeysThenValues);
  };
  // Only rows can be shipped whole; blocks are faster to scan, and some selectors read them.
  return ships_all(method.rule) || ships_all(method.early_rule) ? KeyLayout::kRows
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
  methods.reserve(kMethods.size());
  for (const Entry& entry : kMethods) {
    methods.push_back(entry.info());
  }
  return methods;
}

}  // namespace hybridgen
