// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/hybridgen_options.h"

#include <algorithm>

#include "core/option_tables.h"

namespace hybridgen {
namespace {

using H = HybridGenOptions;
using Row = OptionRow<H>;

constexpr const char* kQuery = "QueryConfig";
constexpr Interval kMultiples{1.0, 1e6};

bool read_query(const OptionValue& value, QueryOptions& query) {
  const auto* fields = value.as<OptionMap>();
  if (fields != nullptr) query = query_table().read("method hybridgen, query", *fields);
  QueryOptions plain;
  if (fields == nullptr && query_table().find("mode")->set(plain, value))
    return query = plain, true;
  return fields != nullptr;
}

// The mode's name if that says all.
OptionValue value_of(const QueryOptions& query) {
  const OptionMap values = query_table().values(query);
  return query == QueryOptions{.mode = query.mode} ? values.at("mode") : OptionValue(values);
}

// None may come before the scheduler's own options, or without them.
bool read_scheduler(const OptionValue& value, std::optional<SchedulerOptions>& scheduler) {
  const auto* fields = value.as<OptionMap>();
  if (fields == nullptr) return value.is_none();
  scheduler = scheduler_table().read("method hybridgen, scheduler", *fields);
  // A k_min that nobody set gives way to no k_max: K is then always k_min.
  const auto k_min = fields->find("k_min");
  const bool is_set = k_min != fields->end() && k_min->second != OptionValue("auto");
  if (!is_set && scheduler->k_max) {
    scheduler->k_max = std::max(*scheduler->k_max, scheduler->k_min);
  }
  scheduler->validate();
  return true;
}

OptionValue value_of(const std::optional<SchedulerOptions>& scheduler) {
  return scheduler ? OptionValue(scheduler_table().values(*scheduler)) : OptionValue();
}

// None steers: two members.
Row k_option() {
  const auto get = [](const H& o) {
    return o.scheduler && o.k == TokenCount::usual() ? OptionValue() : value_of(o.k);
  };
  const auto set = [](H& o, const OptionValue& v) {
    if (!v.is_none()) return read_token_count(v, o.k);
    if (!o.scheduler) o.scheduler.emplace();
    o.k = TokenCount::usual();
    return true;
  };
  return {{"k",
           "int | float | str | None",
           "'auto', an int in [1, 2147483647] (tokens), a float in (0.0, 1.0) (share of the "
           "offloaded tokens), 'all', or None (steered)",
           "Offloaded tokens attended to per head. \"auto\": the value in the ``k_min.json`` "
           "beside the checkpoint (see `calibrate`), or without one the larger of 256 and an "
           "eighth of the offloaded tokens. A number; a share of the offloaded tokens between 0.0 "
           "and 1.0; all of them. None: as many as stage times allow.",
           "auto"},
          get,
          set};
}

// What "auto" means says K, and not what limits it.
bool read_k_max(const OptionValue& value, TokenCount& count) {
  return value != OptionValue("auto") && read_token_count(value, count);
}

void check_mass(std::string_view operation, const HybridGenOptions& options) {
  const auto refuse = [&](const char* option, const char* why) {
    hybridgen_table().refuse(operation, options, option, why);
  };
  if (!(options.mass >= 0.0 && options.mass < 1.0)) {
    refuse("mass", "a share of all is k 'all'");
  }
  if (options.mass == 0.0) {
    if (!options.k_max.is_all()) refuse("k_max", "it limits what mass takes; set mass, or k alone");
    return;
  }
  if (options.scheduler) refuse("mass", "the scheduler steers K; leave out one of them");
  if (options.k != TokenCount::usual()) {
    refuse("k", "mass says how many tokens count; set k_max to limit them");
  }
  if (options.strategy != SelectionStrategy::kPostQkt) {
    refuse("strategy", "mass needs the logits of all tokens; set strategy to 'post'");
  }
  if (options.selector != "topk") {
    refuse("selector", "mass takes the largest logits; set selector to 'topk'");
  }
  if (options.scoring != Scoring::kFull) {
    refuse("scoring", "a copy's scores say nothing exact of mass; set scoring to 'full'");
  }
}

}  // namespace

const OptionTable<QueryOptions>& query_table() {
  using Q = QueryOptions;
  static const OptionTable<Q> table(
      {option("mode",
              &Q::mode,
              {{"exact", QueryMode::kExact},
               {"speculative", QueryMode::kSpeculative},
               {"rescore", QueryMode::kRescore}})
           .means("\"rescore\" chooses tokens by a query guessed one layer ahead and scores them "
                  "with the layer's own, \"speculative\" (the paper's) takes the guessed scores as "
                  "well, \"exact\" waits for the layer's own query."),
       option("first_layer", &Q::first_layer, Whole{1})
           .means("First layer whose query is guessed; the layers before it are exact. Their "
                  "inputs resemble each other least, so 2 is the default."),
       option("norm", &Q::norm, {{"next", GuessNorm::kNext}, {"current", GuessNorm::kCurrent}})
           .means("Norm applied to the input that the guess is made from: the \"next\" layer's "
                  "(as in the paper) or the \"current\" one's (as in InfiniGen)."),
       option("source",
              &Q::source,
              {{"next_weights", GuessSource::kNextWeights},
               {"previous_query", GuessSource::kPreviousQuery}})
           .means("\"next_weights\" projects the guess with the next layer's weights; "
                  "\"previous_query\" takes the query of the layer before as it is.")});
  return table;
}

const OptionTable<HybridGenOptions>& hybridgen_table() {
  static const OptionTable<H> table(
      {k_option(),
       or_word(option("mass", &H::mass, kInside), &H::mass, 0.0, {})
           .means("Instead of ``k``: every query head takes the fewest offloaded tokens whose "
                  "logits have this share of the softmax over all offloaded ones, by the query "
                  "that chooses (a guess, unless ``query=\"exact\"``), and the query heads of a KV "
                  "head attend to what any of them took. "
                  "``strategy=\"post\"``, ``selector=\"topk\"`` and ``scoring=\"full\"`` only."),
       option("k_max",
              &H::k_max,
              "int | float | str",
              "an int in [1, 2147483647] (tokens), a float in (0.0, 1.0) (share of the offloaded "
              "tokens), or 'all'",
              read_k_max,
              [](const TokenCount& count) { return value_of(count); })
           .means("With ``mass``: tokens that a query head takes, at most. The device has room for "
                  "as many of every query head."),
       option("strategy",
              &H::strategy,
              {{"post", SelectionStrategy::kPostQkt}, {"pre", SelectionStrategy::kPreQkt}})
           .means("Choose tokens after their logits are known (Post-QKT), or before (Pre-QKT); "
                  "what a steered request starts with."),
       option("query",
              &H::query,
              "str | QueryConfig",
              query_table().find("mode")->info.allowed + ", or a QueryConfig",
              read_query,
              [](const QueryOptions& query) { return value_of(query); })
           .means(query_table().find("mode")->info.meaning),
       option("selector", &H::selector, "a name in hybridgen.selectors.names('post')")
           .means("Who chooses after the logits are known."),
       option("pre_selector", &H::pre_selector, "a name in hybridgen.selectors.names('pre')")
           .means("Who chooses before."),
       option("scoring",
              &H::scoring,
              {{"full", Scoring::kFull}, {"int8", Scoring::kInt8}, {"int4", Scoring::kInt4}})
           .means("What a Post-QKT scan of the offloaded keys reads: the keys, or a copy of them "
                  "in 8 or 4 bits kept beside them, a half or a quarter of float16's bytes. It "
                  "only proposes tokens; which of those count, and their logits, come from the "
                  "keys themselves. ``selector=\"topk\"`` only."),
       or_word(option("candidates_per_k", &H::candidates_per_k, kMultiples),
               &H::candidates_per_k,
               0.0,
               {})
           .means("Tokens that get exact logits per token that counts, with ``scoring`` \"int8\" "
                  "or \"int4\". None: 2 and 4."),
       option("scheduler",
              &H::scheduler,
              "SchedulerConfig | None",
              "a SchedulerConfig, or None",
              read_scheduler,
              [](const std::optional<SchedulerOptions>& scheduler) { return value_of(scheduler); })
           .means("How a steered K (``k=None``) and the strategy change."),
       option("column_share", &H::column_share, kPositiveShare)
           .means("With ``pre_selector=\"partial_keys\"`` where tokens may be chosen before their "
                  "logits (``strategy=\"pre\"`` or ``k=None``): share of every key's dimensions "
                  "that it sees.")});
  return table;
}

void check_together(std::string_view operation, const HybridGenOptions& options) {
  check_mass(operation, options);
  if (options.scheduler && options.k != TokenCount::usual()) {
    hybridgen_table().refuse(
        operation, options, "k", "the scheduler steers K; set k_min and k_max instead");
  }
  if (options.candidates_per_k != 0.0 && options.scoring == Scoring::kFull) {
    hybridgen_table().refuse(
        operation,
        options,
        "candidates_per_k",
        "with scoring 'full' it has no effect; set scoring to 'int8' or 'int4'");
  }
}

HybridGenOptions hybridgen_options(const EngineOptions& options) {
  constexpr const char* kOperation = "method hybridgen";
  HybridGenOptions own = options.hybridgen;
  if (options.method == "hybridgen") {
    hybridgen_table().assign(kOperation, own, options.method_config);
    check_together(kOperation, own);
  }
  return own;
}

OptionClass query_class() {
  const auto checked = [](const OptionMap& given) {
    static_cast<void>(query_table().read(kQuery, given));
    return as_written(query_table().described(), given);
  };
  return {kQuery,
          "",
          "Which query the host scores offloaded keys with.",
          query_table().described(),
          checked};
}

}  // namespace hybridgen
