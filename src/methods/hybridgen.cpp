// SPDX-License-Identifier: Apache-2.0
// HybridGen (paper §4): a window on the device, older tokens on the host, which computes their
// logits.
#include "hybridgen/core/error.h"
#include "methods/methods.h"

namespace hybridgen {

MethodInfo hybridgen_info() {
  return {.name = "hybridgen",
          .summary =
              "recent tokens on the device; the host scores older keys and sends logits and values",
          .attention = "both",
          .timing = "scheduled",
          .exact_when = "query='exact' or 'rescore', and k='all'",
          .drops = "nothing",
          .link = "query to the host; logits and V of K tokens back (rescore: K and V)",
          .tunables = {{"column_share",
                        0.2,
                        "a float in (0, 1]",
                        "pre_selector='partial_keys': as in infinigen"}},
          .reads = selective_options()};
}

namespace {

// A low-precision copy of the keys is scanned instead of them; they are read by rows then.
void scan_shadow(Method& method, const EngineOptions& options, bool may_plan) {
  const auto refuse = [&](const char* option, const std::string& value, const char* allowed) {
    throw ConfigError(message("[method hybridgen] ",
                              option,
                              " is '",
                              value,
                              "' with scoring '",
                              options.scoring,
                              "'; allowed: ",
                              allowed,
                              "; or score with the full keys"));
  };
  if (options.selector != "topk") {
    refuse("selector", options.selector, "'topk', which chooses by this step's logits alone");
  }
  if (may_plan && options.pre_selector == "block_digests") {
    refuse("pre_selector", options.pre_selector, "one that does not need keys in blocks");
  }
  const bool is_int8 = options.scoring == "int8";
  method.shadow = is_int8 ? ShadowPrecision::kInt8 : ShadowPrecision::kInt4;
  method.candidates_per_k = options.candidates_per_k;
  if (options.candidates_per_k == 0.0) {
    method.candidates_per_k = is_int8 ? 2.0 : 4.0;
  }
  method.key_layout = KeyLayout::kRows;
}

// What an option that was chosen here leaves without effect.
void note_unread(Method& method, const EngineOptions& options, bool may_plan) {
  const auto unread = [&](const char* name, const char* why) { method.unread.emplace(name, why); };
  if (options.query == QueryMode::kExact) {
    for (const char* name : {"spec_first_layer", "guess_norm", "guess_source"}) {
      unread(name, "query='exact' guesses nothing; use query='rescore' or 'speculative'");
    }
  }
  if (options.guess_source == "previous_query") {
    unread("guess_norm", "source='previous_query' takes that query as it is");
  }
  if (!may_plan) {
    for (const char* name : {"pre_selector", "column_share"}) {
      unread(name, "tokens are chosen after their logits only; set strategy='pre' or k=None");
    }
  } else if (!method.pre_selects_by_partial_keys) {
    unread("column_share", "no partial keys are kept; set pre_selector='partial_keys'");
  }
  const bool may_scan =
      options.strategy == SelectionStrategy::kPostQkt ||
      (options.scheduler && (options.scheduler->adapt_strategy ||
                             options.scheduler->initial_strategy == SelectionStrategy::kPostQkt));
  if (!may_scan) {
    for (const char* name : {"selector", "scoring", "candidates_per_k"}) {
      unread(name, "tokens are chosen before their logits only; set strategy='post'");
    }
  }
  if (options.scoring == "full") {
    unread("candidates_per_k", "scoring is 'full'; set scoring to 'int8' or 'int4'");
  }
}

}  // namespace

Method hybridgen_method(const EngineOptions& options) {
  const MethodInfo info = hybridgen_info();
  const MethodConfig config(info, options);
  Method method;
  method.name = info.name;
  method.residency = Residency::kWindow;
  method.early_rule = {HostQuery::kExact, PayloadKind::kLogitsAndValues, HostChoice::kSelector};
  method.rule = method.early_rule;
  if (options.query != QueryMode::kExact) {
    method.rule.query = HostQuery::kGuessed;
    method.first_layer = options.spec_first_layer;
  }
  if (options.query == QueryMode::kRescore) {
    method.rule.payload = PayloadKind::kKeysAndValues;
  }
  method.guess_norm = options.guess_norm == "current" ? GuessNorm::kCurrent : GuessNorm::kNext;
  method.guess_source = options.guess_source == "previous_query" ? GuessSource::kPreviousQuery
                                                                 : GuessSource::kNextWeights;
  method.strategy = options.strategy;
  method.selector = [name = options.selector](const SelectorShape& shape) {
    return make_selector(name, shape);
  };
  // Partial keys take room on the device: not where no request can ever be in Pre-QKT.
  const bool may_plan =
      options.strategy == SelectionStrategy::kPreQkt ||
      (options.scheduler && (options.scheduler->adapt_strategy ||
                             options.scheduler->initial_strategy == SelectionStrategy::kPreQkt));
  if (options.pre_selector == kPartialKeysSelector) {
    method.pre_selects_by_partial_keys = may_plan;
  } else {
    method.pre_selector = [name = options.pre_selector](const SelectorShape& shape) {
      return make_selector(name, shape);
    };
  }
  if (options.scoring != "full") {
    scan_shadow(method, options, may_plan);
  }
  method.partial_keys.column_share = config.number("column_share", 0.0, 1.0, /*open=*/true);
  note_unread(method, options, may_plan);
  return method;
}

}  // namespace hybridgen
