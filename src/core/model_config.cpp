// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/model_config.h"

#include <cstdint>
#include <string_view>

#include "core/option_tables.h"
#include "hybridgen/core/error.h"

namespace hybridgen {

namespace {

// Far above any model's, and so small that of a valid configuration the bytes of all weights, and
// of the keys and values of 2^31 tokens, fit 64 bits.
constexpr std::int64_t kMaxLayers = 4096;
constexpr std::int64_t kMaxHeads = 1 << 16;
constexpr std::int64_t kMaxWidth = 1 << 24;
constexpr double kMaxElements = 1e15;
constexpr double kMaxTokenBytes = 1 << 30;
// Beyond these, float32 arithmetic gives zeros and infinities.
constexpr Interval kFactor{1e-30, 1e30};

constexpr const char* kScaling = "ModelConfig.rope_scaling";

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

using C = ModelConfig;

const OptionTable<RopeScaling>& scaling_table() {
  using R = RopeScaling;
  static const OptionTable<R> table(
      {option("factor", &R::factor, kFactor),
       option("low_freq_factor", &R::low_freq_factor, kFactor),
       option("high_freq_factor", &R::high_freq_factor, kFactor),
       option("original_max_positions", &R::original_max_positions, Whole{1})});
  return table;
}

bool read_scaling(const OptionValue& value, RopeScaling& scaling) {
  const auto* fields = value.as<OptionMap>();
  if (fields == nullptr && !value.is_none()) return false;
  scaling = fields == nullptr ? RopeScaling{} : scaling_table().read(kScaling, *fields);
  return true;
}

OptionValue value_of(const RopeScaling& scaling) {
  return scaling.factor == 1.0 ? OptionValue() : OptionValue(scaling_table().values(scaling));
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

const OptionTable<ModelConfig>& model_table() {
  static const OptionTable<C> table(
      {option("architecture", &C::architecture, "a text"),
       option("num_layers", &C::num_layers, Whole{1, kMaxLayers}),
       option("hidden_size", &C::hidden_size, Whole{1, kMaxWidth}),
       option("num_heads", &C::num_heads, Whole{1, kMaxHeads}),
       option("num_kv_heads", &C::num_kv_heads, Whole{1, kMaxHeads}),
       option("head_dim", &C::head_dim, Whole{1, kMaxHeads}),
       option("ffn_size", &C::ffn_size, Whole{1, kMaxWidth}),
       option("vocab_size", &C::vocab_size, Whole{1}),
       option("max_positions", &C::max_positions, Whole{1}),
       option("embedding_size", &C::embedding_size, Whole{1, kMaxWidth}),
       option("norm", &C::norm, {{"rms", NormKind::kRms}, {"layer", NormKind::kLayer}}),
       option("norm_eps", &C::norm_eps, kFactor),
       option("pre_norm", &C::pre_norm),
       option("final_norm", &C::final_norm),
       option("activation",
              &C::activation,
              {{"silu_gate", Activation::kSiluGate}, {"relu", Activation::kRelu}}),
       option("position",
              &C::position,
              {{"rotary", PositionKind::kRotary}, {"learned", PositionKind::kLearned}}),
       option("position_offset", &C::position_offset, Whole{}),
       option("rope_theta", &C::rope_theta, kFactor),
       option("rope_scaling",
              &C::rope_scaling,
              "dict[str, Any] | None",
              "factors by name, or None",
              read_scaling,
              [](const RopeScaling& scaling) { return value_of(scaling); }),
       option("qkv_bias", &C::qkv_bias),
       option("output_bias", &C::output_bias),
       option("ffn_bias", &C::ffn_bias),
       option("tie_embeddings", &C::tie_embeddings)});
  return table;
}

void ModelConfig::validate() const {
  model_table().check("ModelConfig", *this);
  if (num_heads % num_kv_heads != 0) {
    reject("num_kv_heads",
           num_kv_heads,
           message("divisors of num_heads (num_heads is ", num_heads, ")"));
  }
  if (elements_of_weights(*this) > kMaxElements) {
    reject("the number of weights", elements_of_weights(*this), message("<= ", kMaxElements));
  }
  if (bytes_of_a_token(*this) > kMaxTokenBytes) {
    reject("the size of a token's keys and values in float32",
           human_bytes(bytes_of_a_token(*this)),
           message("<= ", human_bytes(kMaxTokenBytes)));
  }
  if (position != PositionKind::kRotary) return;

  if (head_dim % 2 != 0) reject("head_dim", head_dim, "even numbers (rotary positions)");
  if (rope_scaling.factor == 1.0) return;

  scaling_table().check(kScaling, rope_scaling);
  if (rope_scaling.high_freq_factor <= rope_scaling.low_freq_factor) {
    reject("rope_scaling.high_freq_factor",
           rope_scaling.high_freq_factor,
           message("> low_freq_factor (", rope_scaling.low_freq_factor, ")"));
  }
}

}  // namespace hybridgen
