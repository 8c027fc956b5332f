// SPDX-License-Identifier: Apache-2.0
#include "pipeline/working_memory.h"

#include <algorithm>

#include "device/device_ops.h"
#include "device/row_blocks.h"
#include "models/decoder_model.h"
#include "pipeline/lost_mass.h"
#include "pipeline/offloaded_blocks.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kFloat = 4;
constexpr std::int64_t kLong = 8;

/// Sizes that every bound is made of.
struct Sizes {
  Sizes(const ModelConfig& config, DType dtype)
      : element(static_cast<std::int64_t>(size_of(dtype))),
        widened(dtype == DType::kFloat32 ? 0 : kFloat),
        groups(config.num_kv_heads),
        heads(config.num_heads),
        head_dim(config.head_dim) {}

  std::int64_t element;
  std::int64_t widened;  ///< bytes of an element's float32 copy; float32 itself is not copied
  std::int64_t groups;
  std::int64_t heads;
  std::int64_t head_dim;

  /// Elements of keys, or of values, of so many tokens.
  std::int64_t rows(std::int64_t tokens) const { return groups * tokens * head_dim; }
};

std::int64_t rope_bytes(const ModelConfig& config) {
  // Cosines and sines of half a head's dimensions; while it grows the table before is there, too.
  return config.position == PositionKind::kRotary
             ? 2 * config.max_positions * config.head_dim * kFloat
             : 0;
}

// The largest of what linear(), norm(), rotate() and silu_gate() make for a row.
std::int64_t momentary_row_bytes(const ModelConfig& config, DType dtype) {
  const Sizes s(config, dtype);
  const std::int64_t widest = std::max({(s.heads + 2 * s.groups) * s.head_dim,
                                        2 * config.ffn_size,
                                        config.hidden_size,
                                        config.embedding_size});
  const std::int64_t product = widest * s.element;
  const std::int64_t normed =
      std::max(config.hidden_size, config.qk_norm ? s.heads * s.head_dim : 0);
  const std::int64_t norm = normed * (4 * kFloat + 2 * s.element);
  const std::int64_t rotated = s.head_dim * kFloat * (1 + 3 * s.heads);
  return std::max({product, norm, rotated});
}

// float32 logits: the tensor and the product that it is copied from; where LibTorch has no product
// of 16-bit matrices into float32, a piece of the weight in float32.
std::int64_t head_bytes(const ModelConfig& config, DType dtype, std::int64_t rows) {
  const Sizes s(config, dtype);
  const std::int64_t weight = config.vocab_size * config.embedding_size;
  return 2 * rows * config.vocab_size * kFloat + rows * config.embedding_size * s.widened +
         std::min(weight, kWideElements + config.embedding_size) * s.widened;
}

// resident_logits() and merge(): keys and values in float32, those of the payload masked, both
// together; logits, indices and weights over all of them.
std::int64_t merge_bytes(const Sizes& s, const RequestPlan& plan) {
  const std::int64_t resident = plan.window;
  const std::int64_t payload = plan.staging.union_rows;
  const std::int64_t all = resident + payload;
  return s.rows(resident) * s.widened + s.rows(payload) * (2 * s.widened + kFloat) +
         s.rows(all) * kFloat + s.heads * all * 8 * kFloat +
         s.heads * plan.staging.max_chosen * (kLong + kFloat);
}

// Keys that the device scores and ranks by itself: sparse values' or the planner's.
std::int64_t ranking_bytes(const Sizes& s, const RequestPlan& plan) {
  const std::int64_t tokens = plan.max_offloaded + plan.window;
  return s.rows(tokens) * (s.widened + s.element) + s.heads * tokens * 4 * (kFloat + kLong);
}

// Tables of a prompt that turns otherwise than steps at its positions: of a chunk, with what its
// angles are made of.
std::int64_t prompt_rope_bytes(const ModelConfig& config, std::int64_t rows, std::int64_t prompt) {
  const bool is_own =
      config.position == PositionKind::kRotary && config.rope_scaling.depends_on_length(prompt);
  return is_own ? 2 * rows * config.head_dim * kFloat : 0;
}

// The window moves to its buffer's front, or is rotated to its places; before that the prompt's
// rotation is undone.
std::int64_t window_bytes(const ModelConfig& config, const Sizes& s, const RequestPlan& plan) {
  const std::int64_t backwards = config.position == PositionKind::kRotary
                                     ? config.max_positions * config.head_dim * kFloat
                                     : 0;
  const std::int64_t prompt = plan.shape.prompt_tokens;
  return s.rows(std::max(plan.window, plan.prompt_capacity)) * (s.element + 4 * kFloat) +
         backwards + prompt_rope_bytes(config, prompt, prompt);
}

// partial_attention() for a block of keys: two tensors of logits and their mask; the block's keys
// or values.
std::int64_t attention_bytes(const Sizes& s, std::int64_t rows, std::int64_t keys) {
  const std::int64_t block =
      std::clamp<std::int64_t>(kAttentionBlockElements / (s.heads * rows), 1, keys);
  return 2 * s.heads * rows * block * kFloat + 2 * rows * block + s.rows(block) * s.widened;
}

// Sums of a prompt's weights, which go over its keys once more.
std::int64_t score_bytes(const Sizes& s, std::int64_t rows, std::int64_t keys) {
  const std::int64_t block = std::min(score_block_rows(s.heads * keys), rows) * s.heads * keys;
  return s.rows(keys) * s.widened + 4 * block * kFloat + 3 * s.heads * keys * kFloat;
}

std::int64_t prefill_bytes(const Sizes& s,
                           const Method& method,
                           const RequestPlan& plan,
                           std::int64_t rows) {
  const std::int64_t prompt = plan.shape.prompt_tokens;
  std::int64_t bytes = attention_bytes(s, rows, prompt);
  if (!method.parts.empty()) {
    bytes = std::max(bytes, score_bytes(s, rows, prompt));
  }
  // The query, three results of Prefill::attend and what merging two of them takes.
  bytes += s.heads * rows * (s.head_dim + 2) * 9 * kFloat;
  // Rows that come back from the host, and those that leave.
  if (plan.max_offloaded > 0) {
    bytes += 2 * s.rows(std::min(prompt, OffloadedBlocks::kTokens)) * s.element;
    bytes += s.rows(rows) * (s.element + 2 * kFloat);
  }
  return bytes;
}

}  // namespace

std::int64_t engine_device_bytes(const ModelConfig& config, DType dtype, const EngineRows& rows) {
  return rope_bytes(config) + BlockWorkspace::required_bytes(config, dtype, rows.prefill) +
         BlockWorkspace::required_bytes(config, dtype, 1) +
         std::max(rows.prefill, rows.decode) * momentary_row_bytes(config, dtype) +
         head_bytes(config, dtype, std::max(rows.scored, rows.decode));
}

std::int64_t decode_row_bytes(const ModelConfig& config, DType dtype) {
  // With the norm of a guess, where its tokens and two layers' payloads lie, and what is planned.
  const std::int64_t described = static_cast<std::int64_t>(sizeof(kernels::StepRow)) +
                                 2 * static_cast<std::int64_t>(sizeof(kernels::PlanRow)) + kLong +
                                 2 * static_cast<std::int64_t>(sizeof(kernels::PayloadRow)) +
                                 2 * config.num_kv_heads * kLong;
  return BlockWorkspace::required_bytes(config, dtype, 1) + config.vocab_size * kFloat +
         config.hidden_size * static_cast<std::int64_t>(size_of(dtype)) + described +
         LostMass::device_bytes(config);
}

std::int64_t momentary_device_bytes(const ModelConfig& config,
                                    DType dtype,
                                    const Method& method,
                                    const RequestPlan& plan,
                                    std::int64_t prefill_rows) {
  const Sizes s(config, dtype);
  const std::int64_t rows = std::clamp<std::int64_t>(
      plan.shape.prompt_tokens, 1, std::max<std::int64_t>(1, prefill_rows));
  return std::max({merge_bytes(s, plan),
                   ranking_bytes(s, plan),
                   window_bytes(config, s, plan),
                   prefill_bytes(s, method, plan, rows) +
                       prompt_rope_bytes(config, rows, plan.shape.prompt_tokens)});
}

std::int64_t host_working_bytes(const ModelConfig& config,
                                DType dtype,
                                const Method& method,
                                const RequestPlan& plan,
                                const EngineRows& rows,
                                std::int64_t host_threads) {
  const Sizes s(config, dtype);
  const bool is_rotary = config.position == PositionKind::kRotary;
  const std::int64_t positions = std::min(
      std::max(plan.shape.max_tokens, DecoderModel::kFirstPositions), config.max_positions);
  const std::int64_t rope = (is_rotary ? positions * config.head_dim * kFloat : 0) +
                            prompt_rope_bytes(config, rows.prefill, plan.shape.prompt_tokens);
  // Of the chunk itself; of what was there before it, and the sum with it, if it is not the first.
  const std::int64_t outputs = plan.shape.prompt_tokens > rows.prefill ? 3 : 1;
  const std::int64_t attended = outputs * s.heads * rows.prefill * (s.head_dim + 1) * kFloat;
  std::int64_t streamed = 0;
  std::int64_t scratch = 0;
  if (plan.max_offloaded > 0) {
    streamed = 2 * s.rows(OffloadedBlocks::kTokens) * s.element;
    // Logits of a group's query heads, and which tokens were planned.
    scratch = 2 * config.query_heads_per_kv_head() * plan.max_offloaded * kFloat;
  }
  const std::int64_t scored = method.has(PartRole::kPromptScores)
                                  ? score_bytes(s, rows.prefill, plan.shape.prompt_tokens)
                                  : 0;
  return rope + BlockWorkspace::required_bytes(config, dtype, rows.prefill + 1) + attended +
         scored + streamed + host_threads * scratch +
         rows.decode * (decode_row_bytes(config, dtype) + LostMass::host_bytes(config) -
                        LostMass::device_bytes(config));
}

}  // namespace hybridgen
