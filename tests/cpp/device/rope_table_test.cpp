// SPDX-License-Identifier: Apache-2.0
// Frequencies are those of transformers 5.23; a table that grows must not change what earlier
// requests saw, and a prompt longer than the original positions has a table of its own.
#include "device/rope_table.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <vector>

#include "device/rope_frequencies.h"

namespace hybridgen {
namespace {

struct Scaling {
  const char* name;
  RopeScaling scaling;
  std::int64_t length;
  std::vector<float> frequencies;  ///< of transformers, D = 12, base 10,000
};

const std::vector<double> kShort = {1.0, 1.1, 1.3, 1.5, 2.0, 2.5};
const std::vector<double> kLong = {1.0, 2.0, 4.0, 6.0, 8.0, 10.0};

RopeScaling dynamic() {
  return {.kind = RopeKind::kDynamic, .factor = 3.0, .original_max_positions = 64};
}
RopeScaling yarn() {
  return {.kind = RopeKind::kYarn,
          .factor = 4.0,
          .original_max_positions = 64,
          .attention_factor = 1.1386294361119891};
}
RopeScaling yarn_between(std::int64_t original, double fast, double slow) {
  RopeScaling scaling = yarn();
  scaling.original_max_positions = original;
  scaling.beta_fast = fast;
  scaling.beta_slow = slow;
  scaling.truncate = false;
  return scaling;
}
RopeScaling longrope() {
  return {.kind = RopeKind::kLongRope,
          .original_max_positions = 64,
          .attention_factor = 1.1547005383792517,
          .short_factors = kShort,
          .long_factors = kLong};
}
RopeScaling llama3() {
  return {.kind = RopeKind::kLlama3, .factor = 8.0, .original_max_positions = 64};
}

const std::vector<Scaling> kScalings = {
    {"linear",
     {.kind = RopeKind::kLinear, .factor = 4.0},
     9,
     {0.25F, 0.0538608618F, 0.011603971F, 0.00249999994F, 0.000538608583F, 0.000116039737F}},
    {"dynamic up to the original positions",
     dynamic(),
     64,
     {1.0F, 0.215443447F, 0.046415884F, 0.00999999978F, 0.00215443433F, 0.000464158948F}},
    {"dynamic behind them",
     dynamic(),
     65,
     {1.0F, 0.213478595F, 0.0455731153F, 0.00972888526F, 0.00207690871F, 0.000443375757F}},
    {"dynamic far behind them",
     dynamic(),
     1000,
     {1.0F, 0.100677498F, 0.010135958F, 0.00102046318F, 0.000102737649F, 1.03433758e-05F}},
    {"yarn",
     yarn(),
     9,
     {1.0F, 0.134652153F, 0.011603971F, 0.00249999994F, 0.000538608583F, 0.000116039737F}},
    {"yarn without whole bounds",
     yarn_between(64, 8.0, 2.0),
     9,
     {1.0F, 0.0646776259F, 0.011603971F, 0.00249999994F, 0.000538608583F, 0.000116039737F}},
    {"yarn with one bound",
     yarn_between(4096, 8.0, 8.0),
     9,
     {1.0F, 0.215443447F, 0.046415884F, 0.00249999994F, 0.000538608583F, 0.000116039737F}},
    {"longrope up to the original positions",
     longrope(),
     64,
     {1.0F, 0.195857689F, 0.0357045271F, 0.00666666683F, 0.00107721717F, 0.000185663579F}},
    {"longrope behind them",
     longrope(),
     65,
     {1.0F, 0.107721724F, 0.011603971F, 0.00166666671F, 0.000269304292F, 4.64158948e-05F}},
    {"llama3",
     llama3(),
     9,
     {1.0F, 0.101989336F, 0.00580198551F, 0.00124999997F, 0.000269304292F, 5.80198684e-05F}},
};

ModelConfig config_of(const RopeScaling& scaling) {
  ModelConfig config;
  config.head_dim = 12;
  config.rope_scaling = scaling;
  return config;
}

TEST(RopeFrequencies, AreThoseOfTransformers) {
  for (const Scaling& known : kScalings) {
    const at::Tensor lengths = at::full({1}, known.length, at::kLong);
    const at::Tensor found = inverse_frequencies(config_of(known.scaling), lengths);
    // A power may round otherwise from one library to another.
    EXPECT_TRUE(at::allclose(found, at::tensor(known.frequencies).unsqueeze(0), 5e-7, 0.0))
        << known.name << ": " << found;
  }
}

TEST(RopeTable, OfMorePositionsBeginsAsOneOfFewer) {
  for (const Scaling& known : kScalings) {
    const ModelConfig config = config_of(known.scaling);
    const RopeTable large = build_rope_table(config, 9000, at::kCPU);
    for (const std::int64_t positions : {1, 3, 64, 65, 257, 4096}) {
      const RopeTable small = build_rope_table(config, positions, at::kCPU);
      EXPECT_TRUE(at::equal(small.cosines, large.cosines.narrow(0, 0, positions)))
          << known.name << ", " << positions;
      EXPECT_TRUE(at::equal(small.sines, large.sines.narrow(0, 0, positions)))
          << known.name << ", " << positions;
    }
  }
}

TEST(RopeTable, OfAPromptEndsAsAStepAtItsLastPositionTurns) {
  for (const Scaling& known : kScalings) {
    const ModelConfig config = config_of(known.scaling);
    const RopeTable steps = build_rope_table(config, 100, at::kCPU);
    for (const std::int64_t length : {64, 65, 100}) {
      const RopeTable prompt = build_prompt_rope_table(config, 3, length - 3, length, at::kCPU);
      EXPECT_TRUE(at::allclose(prompt.cosines[length - 4], steps.cosines[length - 1], 0.0, 1e-4))
          << known.name << ", " << length;
      // Tokens before it are turned by the same frequencies only where these are the same for all.
      const bool is_same =
          at::allclose(prompt.cosines.slice(0, 30, 61), steps.cosines.slice(0, 33, 64), 0.0, 1e-4);
      EXPECT_EQ(is_same, !config.rope_scaling.depends_on_length(length))
          << known.name << ", " << length;
    }
  }
}

TEST(RopeTable, IsMultipliedByTheAttentionFactor) {
  ModelConfig config = config_of(yarn());
  const RopeTable scaled = build_rope_table(config, 50, at::kCPU);
  config.rope_scaling.attention_factor = 1.0;
  const RopeTable plain = build_rope_table(config, 50, at::kCPU);
  EXPECT_TRUE(at::allclose(scaled.cosines, plain.cosines * 1.1386294361119891));
  EXPECT_TRUE(at::allclose(scaled.sines, plain.sines * 1.1386294361119891));
}

TEST(RopeTable, TimesItsInverseTurnsNothing) {
  for (const Scaling& known : kScalings) {
    const ModelConfig config = config_of(known.scaling);
    const RopeTable table = build_rope_table(config, 100, at::kCPU);
    const RopeTable inverse = inverse_of(config, table);
    const at::Tensor cosine = table.cosines * inverse.cosines - table.sines * inverse.sines;
    const at::Tensor sine = table.cosines * inverse.sines + table.sines * inverse.cosines;
    EXPECT_TRUE(at::allclose(cosine, at::ones_like(cosine), 0.0, 1e-6)) << known.name;
    EXPECT_TRUE(at::allclose(sine, at::zeros_like(sine), 0.0, 1e-6)) << known.name;
  }
}

}  // namespace
}  // namespace hybridgen
