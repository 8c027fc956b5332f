// SPDX-License-Identifier: Apache-2.0
#include "selection/hgca_selector.h"

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
#include "selection/selector_checks.h"

namespace hybridgen {

namespace {

class HgcaSelector final : public TokenSelector {
 public:
  HgcaSelector(const SelectorShape& shape, const HgcaOptions& options)
      : shape_(shape),
        alpha_(static_cast<float>(options.alpha)),
        beta_(static_cast<float>(options.beta)),
        keep_min_(options.keep_min),
        groups_(std::min(options.groups, shape.num_kv_heads)) {
    require_shape(name(), shape_);
    require(options.alpha >= 0.0 && options.alpha <= 1.0,
            "alpha",
            options.alpha,
            "0 to 1; pass 1 for the newest weight only");
    require(options.beta >= 0.0, "beta", options.beta, ">= 0; pass 0 to keep every token");
    require(options.keep_min >= 0, "keep_min", options.keep_min, ">= 0; pass 0 for no minimum");
    require(options.groups >= 1,
            "groups",
            options.groups,
            ">= 1; pass 1 to let all KV heads keep equally many");
    heads_.resize(static_cast<std::size_t>(shape_.num_layers * shape_.num_kv_heads));
    leaving_.resize(static_cast<std::size_t>(shape_.num_layers));
    reconsidered_.resize(static_cast<std::size_t>(shape_.num_layers));
  }

  std::string_view name() const override { return "hgca"; }
  bool reads_keys() const override { return false; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPreQkt; }
  PrefillWeights prefill_weights() const override { return PrefillWeights::kLocal; }
  bool wants_decode_weights() const override { return true; }

  std::span<const std::int32_t> plan(const PlanContext& context,
                                     std::vector<std::int32_t>& /*scratch*/) const override {
    return heads_[head_index(name(), shape_, context.layer, context.kv_head)].contextual;
  }

  void on_offload(std::int64_t layer,
                  std::int64_t kv_head,
                  TokenRange tokens,
                  const BlockedKeyView& /*keys*/) override {
    Head& state = head(layer, kv_head);
    if (tokens.begin != state.num_offloaded || tokens.end < tokens.begin) {
      throw ConfigError(message("[hgca] offloaded tokens are [",
                                tokens.begin,
                                ", ",
                                tokens.end,
                                "); allowed: from ",
                                state.num_offloaded,
                                ", the first not yet offloaded; offload in order and once"));
    }
    if (tokens.empty()) return;
    const std::int64_t num_resident = std::max(state.resident.end, tokens.end) - tokens.begin;
    Block& block = leaving_[static_cast<std::size_t>(layer)];
    const std::span<float> salience = begin_head(block, layer, kv_head, tokens);
    const std::int64_t num_queries = shape_.query_heads_per_kv_head;
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      // A token that no step has attended to has weight 0.
      std::span<const float> averages;
      if (state.resident.contains(t)) {
        averages = std::span(state.averages)
                       .subspan(static_cast<std::size_t>((t - state.resident.begin) * num_queries),
                                static_cast<std::size_t>(num_queries));
      }
      salience[static_cast<std::size_t>(t - tokens.begin)] = largest(averages, 1.0F);
    }
    forget_before(state, tokens.end);
    state.num_offloaded = tokens.end;
    end_head(block, layer, kv_head, num_resident);
  }

  void on_prefill(std::int64_t layer,
                  std::int64_t kv_head,
                  const PrefillAttention& attention) override {
    Head& state = head(layer, kv_head);
    if (attention.num_rows == 0 || attention.tokens.empty()) return;
    require_queries(attention.num_queries);
    const float share = 1.0F / static_cast<float>(attention.num_rows);
    if (!attention.is_offloaded) {
      average(state, attention.tokens, attention.sums, attention.stride, share, 1.0F);
      return;
    }
    if (attention.tokens.begin < 0 || attention.tokens.end > state.num_offloaded) {
      throw ConfigError(message("[hgca] offloaded tokens of a prompt chunk are [",
                                attention.tokens.begin,
                                ", ",
                                attention.tokens.end,
                                "); allowed: inside [0, ",
                                state.num_offloaded,
                                "); call on_offload first"));
    }
    Block& block = reconsidered_[static_cast<std::size_t>(layer)];
    const std::span<float> salience = begin_head(block, layer, kv_head, attention.tokens);
    column_.resize(static_cast<std::size_t>(attention.num_queries));
    for (std::size_t j = 0; j < salience.size(); ++j) {
      for (std::size_t r = 0; r < column_.size(); ++r) {
        column_[r] = attention.sums[static_cast<std::int64_t>(r) * attention.stride +
                                    static_cast<std::int64_t>(j)];
      }
      salience[j] = largest(column_, share);
    }
    end_head(block, layer, kv_head, state.num_offloaded);
  }

  void on_decode(std::int64_t layer,
                 std::int64_t kv_head,
                 const DecodeAttention& attention) override {
    Head& state = head(layer, kv_head);
    if (attention.resident.empty()) return;
    require_queries(attention.num_queries);
    const std::int64_t num_chosen = attention.positions == nullptr ? 0 : attention.num_chosen;
    average(
        state, attention.resident, attention.weights + num_chosen, attention.stride, 1.0F, alpha_);
  }

 private:
  struct Head {
    TokenRange resident;          // tokens with an average
    std::vector<float> averages;  // [resident][query heads]
    std::int64_t num_offloaded = 0;
    std::vector<std::int32_t> contextual;
  };

  /// Tokens of one layer that wait until all its KV heads have offered their weights.
  struct Block {
    TokenRange tokens;
    std::int64_t num_heads = 0;         // that have offered
    std::vector<float> salience;        // [KV heads][tokens]
    std::vector<std::int64_t> salient;  // [groups]: the most that a head of the group would keep
  };

  template <typename T>
  static void require(bool is_allowed, std::string_view field, T value, std::string_view allowed) {
    if (is_allowed) return;
    throw ConfigError(message("[hgca] ", field, " is ", value, "; allowed: ", allowed));
  }

  void require_queries(std::int64_t num_queries) const {
    if (num_queries == shape_.query_heads_per_kv_head) return;
    throw ConfigError(message("[hgca] weights are of ",
                              num_queries,
                              " query heads; allowed: ",
                              shape_.query_heads_per_kv_head,
                              "; make the selector with the model's shape"));
  }

  Head& head(std::int64_t layer, std::int64_t kv_head) {
    return heads_[head_index(name(), shape_, layer, kv_head)];
  }

  std::size_t group_of(std::int64_t kv_head) const {
    return static_cast<std::size_t>(kv_head * groups_ / shape_.num_kv_heads);
  }

  /// NaN if any of them is, so that it is noticed.
  static float largest(std::span<const float> weights, float scale) {
    float result = 0.0F;
    for (const float weight : weights) {
      if (!(weight * scale <= result)) result = weight * scale;
      if (std::isnan(result)) break;
    }
    return result;
  }

  void average(Head& state,
               TokenRange tokens,
               const float* weights,
               std::int64_t stride,
               float scale,
               float share_of_new) const {
    if (tokens.begin < state.resident.begin || tokens.begin > state.resident.end) {
      state.resident = {tokens.begin, tokens.begin};
    }
    const std::int64_t known_end = state.resident.end;
    state.resident.end = std::max(known_end, tokens.end);
    const std::int64_t num_queries = shape_.query_heads_per_kv_head;
    state.averages.resize(static_cast<std::size_t>(state.resident.size() * num_queries));
    float* averages = state.averages.data() + (tokens.begin - state.resident.begin) * num_queries;
    const std::int64_t num_known =
        std::clamp<std::int64_t>(known_end - tokens.begin, 0, tokens.size());
    for (std::int64_t r = 0; r < num_queries; ++r) {
      const float* now = weights + r * stride;
      for (std::int64_t j = 0; j < num_known; ++j) {
        float& mean = averages[j * num_queries + r];
        mean = share_of_new * (now[j] * scale) + (1.0F - share_of_new) * mean;
      }
      for (std::int64_t j = num_known; j < tokens.size(); ++j) {
        averages[j * num_queries + r] = now[j] * scale;
      }
    }
  }

  void forget_before(Head& state, std::int64_t position) const {
    const std::int64_t gone =
        std::clamp<std::int64_t>(position - state.resident.begin, 0, state.resident.size());
    state.averages.erase(state.averages.begin(),
                         state.averages.begin() + gone * shape_.query_heads_per_kv_head);
    state.resident.begin += gone;
    if (state.resident.empty()) state.resident = {position, position};
  }

  /// Where the salience of the head's tokens goes.
  std::span<float> begin_head(Block& block,
                              std::int64_t layer,
                              std::int64_t kv_head,
                              TokenRange tokens) const {
    if (kv_head != block.num_heads || (kv_head > 0 && !(tokens == block.tokens))) {
      throw ConfigError(message("[hgca] KV head ",
                                kv_head,
                                " of layer ",
                                layer,
                                " offers tokens [",
                                tokens.begin,
                                ", ",
                                tokens.end,
                                "); allowed: KV head ",
                                block.num_heads,
                                ", with the tokens of those before it; go through the KV heads of "
                                "a layer in ascending order"));
    }
    const auto size = static_cast<std::size_t>(tokens.size());
    if (kv_head == 0) {
      block.tokens = tokens;
      block.salience.resize(static_cast<std::size_t>(shape_.num_kv_heads) * size);
      block.salient.assign(static_cast<std::size_t>(groups_), 0);
    }
    return std::span(block.salience).subspan(static_cast<std::size_t>(kv_head) * size, size);
  }

  /// `num_attended`: tokens that the weights are spread over.
  void end_head(Block& block, std::int64_t layer, std::int64_t kv_head, std::int64_t num_attended) {
    const float threshold = beta_ / static_cast<float>(num_attended);
    std::int64_t num_salient = 0;
    for (const float salience : salience_of(block, kv_head)) {
      if (std::isnan(salience)) {
        throw NumericError(message("[hgca] an attention weight of layer ",
                                   layer,
                                   ", KV head ",
                                   kv_head,
                                   " is NaN; allowed: numbers; check the checkpoint, or run it in "
                                   "float32 if activations overflow"));
      }
      num_salient += salience >= threshold;
    }
    std::int64_t& most = block.salient[group_of(kv_head)];
    most = std::max(most, num_salient);
    if (++block.num_heads < shape_.num_kv_heads) return;
    for (std::int64_t g = 0; g < shape_.num_kv_heads; ++g) choose(block, layer, g);
    block.num_heads = 0;
  }

  std::span<const float> salience_of(const Block& block, std::int64_t kv_head) const {
    const auto size = static_cast<std::size_t>(block.tokens.size());
    return std::span(block.salience).subspan(static_cast<std::size_t>(kv_head) * size, size);
  }

  /// Replaces what the contextual cache holds of the block's tokens by the head's most salient.
  void choose(const Block& block, std::int64_t layer, std::int64_t kv_head) {
    const std::span<const float> salience = salience_of(block, kv_head);
    const std::int64_t count =
        std::min(block.tokens.size(), std::max(keep_min_, block.salient[group_of(kv_head)]));
    chosen_.resize(static_cast<std::size_t>(count));
    values_.resize(static_cast<std::size_t>(count));
    kernels::top_k(salience.data(),
                   block.tokens.size(),
                   count,
                   chosen_.data(),
                   values_.data(),
                   top_k_scratch_);
    for (std::int32_t& position : chosen_) {
      position += static_cast<std::int32_t>(block.tokens.begin);
    }
    std::vector<std::int32_t>& contextual = head(layer, kv_head).contextual;
    const auto place = [&](std::int64_t position) {
      return std::lower_bound(contextual.begin(), contextual.end(), position);
    };
    const auto at = contextual.erase(place(block.tokens.begin), place(block.tokens.end));
    contextual.insert(at, chosen_.begin(), chosen_.end());
  }

  SelectorShape shape_;
  float alpha_;
  float beta_;
  std::int64_t keep_min_;
  std::int64_t groups_;
  std::vector<Head> heads_;          // [layers][KV heads]
  std::vector<Block> leaving_;       // [layers]
  std::vector<Block> reconsidered_;  // [layers]
  // Scratch of the hooks, which never overlap.
  std::vector<float> column_;
  std::vector<std::int32_t> chosen_;
  std::vector<float> values_;
  std::vector<float> top_k_scratch_;
};

}  // namespace

std::unique_ptr<TokenSelector> make_hgca_selector(const SelectorShape& shape,
                                                  const HgcaOptions& options) {
  return std::make_unique<HgcaSelector>(shape, options);
}

}  // namespace hybridgen
