// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

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
  StepScores score(const Step& step) const override {
    const double tau = score_.tau(step.forward);
    if (!score_.noise && tau == 1.0) {
      // The weights as they are: taking logarithms and normalising again would round them.
      return ScoredRetention::score(step);
    }
    // The first row is the noise of all heads.
    thread_local std::vector<float> rows;
    const std::size_t attended = step.positions.size() + 1;
    rows.resize((step.scales.size() + 1) * attended);
    const std::span<float> noise{rows.data(), score_.noise ? attended : 0};
    if (score_.noise) {
      const kernels::GumbelKey key{.seed = score_.seed,
                                   .request = score_.request,
                                   .layer = step.layer,
                                   .kv_head = step.kv_head,
                                   .row = step.position};
      const auto newest = static_cast<std::int32_t>(step.position);
      kernels::exponential_gather(key, step.positions, noise.data());
      kernels::exponential_gather(key, {&newest, 1}, &noise.back());
    }
    float* const first = rows.data() + attended;
    for (std::size_t head = 0; head < step.scales.size(); ++head) {
      const float* weights = step.weights + static_cast<std::int64_t>(head) * step.stride;
      step.scales[head] =
          keyformer_scores({weights, attended}, noise, tau, {first + head * attended, attended});
    }
    return {first, static_cast<std::int64_t>(attended)};
  }

  KeyformerScore score_;
};

}  // namespace

double KeyformerScore::tau(std::int64_t forward) const {
  const std::int64_t reached = std::min(forward, num_steps);
  return std::lerp(
      tau_init, tau_end, static_cast<double>(reached) / static_cast<double>(num_steps));
}

float keyformer_scores(std::span<const float> weights,
                       std::span<const float> exponentials,
                       double tau,
                       std::span<float> scores) {
  static const kernels::CpuKernels& fastest = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  const float sum = fastest.tempered_softmax(weights.data(),
                                             exponentials.empty() ? nullptr : exponentials.data(),
                                             static_cast<float>(tau),
                                             static_cast<std::int64_t>(weights.size()),
                                             scores.data());
  return sum == 0.0F ? 0.0F : 1.0F / sum;
}

std::unique_ptr<RetentionPolicy> make_keyformer_retention(const RetentionShape& shape,
                                                          std::int64_t key_tokens,
                                                          std::int64_t recent,
                                                          const KeyformerScore& score) {
  return std::make_unique<KeyformerRetention>(shape, key_tokens, recent, score);
}

}  // namespace hybridgen
