// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "kernels/gumbel.h"
#include "selection/keyformer_scores.h"
#include "selection/scored_retention.h"

namespace hybridgen {

namespace {

constexpr std::string_view kName = "keyformer retention";

void check_temperature(std::string_view argument, double value) {
  if (!(value > 0.0) || std::isinf(value)) {
    throw ConfigError(message("[",
                              kName,
                              "] ",
                              argument,
                              " is ",
                              value,
                              "; allowed: > 0 and finite; pass 1 for the softmax's own scores"));
  }
}

class KeyformerRetention final : public ScoredRetention {
 public:
  KeyformerRetention(const RetentionShape& shape,
                     std::int64_t key_tokens,
                     std::int64_t recent,
                     const KeyformerScore& score)
      : ScoredRetention(
            kName,
            shape,
            check_count(kName, "key tokens", key_tokens, 0, "pass 0 for recent tokens only"),
            check_count(kName, "recent", recent, 1, "the newest token is always kept")),
        score_(score) {
    check_temperature("tau_init", score.tau_init);
    check_temperature("tau_end", score.tau_end);
    check_count(kName, "num_steps", score.num_steps, 1, "pass the number of tokens to generate");
  }

 private:
  void add_scores(const Step& step,
                  std::span<double> scores,
                  std::span<float> scratch) const override {
    const double tau = score_.tau(step.forward);
    if (!score_.noise && tau == 1.0) {
      // The weights as they are: taking logarithms and normalising again would round them.
      add_to(scores, step.weights);
      return;
    }
    if (score_.noise) {
      const kernels::GumbelKey key{.seed = score_.seed,
                                   .request = score_.request,
                                   .layer = step.layer,
                                   .query_head = step.query_head,
                                   .row = step.position};
      kernels::gumbel_gather(key, step.positions, scratch.data());
      scratch.back() = kernels::gumbel_at(key, step.position);
    } else {
      std::fill(scratch.begin(), scratch.end(), 0.0F);
    }
    keyformer_scores(step.weights, tau, scratch);
    add_to(scores, scratch);
  }

  KeyformerScore score_;
};

}  // namespace

double KeyformerScore::tau(std::int64_t forward) const {
  const std::int64_t reached = std::min(forward, num_steps);
  return std::lerp(
      tau_init, tau_end, static_cast<double>(reached) / static_cast<double>(num_steps));
}

void keyformer_scores(std::span<const float> weights, double tau, std::span<float> scores) {
  static const kernels::CpuKernels& fastest = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  fastest.keyformer_scores(weights.data(),
                           static_cast<float>(tau),
                           static_cast<std::int64_t>(weights.size()),
                           scores.data());
}

std::unique_ptr<RetentionPolicy> make_keyformer_retention(const RetentionShape& shape,
                                                          std::int64_t key_tokens,
                                                          std::int64_t recent,
                                                          const KeyformerScore& score) {
  return std::make_unique<KeyformerRetention>(shape, key_tokens, recent, score);
}

}  // namespace hybridgen
