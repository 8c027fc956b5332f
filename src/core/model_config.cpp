// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/model_config.h"

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

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

// Its square, and one over it, multiply logits.
constexpr Interval kAttentionFactor{1e-3, 1e3};

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

using R = RopeScaling;

bool read_factors(const OptionValue& value, std::vector<double>& factors) {
  const auto* list = value.as<OptionValue::List>();
  if (list == nullptr) return false;
  factors.resize(list->size());
  for (std::size_t i = 0; i < factors.size(); ++i) {
    if (!read_number((*list)[i], kFactor, factors[i])) return false;
  }
  return true;
}

OptionRow<R> factors_option(const char* name, std::vector<double> R::* member) {
  const auto show = [](const std::vector<double>& factors) {
    return OptionValue::List(factors.begin(), factors.end());
  };
  return option(name, member, "tuple[float, ...]", "a tuple of numbers > 0", read_factors, show);
}

const OptionTable<R>& scaling_table() {
  static const OptionTable<R> table(
      {option("kind",
              &R::kind,
              {{"none", RopeKind::kNone},
               {"linear", RopeKind::kLinear},
               {"dynamic", RopeKind::kDynamic},
               {"yarn", RopeKind::kYarn},
               {"longrope", RopeKind::kLongRope},
               {"llama3", RopeKind::kLlama3}}),
       option("factor", &R::factor, kFactor),
       option("original_max_positions", &R::original_max_positions, Whole{1}),
       option("attention_factor", &R::attention_factor, kAttentionFactor),
       option("low_freq_factor", &R::low_freq_factor, kFactor),
       option("high_freq_factor", &R::high_freq_factor, kFactor),
       option("beta_fast", &R::beta_fast, kFactor),
       option("beta_slow", &R::beta_slow, kFactor),
       option("truncate", &R::truncate),
       factors_option("short_factors", &R::short_factors),
       factors_option("long_factors", &R::long_factors)});
  return table;
}

std::vector<std::string_view> fields_of(RopeKind kind) {
  switch (kind) {
    case RopeKind::kNone:
      return {};
    case RopeKind::kLinear:
      return {"kind", "factor"};
    case RopeKind::kDynamic:
      return {"kind", "factor", "original_max_positions"};
    case RopeKind::kYarn:
      return {"kind",
              "factor",
              "original_max_positions",
              "attention_factor",
              "beta_fast",
              "beta_slow",
              "truncate"};
    case RopeKind::kLongRope:
      return {
          "kind", "original_max_positions", "attention_factor", "short_factors", "long_factors"};
    case RopeKind::kLlama3:
      return {"kind", "factor", "original_max_positions", "low_freq_factor", "high_freq_factor"};
  }
  return {};
}

bool read_scaling(const OptionValue& value, RopeScaling& scaling) {
  const auto* fields = value.as<OptionMap>();
  if (fields == nullptr && !value.is_none()) return false;
  scaling = fields == nullptr ? RopeScaling{} : scaling_table().read(kScaling, *fields);
  return true;
}

/// What the kind reads; None if there is no scaling.
OptionValue value_of(const RopeScaling& scaling) {
  if (scaling.kind == RopeKind::kNone) return {};
  const std::vector<std::string_view> fields = fields_of(scaling.kind);
  OptionMap values = scaling_table().values(scaling);
  std::erase_if(values, [&](const auto& item) {
    return std::ranges::find(fields, item.first) == fields.end();
  });
  return values;
}

void check_factors(std::string_view field,
                   const std::vector<double>& factors,
                   std::int64_t head_dim) {
  if (factors.size() * 2 != static_cast<std::size_t>(head_dim)) {
    reject(field,
           message("a list of ", factors.size()),
           message("one number for two of head_dim's ", head_dim, " dimensions"));
  }
}

/// ConfigError for numbers that are allowed by themselves, but not together.
void check_scaling(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  scaling_table().check(kScaling, scaling);
  switch (scaling.kind) {
    case RopeKind::kNone:
    case RopeKind::kLinear:
      return;
    case RopeKind::kDynamic:
      // The base grows by a power of D / (D - 2).
      if (config.head_dim == 2) reject("head_dim", 2, "> 2 (dynamic rotary scaling)");
      return;
    case RopeKind::kYarn:
      // Bounds are logarithms to this base.
      if (config.rope_theta == 1.0) reject("rope_theta", 1.0, "not 1 (yarn rotary scaling)");
      return;
    case RopeKind::kLongRope:
      check_factors("rope_scaling.short_factors", scaling.short_factors, config.head_dim);
      check_factors("rope_scaling.long_factors", scaling.long_factors, config.head_dim);
      return;
    case RopeKind::kLlama3:
      if (scaling.high_freq_factor > scaling.low_freq_factor) return;
      reject("rope_scaling.high_freq_factor",
             scaling.high_freq_factor,
             message("> low_freq_factor (", scaling.low_freq_factor, ")"));
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
              "kind and numbers by name, or None",
              read_scaling,
              [](const RopeScaling& scaling) { return value_of(scaling); }),
       option("qk_norm", &C::qk_norm),
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
  if (qk_norm && norm != NormKind::kRms) {
    reject("qk_norm", "True", "False with layer norms (norm='layer')");
  }
  if (position != PositionKind::kRotary) return;

  if (head_dim % 2 != 0) reject("head_dim", head_dim, "even numbers (rotary positions)");
  check_scaling(*this);
}

}  // namespace hybridgen
