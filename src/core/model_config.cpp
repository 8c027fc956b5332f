// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/model_config.h"

#include <cmath>
#include <cstdint>
#include <string_view>

#include "hybridgen/core/error.h"

namespace hybridgen {

namespace {

template <typename T>
[[noreturn]] void reject(std::string_view field, T value, std::string_view allowed) {
  throw ConfigError(message("[ModelConfig] ",
                            field,
                            " is ",
                            value,
                            "; allowed: ",
                            allowed,
                            "; correct the model's configuration"));
}

void require_positive(std::string_view field, std::int64_t value) {
  if (value < 1) reject(field, value, ">= 1");
}

void require_positive(std::string_view field, double value) {
  if (!(std::isfinite(value) && value > 0)) reject(field, value, "finite and > 0");
}

}  // namespace

void ModelConfig::validate() const {
  require_positive("num_layers", num_layers);
  require_positive("hidden_size", hidden_size);
  require_positive("num_heads", num_heads);
  require_positive("num_kv_heads", num_kv_heads);
  if (num_heads % num_kv_heads != 0) {
    reject("num_kv_heads",
           num_kv_heads,
           message("divisors of num_heads (num_heads is ", num_heads, ")"));
  }
  require_positive("head_dim", head_dim);
  require_positive("ffn_size", ffn_size);
  require_positive("vocab_size", vocab_size);
  require_positive("max_positions", max_positions);
  if (embedding_size < 1) {
    reject("embedding_size",
           embedding_size,
           message(">= 1, hidden_size (", hidden_size, ") unless embeddings are projected"));
  }
  require_positive("norm_eps", norm_eps);
  if (position_offset < 0) reject("position_offset", position_offset, ">= 0");
  if (position != PositionKind::kRotary) return;

  if (head_dim % 2 != 0) reject("head_dim", head_dim, "even numbers (rotary positions)");
  require_positive("rope_theta", rope_theta);
  require_positive("rope_scaling.factor", rope_scaling.factor);
  if (rope_scaling.factor == 1.0) return;

  require_positive("rope_scaling.low_freq_factor", rope_scaling.low_freq_factor);
  require_positive("rope_scaling.high_freq_factor", rope_scaling.high_freq_factor);
  if (rope_scaling.high_freq_factor <= rope_scaling.low_freq_factor) {
    reject("rope_scaling.high_freq_factor",
           rope_scaling.high_freq_factor,
           message("> low_freq_factor (", rope_scaling.low_freq_factor, ")"));
  }
  require_positive("rope_scaling.original_max_positions", rope_scaling.original_max_positions);
}

}  // namespace hybridgen
