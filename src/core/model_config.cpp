// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/model_config.h"

#include <cstdint>
#include <limits>
#include <string_view>

#include "hybridgen/core/error.h"

namespace hybridgen {

namespace {

// Far above any model's, and so small that of a valid configuration the bytes of all weights, and
// of the keys and values of 2^31 tokens, fit 64 bits.
constexpr std::int64_t kMaxLayers = 4096;
constexpr std::int64_t kMaxHeads = 1 << 16;
constexpr std::int64_t kMaxWidth = 1 << 24;
constexpr std::int64_t kMaxCount = std::numeric_limits<std::int32_t>::max();
constexpr double kMaxElements = 1e15;
constexpr double kMaxTokenBytes = 1 << 30;
// Beyond these, float32 arithmetic gives zeros and infinities.
constexpr double kMinFactor = 1e-30;
constexpr double kMaxFactor = 1e30;

template <typename T>
[[noreturn]] void reject(std::string_view field, const T& value, std::string_view allowed) {
  throw ConfigError(message("[ModelConfig] ",
                            field,
                            " is ",
                            value,
                            "; allowed: ",
                            allowed,
                            "; correct the model's configuration"));
}

void require_count(std::string_view field, std::int64_t value, std::int64_t limit) {
  if (value < 1 || value > limit) reject(field, value, message("1 to ", limit));
}

void require_factor(std::string_view field, double value) {
  if (!(value >= kMinFactor && value <= kMaxFactor)) {
    reject(field, value, message(kMinFactor, " to ", kMaxFactor));
  }
}

// In double: what is refused here may not fit 64 bits.
double elements_of_weights(const ModelConfig& config) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto rows = static_cast<double>(config.head_dim) *
                    static_cast<double>(2 * config.num_heads + 2 * config.num_kv_heads);
  const double layer = hidden * (rows + 3.0 * static_cast<double>(config.ffn_size));
  const double tables =
      static_cast<double>(config.embedding_size) * 2.0 * static_cast<double>(config.vocab_size);
  const bool has_positions = config.position == PositionKind::kLearned;
  return layer * static_cast<double>(config.num_layers) + tables +
         (has_positions ? hidden * static_cast<double>(config.max_positions) : 0.0);
}

double bytes_of_a_token(const ModelConfig& config) {
  constexpr double kKeyAndValue = 2.0 * sizeof(float);
  return kKeyAndValue * static_cast<double>(config.num_layers) *
         static_cast<double>(config.num_kv_heads) * static_cast<double>(config.head_dim);
}

}  // namespace

void ModelConfig::validate() const {
  require_count("num_layers", num_layers, kMaxLayers);
  require_count("hidden_size", hidden_size, kMaxWidth);
  require_count("num_heads", num_heads, kMaxHeads);
  require_count("num_kv_heads", num_kv_heads, kMaxHeads);
  if (num_heads % num_kv_heads != 0) {
    reject("num_kv_heads",
           num_kv_heads,
           message("divisors of num_heads (num_heads is ", num_heads, ")"));
  }
  require_count("head_dim", head_dim, kMaxHeads);
  require_count("ffn_size", ffn_size, kMaxWidth);
  require_count("vocab_size", vocab_size, kMaxCount);
  require_count("max_positions", max_positions, kMaxCount);
  if (embedding_size < 1 || embedding_size > kMaxWidth) {
    reject("embedding_size",
           embedding_size,
           message("1 to ", kMaxWidth, ", hidden_size (", hidden_size, ") unless projected"));
  }
  if (elements_of_weights(*this) > kMaxElements) {
    reject("the number of weights", elements_of_weights(*this), message("<= ", kMaxElements));
  }
  if (bytes_of_a_token(*this) > kMaxTokenBytes) {
    reject("the size of a token's keys and values in float32",
           human_bytes(bytes_of_a_token(*this)),
           message("<= ", human_bytes(kMaxTokenBytes)));
  }
  require_factor("norm_eps", norm_eps);
  if (position_offset < 0 || position_offset > kMaxCount) {
    reject("position_offset", position_offset, message("0 to ", kMaxCount));
  }
  if (position != PositionKind::kRotary) return;

  if (head_dim % 2 != 0) reject("head_dim", head_dim, "even numbers (rotary positions)");
  require_factor("rope_theta", rope_theta);
  require_factor("rope_scaling.factor", rope_scaling.factor);
  if (rope_scaling.factor == 1.0) return;

  require_factor("rope_scaling.low_freq_factor", rope_scaling.low_freq_factor);
  require_factor("rope_scaling.high_freq_factor", rope_scaling.high_freq_factor);
  if (rope_scaling.high_freq_factor <= rope_scaling.low_freq_factor) {
    reject("rope_scaling.high_freq_factor",
           rope_scaling.high_freq_factor,
           message("> low_freq_factor (", rope_scaling.low_freq_factor, ")"));
  }
  require_count(
      "rope_scaling.original_max_positions", rope_scaling.original_max_positions, kMaxCount);
}

}  // namespace hybridgen
