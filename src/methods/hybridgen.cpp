// SPDX-License-Identifier: Apache-2.0
// HybridGen (paper §4): a window on the device, older tokens on the host, which computes their
// logits.
#include "core/option_tables.h"
#include "hybridgen/core/error.h"
#include "methods/methods.h"
#include "parts/parts.h"

namespace hybridgen {

MethodInfo hybridgen_info() {
  return {.name = "hybridgen",
          .class_name = "HybridGen",
          .summary =
              "recent tokens on the device; the host scores older keys and sends logits and values",
          .attention = "both",
          .timing = "scheduled",
          .exact_when = "query='exact' or 'rescore', and k='all'",
          .drops = "nothing",
          .link = "query to the host; logits and V of K tokens back (rescore: K and V)",
          .tunables = hybridgen_table().described(),
          .reads = selective_options()};
}

namespace {

// A low-precision copy of the keys is scanned instead of them; they are read by rows then.
void scan_shadow(Method& method, const HybridGenOptions& own, bool may_plan) {
  const std::string scoring = text_of(hybridgen_table().find("scoring")->get(own));
  const auto refuse = [&](const char* option, const std::string& value, const char* allowed) {
    throw ConfigError(message("[method hybridgen] ",
                              option,
                              " is '",
                              value,
                              "' with scoring ",
                              scoring,
                              "; allowed: ",
                              allowed,
                              "; or score with the full keys"));
  };
  if (own.selector != "topk") {
    refuse("selector", own.selector, "'topk', which chooses by this step's logits alone");
  }
  if (may_plan && own.pre_selector == "block_digests") {
    refuse("pre_selector", own.pre_selector, "one that does not need keys in blocks");
  }
  const bool is_int8 = own.scoring == Scoring::kInt8;
  double per_k = own.candidates_per_k;
  if (per_k == 0.0) {
    per_k = is_int8 ? 2.0 : 4.0;
  }
  method.parts.push_back(
      shadow_scoring_part(is_int8 ? ShadowPrecision::kInt8 : ShadowPrecision::kInt4, per_k));
  method.key_layout = KeyLayout::kRows;
}

// What an option that was chosen here leaves without effect.
void note_unread(Method& method,
                 const HybridGenOptions& own,
                 const EngineOptions& options,
                 bool may_plan,
                 bool may_scan) {
  const auto unread = [&](std::initializer_list<const char*> names, const char* why) {
    for (const char* name : names) method.unread.emplace(name, why);
  };
  if (own.query.mode == QueryMode::kExact) {
    unread({"query.first_layer", "query.norm", "query.source"},
           "query='exact' guesses nothing; use query='rescore' or 'speculative'");
  }
  if (own.query.source == GuessSource::kPreviousQuery) {
    unread({"query.norm"}, "source='previous_query' takes that query as it is");
  }
  if (!may_plan) {
    unread({"pre_selector", "column_share"},
           "tokens are chosen after their logits only; set strategy='pre' or k=None");
  } else if (!method.has(PartRole::kPlanner)) {
    unread({"column_share"}, "no partial keys are kept; set pre_selector='partial_keys'");
  }
  if (!may_scan) {
    unread({"selector", "scoring", "candidates_per_k"},
           "tokens are chosen before their logits only; set strategy='post'");
  } else if (options.key_precision != KvPrecision::kFull) {
    unread({"scoring", "candidates_per_k"},
           "the keys themselves lie in 8 or 4 bits, and are scanned so; leave one of them out");
  }
}

}  // namespace

Method hybridgen_method(const EngineOptions& options) {
  const HybridGenOptions own = hybridgen_options(options);
  Method method;
  method.name = hybridgen_info().name;
  method.residency = Residency::kWindow;
  method.early_work = Score{HostQuery::kExact, BySelectors{}};
  method.work = method.early_work;
  if (own.query.mode == QueryMode::kSpeculative) {
    method.work = Score{HostQuery::kGuessed, BySelectors{}};
  } else if (own.query.mode == QueryMode::kRescore) {
    method.work = Fetch{HostQuery::kGuessed, BySelectors{}};
  }
  if (own.query.mode != QueryMode::kExact) {
    method.first_layer = own.query.first_layer;
  }
  method.guess_norm = own.query.norm;
  method.guess_source = own.query.source;
  method.strategy = own.strategy;
  method.parts.push_back(own.mass > 0.0
                             ? mass_selector_part(own.mass)
                             : named_selector_part(SelectionStrategy::kPostQkt, own.selector));
  const auto may = [&](SelectionStrategy strategy) {
    return own.strategy == strategy || (own.scheduler && own.scheduler->adapt_strategy);
  };
  // Partial keys take room on the device: not where no request can ever be in Pre-QKT.
  const bool may_plan = may(SelectionStrategy::kPreQkt);
  if (own.pre_selector != kPartialKeysSelector) {
    method.parts.push_back(named_selector_part(SelectionStrategy::kPreQkt, own.pre_selector));
  } else if (may_plan) {
    method.parts.push_back(partial_keys_part({.column_share = own.column_share}));
  }
  if (own.scoring != Scoring::kFull) {
    scan_shadow(method, own, may_plan);
  }
  note_unread(method, own, options, may_plan, may(SelectionStrategy::kPostQkt));
  return method;
}

}  // namespace hybridgen
