// SPDX-License-Identifier: Apache-2.0
// Ranks offloaded tokens by the attention weight they have gathered so far. The weights of a step
// exist only after the device's softmax, so a step is ranked with the scores of the steps before.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "kernels/cpu_kernels.h"
#include "selection/keyformer_scores.h"
#include "selection/selector_checks.h"
#include "selection/selectors.h"

namespace hybridgen {

namespace {

class RunningScoreSelector final : public TokenSelector {
 public:
  /// The temperature rises from 1 to 2 over `tempering_steps` decode steps; 0: it stays 1.
  RunningScoreSelector(std::string_view name,
                       const SelectorShape& shape,
                       std::int64_t tempering_steps)
      : name_(name), shape_(shape), tempering_steps_(tempering_steps) {
    require_shape(name_, shape_);
    heads_.resize(static_cast<std::size_t>(shape_.num_layers * shape_.num_kv_heads));
    thresholds_.resize(heads_.size() * static_cast<std::size_t>(shape_.query_heads_per_kv_head),
                       std::numeric_limits<float>::quiet_NaN());
  }

  std::string_view name() const override { return name_; }
  bool reads_keys() const override { return false; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPostQkt; }
  PrefillWeights prefill_weights() const override { return PrefillWeights::kGlobal; }
  bool wants_decode_weights() const override { return true; }

  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& scratch) const override {
    require_room(name_, logits, positions, values);
    const std::int64_t kv_head = query_head / shape_.query_heads_per_kv_head;
    const std::size_t head = head_index(name_, shape_, layer, kv_head);
    const std::vector<float>& scores = heads_[head].scores;
    const std::size_t known = std::min(logits.size(), scores.size());
    const std::size_t ranked = std::min(positions.size(), known);
    bool is_number = kernels::top_k(scores.data(),
                                    static_cast<std::int64_t>(known),
                                    static_cast<std::int64_t>(ranked),
                                    positions.data(),
                                    values.data(),
                                    scratch,
                                    &thresholds_[threshold_index(head, query_head)]);
    // Tokens beyond those ever seen have score 0, the lowest there is: they rank last, in order.
    for (std::size_t i = ranked; i < positions.size(); ++i) {
      positions[i] = static_cast<std::int32_t>(known + i - ranked);
    }
    for (std::size_t i = 0; is_number && i < positions.size(); ++i) {
      values[i] = logits[static_cast<std::size_t>(positions[i])];
      is_number = !std::isnan(values[i]);
    }
    if (!is_number) {
      throw NumericError(message("[",
                                 name_,
                                 "] a logit or an attention weight of layer ",
                                 layer,
                                 ", query head ",
                                 query_head,
                                 " is NaN; allowed: numbers; check the checkpoint, or run it in "
                                 "float32 if activations overflow"));
    }
  }

  void on_offload(std::int64_t layer,
                  std::int64_t kv_head,
                  TokenRange tokens,
                  const BlockedKeyView& /*keys*/) override {
    grow(head(layer, kv_head), tokens.end);
  }

  void on_prefill(std::int64_t layer,
                  std::int64_t kv_head,
                  const PrefillAttention& attention) override {
    Head& state = head(layer, kv_head);
    grow(state, attention.tokens.end);
    for (std::int64_t r = 0; r < attention.num_queries; ++r) {
      add(state, attention.tokens, attention.sums + r * attention.stride, 1.0F);
    }
  }

  void on_decode(std::int64_t layer,
                 std::int64_t kv_head,
                 const DecodeAttention& attention) override {
    Head& state = head(layer, kv_head);
    grow(state, attention.resident.end);
    ++state.decode_steps;
    const std::int64_t num_chosen = attention.positions == nullptr ? 0 : attention.num_chosen;
    for (std::int64_t r = 0; r < attention.num_queries; ++r) {
      const auto [weights, scale] =
          tempered(state,
                   {attention.weights + r * attention.stride,
                    static_cast<std::size_t>(num_chosen) +
                        static_cast<std::size_t>(attention.resident.size())});
      const std::int32_t* positions = attention.positions + r * attention.positions_stride;
      for (std::int64_t j = 0; j < num_chosen; ++j) {
        HYBRIDGEN_DCHECK(positions[j] >= 0 && positions[j] < attention.resident.begin);
        state.scores[static_cast<std::size_t>(positions[j])] += weights[j] * scale;
      }
      add(state, attention.resident, weights + num_chosen, scale);
    }
  }

 private:
  struct Head {
    std::vector<float> scores;  // by absolute position, so that leaving the device changes nothing
    std::int64_t decode_steps = 0;
  };

  Head& head(std::int64_t layer, std::int64_t kv_head) {
    return heads_[head_index(name_, shape_, layer, kv_head)];
  }

  static void grow(Head& state, std::int64_t num_tokens) {
    if (state.scores.size() < static_cast<std::size_t>(num_tokens)) {
      state.scores.resize(static_cast<std::size_t>(num_tokens));
    }
  }

  static void add(Head& state, TokenRange tokens, const float* weights, float scale) {
    float* scores = state.scores.data() + tokens.begin;
    for (std::int64_t j = 0; j < tokens.size(); ++j) scores[j] += weights[j] * scale;
  }

  std::size_t threshold_index(std::size_t head, std::int64_t query_head) const {
    const std::int64_t per_group = shape_.query_heads_per_kv_head;
    return head * static_cast<std::size_t>(per_group) +
           static_cast<std::size_t>(query_head % per_group);
  }

  /// softmax(ln(weights) / temperature), as numbers and a factor: raises small weights, keeps their
  /// order and their sum.
  std::pair<const float*, float> tempered(const Head& state, std::span<const float> weights) {
    if (tempering_steps_ == 0) return {weights.data(), 1.0F};
    const auto step = static_cast<double>(std::min(state.decode_steps, tempering_steps_));
    tempered_.resize(weights.size());
    const double tau = 1.0 + step / static_cast<double>(tempering_steps_);
    const float scale = keyformer_scores(weights, {}, tau, tempered_);
    return {tempered_.data(), scale};
  }

  std::string_view name_;
  SelectorShape shape_;
  std::int64_t tempering_steps_;
  std::vector<Head> heads_;      // [layers][KV heads]
  std::vector<float> tempered_;  // one row; hooks never overlap
  /// [layers][query heads] where the step before found its tokens. Saves time and changes no
  /// result; a head's element is touched by one task at a time.
  mutable std::vector<float> thresholds_;
};

}  // namespace

std::unique_ptr<TokenSelector> make_h2o_selector(const SelectorShape& shape) {
  return std::make_unique<RunningScoreSelector>("h2o", shape, 0);
}

std::unique_ptr<TokenSelector> make_keyformer_selector(const SelectorShape& shape,
                                                       std::int64_t num_steps) {
  if (num_steps < 1) {
    throw ConfigError(message("[keyformer] num_steps is ",
                              num_steps,
                              "; allowed: >= 1; pass the number of tokens to generate"));
  }
  return std::make_unique<RunningScoreSelector>("keyformer", shape, num_steps);
}

}  // namespace hybridgen
