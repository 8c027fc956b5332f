// SPDX-License-Identifier: Apache-2.0
// What varies between decoder-only families, as data. One transformer implementation reads it;
// a family (OPT, Llama, Qwen3) is a reader of config.json that fills it in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hybridgen/core/types.h"

namespace hybridgen {

enum class NormKind : std::uint8_t { kRms, kLayer };
enum class Activation : std::uint8_t { kSiluGate, kRelu };
enum class PositionKind : std::uint8_t { kRotary, kLearned };

/// How rotary frequencies are scaled. Computed as transformers does it with a KV cache: a token
/// keeps the rotation that it got in the pass that it came with, and the length of a pass is its
/// last position plus one (docs/models.md).
enum class RopeKind : std::uint8_t {
  kNone,
  kLinear,   ///< all divided by the factor
  kDynamic,  ///< in passes longer than the original positions, of a base that grows with the length
  kYarn,     ///< short wavelengths kept, long ones divided by the factor, those between blended
  kLongRope,  ///< each divided by a factor of its own; another one in passes longer than the
              ///< original
  kLlama3     ///< as yarn, with bounds given as wavelengths
};

/// A kind reads the numbers that name it and no others.
struct RopeScaling {
  RopeKind kind = RopeKind::kNone;
  double factor = 1.0;                         ///< linear, dynamic, yarn, llama3
  std::int64_t original_max_positions = 8192;  ///< dynamic, yarn, longrope, llama3: before scaling
  /// yarn, longrope: cosines and sines are multiplied by it, so logits by its square.
  double attention_factor = 1.0;
  double low_freq_factor = 1.0;   ///< llama3
  double high_freq_factor = 4.0;  ///< llama3
  double beta_fast = 32.0;        ///< yarn: turns within the original positions, kept from there
  double beta_slow = 1.0;         ///< yarn: divided by the factor up to there
  bool truncate = true;           ///< yarn: the bounds are whole dimensions
  std::vector<double> short_factors;  ///< longrope: [D / 2]
  std::vector<double> long_factors;   ///< longrope: [D / 2], in passes longer than the original

  /// Whether a pass over so many tokens turns them otherwise than a shorter one.
  bool depends_on_length(std::int64_t length) const {
    return (kind == RopeKind::kDynamic || kind == RopeKind::kLongRope) &&
           length > original_max_positions;
  }
};

struct ModelConfig {
  std::string architecture = "llama";  ///< family name, for messages only
  std::int64_t num_layers = 0;         ///< L
  std::int64_t hidden_size = 0;        ///< M
  std::int64_t num_heads = 0;          ///< H
  std::int64_t num_kv_heads = 0;       ///< G, divides H
  std::int64_t head_dim = 0;           ///< D, not necessarily M / H; even if rotary
  std::int64_t ffn_size = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_positions = 0;
  std::int64_t embedding_size = 0;  ///< OPT-350M's word_embed_proj_dim; equals M otherwise
  NormKind norm = NormKind::kRms;
  double norm_eps = 1e-5;
  bool pre_norm = true;    ///< false: norm after the residual sum (OPT-350M)
  bool final_norm = true;  ///< norm before the head
  Activation activation = Activation::kSiluGate;
  PositionKind position = PositionKind::kRotary;
  std::int64_t position_offset = 0;  ///< OPT: row = position + 2
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool qk_norm = false;  ///< RMS norm of each query and key head over D, before its rotation
  bool qkv_bias = false;
  bool output_bias = false;  ///< bias of the attention output projection
  bool ffn_bias = false;
  bool tie_embeddings = false;

  std::int64_t query_heads_per_kv_head() const { return num_heads / num_kv_heads; }
  /// Bytes of K (or of V) of one token in one layer: G * D * element.
  std::int64_t kv_row_bytes(DType dtype) const {
    return num_kv_heads * head_dim * static_cast<std::int64_t>(size_of(dtype));
  }

  /// Throws ConfigError naming the first inconsistent field.
  void validate() const;
};

}  // namespace hybridgen
