// SPDX-License-Identifier: Apache-2.0
// Which form a linear layer takes, and that those for many rows give what one row by itself gives.
#include "device/linear_form.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "device/device_ops.h"
#include "kernels/onednn_linear.h"

namespace hybridgen {
namespace {

using kernels::Isa;

TEST(LinearForm, FewRowsAreStreamedOnEveryProcessor) {
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      EXPECT_EQ(linear_form(isa, dtype, dtype, RowsOf::kPrompt, 1), LinearForm::kStreamed);
      EXPECT_EQ(linear_form(isa, dtype, DType::kFloat32, RowsOf::kPrompt, 3),
                LinearForm::kStreamed);
    }
  }
}

TEST(LinearForm, RowsOfAStepStayWithOneFormWhateverTheirNumber) {
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const std::int64_t rows : {1, 16, 64}) {
        EXPECT_EQ(linear_form(isa, dtype, dtype, RowsOf::kStep, rows), LinearForm::kStreamed);
      }
    }
  }
}

TEST(LinearForm, ManyRowsWithoutInstructionsForTheirNumbersAreOurs) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    EXPECT_EQ(linear_form(Isa::kAvx2, dtype, dtype, RowsOf::kPrompt, 500), LinearForm::kPrepared);
    EXPECT_EQ(linear_form(Isa::kAvx2, dtype, DType::kFloat32, RowsOf::kPrompt, 500),
              LinearForm::kPrepared);
  }
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx512Vnni}) {
    EXPECT_EQ(linear_form(isa, DType::kBFloat16, DType::kBFloat16, RowsOf::kPrompt, 500),
              LinearForm::kPrepared);
  }
  EXPECT_EQ(linear_form(Isa::kAvx512, DType::kFloat16, DType::kFloat16, RowsOf::kPrompt, 500),
            kernels::has_float16_arithmetic() ? LinearForm::kLibTorch : LinearForm::kPrepared);
}

TEST(LinearForm, ManyRowsAreALibrarysWhereItHasInstructions) {
  const LinearForm float32 = kernels::has_onednn() ? LinearForm::kOneDnn : LinearForm::kLibTorch;
  for (const Isa isa : {Isa::kPortable, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx}) {
    EXPECT_EQ(linear_form(isa, DType::kFloat32, DType::kFloat32, RowsOf::kPrompt, 500), float32);
  }
  for (const Isa isa : {Isa::kAvx512Bf16, Isa::kAmx}) {
    EXPECT_EQ(linear_form(isa, DType::kBFloat16, DType::kBFloat16, RowsOf::kPrompt, 500),
              LinearForm::kLibTorch);
  }
}

TEST(LinearForm, LogitsInFloat32OfABfloat16ModelAreOursAsNoLibraryHasSuchAProduct) {
  const auto of = [](Isa isa) {
    return linear_form(isa, DType::kBFloat16, DType::kFloat32, RowsOf::kPrompt, 500);
  };
  EXPECT_EQ(of(Isa::kPortable), LinearForm::kStreamed);
  EXPECT_EQ(of(Isa::kAvx512), LinearForm::kPrepared);
  EXPECT_EQ(of(Isa::kAvx512Bf16), LinearForm::kStreamed);
  EXPECT_EQ(of(Isa::kAmx), LinearForm::kPrepared);
}

TEST(LinearForm, ShortPromptsBelongOnTilesWhereThereAreSome) {
  const auto of = [](RowsOf rows_of, std::int64_t rows) {
    return linear_form(Isa::kAmx, DType::kBFloat16, DType::kBFloat16, rows_of, rows);
  };
  EXPECT_EQ(of(RowsOf::kPrompt, 3), LinearForm::kStreamed);
  EXPECT_EQ(of(RowsOf::kPrompt, 4), LinearForm::kPrepared);
  EXPECT_EQ(of(RowsOf::kPrompt, 64), LinearForm::kPrepared);
  EXPECT_EQ(of(RowsOf::kPrompt, 65), LinearForm::kLibTorch);
  EXPECT_EQ(of(RowsOf::kStep, 16), LinearForm::kStreamed);
  EXPECT_EQ(of(RowsOf::kStep, 17), LinearForm::kPrepared);
}

/// Longest sums that are checked against float64, and more rows than lie in float32 at a time.
TEST(LinearForm, ManyRowsAreWhatEachOfThemIsByItself) {
  at::manual_seed(11);
  const auto ops = make_cpu_ops("auto", nullptr, RowsOf::kPrompt);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const std::int64_t in : {96, 24000}) {
      constexpr std::int64_t kRows = 100;
      const at::Tensor x = at::randn({kRows, in}, type);
      const at::Tensor weight = at::randn({24, in}, type);
      const at::Tensor bias = at::randn({24}, type);
      at::Tensor y = at::empty({kRows, 24}, type);
      ops->linear(x, LinearWeight(weight), bias, y);
      const at::Tensor exact =
          at::linear(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble));
      const at::Tensor sizes = at::linear(
          x.to(at::kDouble).abs(), weight.to(at::kDouble).abs(), bias.to(at::kDouble).abs());
      // One rounding of the result, and in + 1 of sums.
      const double rounding = type == at::kFloat ? 0x1p-24 : type == at::kHalf ? 0x1p-11 : 0x1p-8;
      const at::Tensor tolerance =
          exact.abs().mul(1.01 * rounding).add(sizes, 2.0 * static_cast<double>(in + 5) * 0x1p-24);
      EXPECT_TRUE(y.to(at::kDouble).sub(exact).abs().le(tolerance).all().item<bool>())
          << c10::toString(type) << " " << in;
    }
  }
}

}  // namespace
}  // namespace hybridgen
