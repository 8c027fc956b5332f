// SPDX-License-Identifier: Apache-2.0
// Bounds the logits of a key block by the smallest and largest value of every key dimension, and
// takes the blocks with the largest bounds.
//
// max(q min, q max) = min(q, 0) min + max(q, 0) max, so the bound of a block is a dot product of
// its digest (mins ++ maxs) with the split query. Digests lie as keys of 2D dimensions do, one
// "token" per block, and the logits kernel bounds 32 blocks at a time.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/core/kv_views.h"
#include "hybridgen/selection/token_selector.h"
#include "kernels/cpu_kernels.h"
#include "selection/selector_checks.h"
#include "selection/selectors.h"

namespace hybridgen {

namespace {

std::int64_t blocks_of(std::int64_t tokens) {
  return (tokens + kKeyBlockTokens - 1) / kKeyBlockTokens;
}

/// Split queries [R, 2D] and bounds [R, blocks] of the plan() that runs on this thread.
std::span<float> float_scratch(std::int64_t count) {
  thread_local std::vector<float> scratch;
  if (scratch.size() < static_cast<std::size_t>(count)) {
    scratch.resize(static_cast<std::size_t>(count));
  }
  return scratch;
}

class BlockDigestsSelector final : public TokenSelector {
 public:
  explicit BlockDigestsSelector(const SelectorShape& shape)
      : kernels_(kernels::cpu_kernels(kernels::resolve_isa("auto"))), shape_(shape) {
    require_shape(name(), shape_);
    heads_.resize(static_cast<std::size_t>(shape_.num_layers * shape_.num_kv_heads));
  }

  std::string_view name() const override { return "block_digests"; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPreQkt; }
  PartState state() const override { return {.from_keys = true, .saved = false}; }

  void on_offload(std::int64_t layer,
                  std::int64_t kv_head,
                  TokenRange tokens,
                  const BlockedKeyView& keys) override {
    Head& state = heads_[head_index(name(), shape_, layer, kv_head)];
    require_next(state, tokens, keys);
    const std::int64_t digest_blocks = blocks_of(blocks_of(tokens.end));
    state.digests.resize(
        static_cast<std::size_t>(digest_blocks * 2 * shape_.head_dim * kKeyBlockTokens));
    for (std::int64_t t = tokens.begin; t < tokens.end;) {
      const std::int64_t place = t % kKeyBlockTokens;
      const std::int64_t count = std::min(kKeyBlockTokens - place, tokens.end - t);
      extend(state, keys, t / kKeyBlockTokens, place, count);
      t += count;
    }
    state.num_tokens = tokens.end;
  }

  std::span<const std::int32_t> plan(const PlanContext& context,
                                     std::vector<std::int32_t>& scratch) const override {
    require_k(name(), context);
    const Head& state = heads_[head_index(name(), shape_, context.layer, context.kv_head)];
    require_known(state, context);
    if (context.k == 0) return {};
    const std::int64_t num_blocks = blocks_of(context.num_offloaded);
    const auto room = static_cast<std::size_t>(num_blocks + context.k);
    if (scratch.size() < room) scratch.resize(room);
    const std::span blocks = std::span(scratch).first(static_cast<std::size_t>(num_blocks));
    const std::span positions =
        std::span(scratch).subspan(blocks.size(), static_cast<std::size_t>(context.k));

    const std::span<const float> bounds = block_bounds(state, context, num_blocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    // The last block of all may be short, so one more than k / 32 rounded up can be needed.
    const std::int64_t enough = std::min(num_blocks, blocks_of(context.k) + 1);
    std::partial_sort(blocks.begin(),
                      blocks.begin() + enough,
                      blocks.end(),
                      [bounds](std::int32_t a, std::int32_t b) {
                        const float bound_a = bounds[static_cast<std::size_t>(a)];
                        const float bound_b = bounds[static_cast<std::size_t>(b)];
                        return bound_a > bound_b || (bound_a == bound_b && a < b);
                      });
    const auto tokens_of = [&](std::int64_t block) {
      const std::int64_t begin = block * kKeyBlockTokens;
      return TokenRange{begin, std::min(begin + kKeyBlockTokens, context.num_offloaded)};
    };
    std::int64_t missing = context.k;
    std::size_t num_taken = 0;
    std::int32_t cut_block = 0;
    std::int64_t cut_size = 0;
    while (missing > 0) {
      cut_block = blocks[num_taken++];
      cut_size = std::min(missing, tokens_of(cut_block).size());
      missing -= cut_size;
    }
    std::sort(blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(num_taken));
    auto out = positions.begin();
    for (const std::int32_t block : blocks.first(num_taken)) {
      const TokenRange tokens = tokens_of(block);
      const std::int64_t size = block == cut_block ? cut_size : tokens.size();
      std::iota(out, out + size, static_cast<std::int32_t>(tokens.end - size));
      out += size;
    }
    return positions;
  }

 private:
  struct Head {
    std::vector<float> digests;  // [blocks / 32][2D][32]: mins, then maxs
    std::int64_t num_tokens = 0;
  };

  void require_next(const Head& state, TokenRange tokens, const BlockedKeyView& keys) const {
    if (keys.data == nullptr) {
      throw ConfigError(
          "[block_digests] the offloaded keys lie in rows; allowed: blocks, as in every "
          "composition "
          "that does not ship all keys of a layer");
    }
    if (tokens.begin != state.num_tokens || tokens.end < tokens.begin ||
        tokens.end > keys.capacity) {
      throw ConfigError(message("[block_digests] offloaded tokens are [",
                                tokens.begin,
                                ", ",
                                tokens.end,
                                "); allowed: from ",
                                state.num_tokens,
                                ", the first not yet offloaded, to ",
                                keys.capacity,
                                " at most; offload tokens in order and once"));
    }
    if (keys.head_dim != shape_.head_dim) {
      throw ConfigError(message("[block_digests] head_dim of the keys is ",
                                keys.head_dim,
                                "; allowed: ",
                                shape_.head_dim,
                                "; make the selector with the model's shape"));
    }
  }

  void require_known(const Head& state, const PlanContext& context) const {
    if (context.num_offloaded > state.num_tokens) {
      throw ConfigError(message("[block_digests] n_c is ",
                                context.num_offloaded,
                                "; allowed: at most the ",
                                state.num_tokens,
                                " tokens whose keys were offered; call on_offload first"));
    }
    const auto expected =
        static_cast<std::size_t>(shape_.query_heads_per_kv_head * shape_.head_dim);
    if (context.queries.size() != expected) {
      throw ConfigError(message("[block_digests] queries hold ",
                                context.queries.size(),
                                " numbers; allowed: ",
                                expected,
                                ", those of the KV head's query heads; pass all of them"));
    }
  }

  /// Widens the digest of `block` by its tokens [place, place + count).
  void extend(Head& state,
              const BlockedKeyView& keys,
              std::int64_t block,
              std::int64_t place,
              std::int64_t count) const {
    const auto* data = static_cast<const std::byte*>(keys.data);
    const auto element = static_cast<std::int64_t>(size_of(keys.dtype));
    float* mins = state.digests.data() +
                  block / kKeyBlockTokens * 2 * shape_.head_dim * kKeyBlockTokens +
                  block % kKeyBlockTokens;
    float* maxs = mins + shape_.head_dim * kKeyBlockTokens;
    float values[kKeyBlockTokens];
    for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
      const std::int64_t first =
          ((block - keys.first_token / kKeyBlockTokens) * shape_.head_dim + d) * kKeyBlockTokens +
          place;
      kernels_.scale_to_float(keys.dtype, data + first * element, 1.0F, values, count);
      const auto [low, high] = std::minmax_element(values, values + count);
      float& min = mins[d * kKeyBlockTokens];
      float& max = maxs[d * kKeyBlockTokens];
      min = place == 0 ? *low : std::min(min, *low);
      max = place == 0 ? *high : std::max(max, *high);
    }
  }

  /// Largest bound of each block over the query heads.
  std::span<const float> block_bounds(const Head& state,
                                      const PlanContext& context,
                                      std::int64_t num_blocks) const {
    const std::int64_t num_queries = shape_.query_heads_per_kv_head;
    const std::int64_t dim = shape_.head_dim;
    float* split = float_scratch(num_queries * (2 * dim + num_blocks)).data();
    float* bounds = split + num_queries * 2 * dim;
    for (std::int64_t r = 0; r < num_queries; ++r) {
      for (std::int64_t d = 0; d < dim; ++d) {
        const float query = context.queries[static_cast<std::size_t>(r * dim + d)];
        split[r * 2 * dim + d] = std::min(query, 0.0F);
        split[r * 2 * dim + dim + d] = std::max(query, 0.0F);
      }
    }
    kernels_.blocked_logits({.keys = {.data = state.digests.data(),
                                      .dtype = DType::kFloat32,
                                      .head_dim = 2 * dim,
                                      .capacity = blocks_of(num_blocks) * kKeyBlockTokens},
                             .queries = split,
                             .num_queries = num_queries,
                             .tokens = {0, num_blocks},
                             .logits = bounds,
                             .logits_stride = num_blocks});
    bool is_number = true;
    for (std::int64_t b = 0; b < num_blocks; ++b) {
      for (std::int64_t r = 0; r < num_queries; ++r) {
        const float bound = bounds[r * num_blocks + b];
        is_number &= !std::isnan(bound);
        bounds[b] = std::max(bounds[b], bound);
      }
    }
    if (!is_number) {
      throw NumericError(message("[block_digests] a bound of layer ",
                                 context.layer,
                                 ", KV head ",
                                 context.kv_head,
                                 " is NaN; allowed: numbers; check the checkpoint, or run it in "
                                 "float32 if activations overflow"));
    }
    return {bounds, static_cast<std::size_t>(num_blocks)};
  }

  const kernels::CpuKernels& kernels_;
  SelectorShape shape_;
  std::vector<Head> heads_;  // [layers][KV heads]
};

}  // namespace

std::unique_ptr<TokenSelector> make_block_digests_selector(const SelectorShape& shape) {
  return std::make_unique<BlockDigestsSelector>(shape);
}

}  // namespace hybridgen
