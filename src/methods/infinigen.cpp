// SPDX-License-Identifier: Apache-2.0
// InfiniGen (Lee et al., OSDI 2024; snu-comparch/InfiniGen): the device guesses the next layer's
// logits from a few columns of every key, the host gathers K and V of the promising tokens, and the
// device computes exact attention over them.
#include <limits>

#include "methods/methods.h"
#include "parts/parts.h"

namespace hybridgen {

namespace {

struct InfiniGenOptions {
  PartialKeyOptions partial_keys;
  std::int64_t first_layer = 2;
  PoolLimit pool;
};

bool read_max_fetch(const OptionValue& value, TokenCount& tokens) {
  if (value == OptionValue(1.0)) return tokens = TokenCount::all(), true;
  return value.as<std::string>() == nullptr && read_token_count(value, tokens);
}

OptionValue value_of_max_fetch(const TokenCount& tokens) {
  return tokens.is_all() ? OptionValue(1.0) : value_of(tokens);
}

const OptionTable<InfiniGenOptions>& table() {
  using O = InfiniGenOptions;
  using Keys = PartialKeyOptions;
  constexpr Interval kAlpha{0.0, std::numeric_limits<double>::infinity(), /*low_open=*/true};
  static const OptionTable<O> rows(
      {lifted(option("alpha", &Keys::alpha, kAlpha), &O::partial_keys)
           .means("tokens within alpha of the largest guessed logit count"),
       lifted(option("column_share", &Keys::column_share, kPositiveShare), &O::partial_keys)
           .means("share of every key's rotated dimensions that the guess sees"),
       lifted(option("max_fetch",
                     &Keys::max_fetch,
                     "int | float",
                     "an integer >= 1 (tokens) or a number in (0, 1] (share of the offloaded "
                     "tokens)",
                     read_max_fetch,
                     value_of_max_fetch),
              &O::partial_keys)
           .means("tokens fetched per KV head at most"),
       option("first_layer", &O::first_layer, Whole{1})
           .means("first layer that is guessed; the layers before load every token"),
       lifted(option("capacity", &PoolLimit::capacity, kPositiveShare), &O::pool)
           .means("share of a request's tokens that the host keeps, never less than its prompt"),
       lifted(option("policy",
                     &PoolLimit::policy,
                     {{"fifo", PoolPolicy::kFifo},
                      {"lru", PoolPolicy::kLru},
                      {"counter", PoolPolicy::kCounter}}),
              &O::pool)
           .means("which token leaves a full pool (capacity below 1.0)")});
  return rows;
}

}  // namespace

MethodInfo infinigen_info() {
  return {
      .name = "infinigen",
      .class_name = "InfiniGen",
      .summary = "tokens prefetched by guessed logits over partial keys, exact attention over them",
      .attention = "device",
      .timing = "pre",
      .exact_when = "alpha = inf and max_fetch = 1.0",
      .drops = "only what exceeds `capacity`",
      .link = "K and V of the chosen tokens, their positions to the host; first layers: all tokens",
      .tunables = table().described(),
      .reads = {"device_tokens", "keys", "values"}};
}

Method infinigen_method(const EngineOptions& options) {
  const MethodInfo info = infinigen_info();
  const InfiniGenOptions own = own_options(table(), info, options);
  Method method;
  method.name = info.name;
  method.residency = Residency::kWindow;
  method.window.tokens = [](const RequestShape&) { return std::int64_t{0}; };
  method.parts.push_back(partial_keys_part(own.partial_keys));
  method.work = Fetch{HostQuery::kGuessed, ByPlanner{own.partial_keys.max_fetch}};
  method.early_work = Fetch{HostQuery::kNone, AllTokens{}};
  method.strategy = SelectionStrategy::kPreQkt;
  method.first_layer = own.first_layer;
  method.guess_norm = GuessNorm::kCurrent;
  method.key_layout = KeyLayout::kRows;
  if (own.pool.capacity < 1.0) {
    method.parts.push_back(host_pool_part(own.pool));
  } else {
    method.unread.emplace("policy", "no pool is ever full with capacity=1.0; set it to less");
  }
  return method;
}

}  // namespace hybridgen
