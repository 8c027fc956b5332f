// SPDX-License-Identifier: Apache-2.0
// Keyformer (Adnan et al., MLSys 2024; d-matrix-ai/keyformer-llm): a fixed budget of recent tokens
// and of tokens with the largest sums of a noisy, tempered softmax.
#include <limits>

#include "methods/methods.h"
#include "parts/parts.h"

namespace hybridgen {

namespace {

struct KeyformerOptions {
  TokenBudget kv_cache{0.6};
  double recent = 0.3;
  double tau_init = 1.0;
  double tau_end = 2.0;
  bool noise = true;
  std::int64_t seed = 0;
  Home home = Home::kDevice;
};

const OptionTable<KeyformerOptions>& table() {
  using O = KeyformerOptions;
  constexpr Whole kSeeds{0, std::numeric_limits<std::int64_t>::max()};
  static const OptionTable<O> rows(
      {option("kv_cache", &O::kv_cache, 1).means("tokens that are kept in all"),
       option("recent", &O::recent, kPositiveShare)
           .means("share of the budget for the newest tokens"),
       option("tau_init", &O::tau_init, kPositive).means("temperature of the prompt's scores"),
       option("tau_end", &O::tau_end, kPositive)
           .means("temperature that the last new token reaches"),
       option("noise", &O::noise).means("Gumbel noise on the scores"),
       option("seed", &O::seed, kSeeds).means("of the noise"),
       home_option(&O::home)});
  return rows;
}

}  // namespace

MethodInfo keyformer_info() {
  return {.name = "keyformer",
          .class_name = "Keyformer",
          .summary = "key tokens by accumulated Gumbel-softmax scores, and recent tokens",
          .attention = "device",
          .timing = "post",
          .exact_when = "the budget >= tokens",
          .drops = "tokens that are neither key tokens nor recent",
          .link = "softmax weights to the host; with home='host' K and V of the kept tokens back",
          .tunables = table().described(),
          .reads = {"keys", "values"}};
}

Method keyformer_method(const EngineOptions& options) {
  const MethodInfo info = keyformer_info();
  const KeyformerOptions own = own_options(table(), info, options);
  KeyformerScore score;
  score.tau_init = own.tau_init;
  score.tau_end = own.tau_end;
  score.noise = own.noise;
  score.seed = static_cast<std::uint64_t>(own.seed);
  Method method = retaining_method(info, own.home);
  if (!score.noise) {
    method.unread.emplace("seed", "noise=False draws nothing; set noise=True");
  }
  method.parts.push_back(gumbel_scores_part(score));
  method.parts.push_back(
      retention_part([budget = own.kv_cache, recent_share = own.recent, score](
                         const RetentionShape& shape, const RequestShape& request) {
        const std::int64_t tokens = budget.resolve(request.prompt_tokens, 1);
        const std::int64_t recent = std::max<std::int64_t>(
            1, static_cast<std::int64_t>(recent_share * static_cast<double>(tokens)));
        KeyformerScore tempered = score;
        tempered.num_steps = std::max<std::int64_t>(1, request.max_tokens - request.prompt_tokens);
        tempered.request = request.content;
        return make_keyformer_retention(
            shape, std::max<std::int64_t>(0, tokens - recent), recent, tempered);
      }));
  return method;
}

}  // namespace hybridgen
