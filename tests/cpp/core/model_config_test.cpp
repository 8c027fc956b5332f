// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/model_config.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.num_layers = 2;
  config.hidden_size = 64;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.ffn_size = 128;
  config.vocab_size = 100;
  config.max_positions = 256;
  config.embedding_size = 64;
  return config;
}

struct BadField {
  const char* name;
  std::function<void(ModelConfig&)> spoil;
};

class ModelConfigRejects : public testing::TestWithParam<BadField> {};

TEST_P(ModelConfigRejects, AndNamesTheField) {
  ModelConfig config = small_config();
  GetParam().spoil(config);
  try {
    config.validate();
    FAIL() << "accepted a bad " << GetParam().name;
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam().name), std::string::npos) << error.what();
  }
}

const BadField kBadFields[] = {
    {"num_layers", [](ModelConfig& c) { c.num_layers = 0; }},
    {"num_layers", [](ModelConfig& c) { c.num_layers = 4097; }},
    {"hidden_size", [](ModelConfig& c) { c.hidden_size = std::int64_t{1} << 62; }},
    // Times head_dim it wraps to the rows of 4 heads.
    {"num_heads", [](ModelConfig& c) { c.num_heads = 4 + (std::int64_t{1} << 59); }},
    {"num_kv_heads", [](ModelConfig& c) { c.num_kv_heads = (std::int64_t{1} << 16) + 1; }},
    {"head_dim", [](ModelConfig& c) { c.head_dim = std::int64_t{1} << 60; }},
    {"ffn_size", [](ModelConfig& c) { c.ffn_size = (std::int64_t{1} << 24) + 1; }},
    {"vocab_size", [](ModelConfig& c) { c.vocab_size = std::int64_t{1} << 31; }},
    {"max_positions", [](ModelConfig& c) { c.max_positions = std::int64_t{1} << 31; }},
    {"embedding_size", [](ModelConfig& c) { c.embedding_size = (std::int64_t{1} << 24) + 1; }},
    {"the number of weights",
     [](ModelConfig& c) {
       c.hidden_size = c.ffn_size = 1 << 24;
       c.num_layers = 4096;
     }},
    {"keys and values",
     [](ModelConfig& c) {
       c.num_heads = c.num_kv_heads = 1 << 16;
       c.head_dim = 1 << 12;
     }},
    {"norm_eps", [](ModelConfig& c) { c.norm_eps = 1e200; }},
    {"position_offset", [](ModelConfig& c) { c.position_offset = std::int64_t{1} << 40; }},
    {"rope_theta", [](ModelConfig& c) { c.rope_theta = 1e200; }},
    {"hidden_size", [](ModelConfig& c) { c.hidden_size = -1; }},
    {"num_heads", [](ModelConfig& c) { c.num_heads = 0; }},
    {"num_kv_heads", [](ModelConfig& c) { c.num_kv_heads = 0; }},
    {"num_kv_heads", [](ModelConfig& c) { c.num_kv_heads = 3; }},
    {"head_dim", [](ModelConfig& c) { c.head_dim = 0; }},
    {"head_dim", [](ModelConfig& c) { c.head_dim = 15; }},
    {"ffn_size", [](ModelConfig& c) { c.ffn_size = 0; }},
    {"vocab_size", [](ModelConfig& c) { c.vocab_size = 0; }},
    {"max_positions", [](ModelConfig& c) { c.max_positions = 0; }},
    {"embedding_size", [](ModelConfig& c) { c.embedding_size = 0; }},
    {"norm_eps", [](ModelConfig& c) { c.norm_eps = 0; }},
    {"norm_eps", [](ModelConfig& c) { c.norm_eps = std::numeric_limits<double>::quiet_NaN(); }},
    {"position_offset", [](ModelConfig& c) { c.position_offset = -1; }},
    {"rope_theta", [](ModelConfig& c) { c.rope_theta = 0; }},
    {"rope_scaling] factor", [](ModelConfig& c) { c.rope_scaling.factor = 0; }},
    {"rope_scaling] attention_factor",
     [](ModelConfig& c) { c.rope_scaling.attention_factor = -1.0; }},
    {"rope_scaling.high_freq_factor",
     [](ModelConfig& c) {
       c.rope_scaling = {.kind = RopeKind::kLlama3, .low_freq_factor = 4.0, .high_freq_factor = 1};
     }},
    {"rope_scaling] original_max_positions",
     [](ModelConfig& c) { c.rope_scaling.original_max_positions = 0; }},
    {"rope_scaling] beta_slow",
     [](ModelConfig& c) { c.rope_scaling = {.kind = RopeKind::kYarn, .beta_slow = 0.0}; }},
    {"rope_theta",
     [](ModelConfig& c) {
       c.rope_scaling.kind = RopeKind::kYarn;
       c.rope_theta = 1.0;
     }},
    {"head_dim",
     [](ModelConfig& c) {
       c.rope_scaling.kind = RopeKind::kDynamic;
       c.head_dim = 2;
     }},
    {"rope_scaling.long_factors",
     [](ModelConfig& c) {
       c.rope_scaling.kind = RopeKind::kLongRope;
       c.rope_scaling.short_factors.resize(8, 1.0);
       c.rope_scaling.long_factors.resize(7, 1.0);
     }},
    {"rope_scaling] short_factors",
     [](ModelConfig& c) {
       c.rope_scaling.kind = RopeKind::kLongRope;
       c.rope_scaling.short_factors.resize(8, 0.0);
       c.rope_scaling.long_factors.resize(8, 1.0);
     }},
    {"qk_norm",
     [](ModelConfig& c) {
       c.qk_norm = true;
       c.norm = NormKind::kLayer;
     }},
};

INSTANTIATE_TEST_SUITE_P(EveryField, ModelConfigRejects, testing::ValuesIn(kBadFields));

TEST(ModelConfig, AcceptsAConsistentConfiguration) { EXPECT_NO_THROW(small_config().validate()); }

TEST(ModelConfig, HeadDimNeedNotDivideTheHiddenSize) {
  ModelConfig config = small_config();
  config.head_dim = 24;
  EXPECT_NO_THROW(config.validate());
}

TEST(ModelConfig, OddHeadDimIsFineWithLearnedPositions) {
  ModelConfig config = small_config();
  config.head_dim = 15;
  config.position = PositionKind::kLearned;
  EXPECT_NO_THROW(config.validate());
}

TEST(ModelConfig, KeyRowCountsAllKeyHeadsOfOneToken) {
  EXPECT_EQ(small_config().kv_row_bytes(DType::kBFloat16), 2 * 16 * 2);
  EXPECT_EQ(small_config().kv_row_bytes(DType::kFloat32), 2 * 16 * 4);
  EXPECT_EQ(small_config().query_heads_per_kv_head(), 2);
}

}  // namespace
}  // namespace hybridgen
