// SPDX-License-Identifier: Apache-2.0
#include "device/linear_weight.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "device/device_ops.h"
#include "kernels/cpu_kernels.h"
#include "runtime/worker_pool.h"

namespace hybridgen {
namespace {

struct Format {
  int bits;
  bool has_minima;
  at::ScalarType scale_type;
};

/// A coded weight whose codes are drawn.
LinearWeight draw_coded(const Format& format,
                        std::int64_t outputs,
                        std::int64_t inputs,
                        std::int64_t group) {
  LinearWeight weight;
  weight.bits = format.bits;
  weight.group = group;
  weight.inputs = inputs;
  const std::int64_t groups = (inputs + group - 1) / group;
  const std::int64_t row_bytes = (inputs * format.bits / 8 + 31) / 32 * 32;
  weight.codes = at::randint(0, 256, {outputs, row_bytes}, at::kByte);
  weight.scales = at::rand({outputs, groups}).to(format.scale_type);
  if (format.has_minima) weight.minima = at::randn({outputs, groups}).to(format.scale_type);
  return weight;
}

/// What it stands for, element by element: float32 [outputs, inputs].
at::Tensor values_of(const LinearWeight& weight) {
  const bool has_minima = weight.minima.defined();
  at::Tensor values = at::empty({weight.outputs(), weight.inputs});
  for (std::int64_t o = 0; o < weight.outputs(); ++o) {
    const auto* row = weight.codes.const_data_ptr<std::uint8_t>() + o * weight.codes.size(1);
    for (std::int64_t i = 0; i < weight.inputs; ++i) {
      const int half = (row[i / 32 * 16 + i % 16] >> (i % 32 < 16 ? 0 : 4)) & 15;
      const float code = weight.bits == 8 ? static_cast<float>(static_cast<std::int8_t>(row[i]))
                                          : static_cast<float>(half) - (has_minima ? 0.0F : 8.0F);
      const float product = weight.scales[o][i / weight.group].item<float>() * code;
      values[o][i] =
          has_minima ? product + weight.minima[o][i / weight.group].item<float>() : product;
    }
  }
  return values;
}

class CodedWeights : public ::testing::TestWithParam<Format> {};

INSTANTIATE_TEST_SUITE_P(Formats,
                         CodedWeights,
                         ::testing::Values(Format{8, false, at::kFloat},
                                           Format{8, true, at::kHalf},
                                           Format{4, false, at::kHalf},
                                           Format{4, true, at::kFloat}),
                         [](const auto& format) {
                           return std::to_string(format.param.bits) + "bits" +
                                  (format.param.has_minima ? "WithMinima" : "");
                         });

TEST_P(CodedWeights, AreScaleTimesCodePlusMinimumOfTheGroup) {
  at::manual_seed(1);
  for (const std::int64_t inputs : {64, 48}) {  // the last group may be short
    const LinearWeight ragged = draw_coded(GetParam(), 5, inputs, 32);
    EXPECT_TRUE(at::equal(ragged.restored(at::kFloat), values_of(ragged)));
  }
  const LinearWeight coded = draw_coded(GetParam(), 5, 64, 32);
  const at::Tensor values = values_of(coded);
  EXPECT_TRUE(at::equal(coded.restored(at::kBFloat16), values.to(at::kBFloat16)));
  EXPECT_TRUE(at::equal(coded.rows(1, 3).restored(at::kFloat), values.narrow(0, 1, 3)));
  EXPECT_EQ(coded.outputs(), 5);
  const auto of_scales = 5 * 2 * static_cast<std::int64_t>(c10::elementSize(GetParam().scale_type));
  EXPECT_EQ(coded.bytes(),
            5 * 64 * GetParam().bits / 8 + (GetParam().has_minima ? 2 : 1) * of_scales);
}

TEST_P(CodedWeights, MultiplyAsWhatTheyStandFor) {
  at::manual_seed(2);
  // More than is restored at a time.
  const LinearWeight coded = draw_coded(GetParam(), 70, 65536, 32);
  const at::Tensor bias = at::randn({70});
  const at::Tensor x = at::randn({2, 65536});
  for (const auto& ops : {make_aten_ops(), make_cpu_ops("auto")}) {
    for (const at::Tensor& added : {bias, at::Tensor()}) {
      at::Tensor y = at::empty({2, 70});
      at::Tensor expected = at::empty({2, 70});
      ops->linear(x, coded, added, y);
      ops->linear(x, LinearWeight(coded.restored(at::kFloat)), added, expected);
      // Kernels round an element of x by at most half of 1 / 32767 of the largest in its block.
      const at::Tensor rounding =
          coded.restored(at::kFloat).abs().sum(1) * (x.abs().max() / 65534.0);
      const at::Tensor most = rounding + 1e-4 * expected.abs() + 1e-1;
      EXPECT_TRUE((y - expected).abs().le(most).all().item<bool>()) << ops->name();
    }
  }
}

TEST_P(CodedWeights, AreRestoredPieceByPieceForManyRowsWithTheBitsOfTheWholeMatrix) {
  at::manual_seed(5);
  const LinearWeight coded = draw_coded(GetParam(), 300, 4096, 64);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randn({70, 4096}).to(type);
    const at::Tensor bias = at::randn({300}).to(type);
    const auto ops = make_cpu_ops("auto");
    at::Tensor y = at::empty({70, 300}, x.options());
    at::Tensor expected = at::empty({70, 300}, x.options());
    ops->linear(x, coded, bias, y);
    ops->linear(x, LinearWeight(coded.restored(type)), bias, expected);
    // Of libraries' products the split may change how sums round.
    EXPECT_TRUE(y.allclose(expected, type == at::kFloat ? 1e-4 : 1e-2, 1e-2));
    if (type == at::kBFloat16 && kernels::resolve_isa("auto") == kernels::Isa::kAvx2) {
      EXPECT_TRUE(at::equal(y, expected));
    }
  }
}

TEST_P(CodedWeights, GiveTheSameBitsWithAndWithoutAPoolAndBesideOtherRows) {
  at::manual_seed(6);
  WorkerPool pool({.cpus = {-1, -1}});
  const LinearWeight coded = draw_coded(GetParam(), 333, 512, 64);
  const at::Tensor x = at::randn({64, 512});
  at::Tensor together = at::empty({64, 333});
  make_cpu_ops("auto")->linear(x, coded, {}, together);
  for (const std::int64_t rows : {1, 2, 5, 17, 64}) {
    at::Tensor some = at::empty({rows, 333});
    make_cpu_ops("auto", &pool)->linear(x.narrow(0, 0, rows), coded, {}, some);
    EXPECT_TRUE(at::equal(some, together.narrow(0, 0, rows))) << rows;
  }
}

TEST_P(CodedWeights, AreTablesToo) {
  at::manual_seed(3);
  const LinearWeight coded = draw_coded(GetParam(), 9, 32, 32);
  const at::Tensor ids = at::tensor({6, 0, 6}, at::kLong);
  for (const auto& ops : {make_aten_ops(), make_cpu_ops("auto")}) {
    at::Tensor y = at::empty({3, 32});
    ops->select_rows(coded, ids, 2, y);
    EXPECT_TRUE(at::equal(y, values_of(coded).index_select(0, ids + 2))) << ops->name();
  }
}

TEST(Projections, OfSeveralPartsAreOneMatrix) {
  at::manual_seed(4);
  const LinearWeight coded = draw_coded({8, false, at::kFloat}, 6, 32, 32);
  const at::Tensor dense = at::randn({5, 32});
  Projection projection;
  projection.parts = {LinearWeight(dense), coded};
  projection.bias = at::randn({11});
  const at::Tensor whole = at::cat({dense, values_of(coded)});
  EXPECT_EQ(projection.outputs(), 11);
  EXPECT_EQ(projection.bytes(), (5 * 32 + 11) * 4 + coded.bytes());
  const at::Tensor x = at::randn({3, 32});
  for (const auto& ops : {make_aten_ops(), make_cpu_ops("auto")}) {
    at::Tensor y = at::empty({3, 11});
    at::Tensor expected = at::empty({3, 11});
    ops->project(x, projection, y);
    ops->linear(x, LinearWeight(whole), projection.bias, expected);
    const at::Tensor rounding = whole.abs().sum(1) * (x.abs().max() / 65534.0);  // of x, in codes
    const at::Tensor most = rounding + 1e-5 * expected.abs() + 1e-4;
    EXPECT_TRUE((y - expected).abs().le(most).all().item<bool>()) << ops->name();
    // Rows that begin in one part and end in another.
    at::Tensor cut = at::empty({3, 4});
    ops->project(x, projection.rows(3, 4), cut);
    const at::Tensor off = (cut - expected.narrow(1, 3, 4)).abs();
    EXPECT_TRUE(off.le(most.narrow(1, 3, 4)).all().item<bool>()) << ops->name();
  }
}

TEST(Projections, AreCutWithoutACopy) {
  Projection projection;
  projection.parts = {LinearWeight(at::zeros({4, 8})), LinearWeight(at::zeros({4, 8}))};
  const Projection rows = projection.rows(4, 2);
  ASSERT_EQ(rows.parts.size(), 1U);
  EXPECT_EQ(rows.parts[0].dense.const_data_ptr(), projection.parts[1].dense.const_data_ptr());
  EXPECT_FALSE(rows.bias.defined());
}

}  // namespace
}  // namespace hybridgen
