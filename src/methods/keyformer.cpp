// SPDX-License-Identifier: Apache-2.0
// Keyformer (Adnan et al., MLSys 2024; d-matrix-ai/keyformer-llm): a fixed budget of recent tokens
// and of tokens with the largest sums of a noisy, tempered softmax.
#include <limits>

#include "methods/methods.h"

namespace hybridgen {

MethodInfo keyformer_info() {
  return {.name = "keyformer",
          .summary = "key tokens by accumulated Gumbel-softmax scores, and recent tokens",
          .attention = "device",
          .timing = "post",
          .exact_when = "the budget >= tokens",
          .drops = "tokens that are neither key tokens nor recent",
          .link = "softmax weights to the host; with home='host' K and V of the kept tokens back",
          .tunables =
              {{"kv_cache",
                0.6,
                "an integer >= 1 (tokens) or a float in (0, 1] (share of the prompt)",
                "tokens that are kept in all"},
               {"recent", 0.3, "a float in (0, 1]", "share of the budget for the newest tokens"},
               {"tau_init", 1.0, "a float > 0", "temperature of the prompt's scores"},
               {"tau_end", 2.0, "a float > 0", "temperature that the last new token reaches"},
               {"noise", true, "True or False", "Gumbel noise on the scores"},
               {"seed", std::int64_t{0}, "an integer >= 0", "of the noise"},
               home_option()},
          .reads = {}};
}

Method keyformer_method(const EngineOptions& options) {
  constexpr double kAny = std::numeric_limits<double>::max();
  const MethodInfo info = keyformer_info();
  const MethodConfig config(info, options);
  const auto budget = config.budget("kv_cache", 1);
  const double recent_share = config.number("recent", 0.0, 1.0, /*open=*/true);
  KeyformerScore score;
  score.tau_init = config.number("tau_init", 0.0, kAny, /*open=*/true);
  score.tau_end = config.number("tau_end", 0.0, kAny, /*open=*/true);
  score.noise = config.flag("noise");
  score.seed = static_cast<std::uint64_t>(
      config.integer("seed", 0, std::numeric_limits<std::int64_t>::max()));
  Method method = retaining_method(info, config);
  if (!score.noise) {
    method.unread.emplace("seed", "noise=False draws nothing; set noise=True");
  }
  method.prompt_score = score;
  method.retention = [budget, recent_share, score](const RetentionShape& shape,
                                                   const RequestShape& request) {
    const std::int64_t tokens = budget(request.prompt_tokens);
    const std::int64_t recent = std::max<std::int64_t>(
        1, static_cast<std::int64_t>(recent_share * static_cast<double>(tokens)));
    KeyformerScore own = score;
    own.num_steps = std::max<std::int64_t>(1, request.max_tokens - request.prompt_tokens);
    own.request = request.content;
    return make_keyformer_retention(shape, std::max<std::int64_t>(0, tokens - recent), recent, own);
  };
  return method;
}

}  // namespace hybridgen
