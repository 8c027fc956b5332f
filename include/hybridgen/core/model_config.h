// SPDX-License-Identifier: Apache-2.0
// What varies between decoder-only families, as data. One transformer implementation reads it;
// a family (OPT, Llama, Qwen2) is a reader of config.json that fills it in.
#pragma once

#include <cstdint>
#include <string>

#include "hybridgen/core/types.h"

namespace hybridgen {

enum class NormKind : std::uint8_t { kRms, kLayer };
enum class Activation : std::uint8_t { kSiluGate, kRelu };
enum class PositionKind : std::uint8_t { kRotary, kLearned };

/// Rotary scaling of Llama 3.x ("llama3"); factor 1 means none.
struct RopeScaling {
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  std::int64_t original_max_positions = 8192;
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
