// SPDX-License-Identifier: Apache-2.0
#include "emulated/operator_costs.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace hybridgen::emulated {
namespace {

at::Tensor shaped(at::IntArrayRef sizes, at::ScalarType type = at::kFloat) {
  return at::empty(sizes, at::TensorOptions().dtype(type).device(at::kMeta));
}

TimedOperation cost(const std::string& name,
                    const std::string& overload,
                    const std::vector<c10::IValue>& arguments,
                    const std::vector<at::Tensor>& results) {
  return cost_of(c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str()),
                 arguments,
                 results);
}

TEST(OperatorCosts, AMatrixProductCountsEachMultiplyAddTwiceAndEachMatrixOnce) {
  const at::Tensor left = shaped({3, 64}, at::kBFloat16);
  const at::Tensor right = shaped({64, 128}, at::kBFloat16);
  const TimedOperation mm = cost("aten::mm", "", {left, right}, {shaped({3, 128}, at::kBFloat16)});
  EXPECT_EQ(mm.kind, OperationKind::kDense);
  EXPECT_EQ(mm.dtype, DType::kBFloat16);
  EXPECT_EQ(mm.flops, 2.0 * 3 * 64 * 128);
  EXPECT_EQ(mm.bytes_read, 2 * (3 * 64 + 64 * 128));
  EXPECT_EQ(mm.bytes_written, 2 * 3 * 128);
}

TEST(OperatorCosts, ABatchOfProductsAndOneIntoAGivenTensorCountLikewise) {
  const at::Tensor out = shaped({4, 5, 7});
  const std::vector<c10::IValue> arguments = {shaped({4, 5, 6}), shaped({4, 6, 7}), out};
  const TimedOperation bmm = cost("aten::bmm", "out", arguments, {});
  EXPECT_EQ(bmm.flops, 2.0 * 4 * 5 * 6 * 7);
  EXPECT_EQ(bmm.bytes_read, 4 * (4 * 5 * 6 + 4 * 6 * 7));
  EXPECT_EQ(bmm.bytes_written, 4 * 4 * 5 * 7);
}

TEST(OperatorCosts, WhatATensorRepeatsIsReadOnce) {
  const at::Tensor bias = shaped({128}).expand({3, 128});
  const TimedOperation sum =
      cost("aten::add", "Tensor", {shaped({3, 128}), bias, 1.0}, {shaped({3, 128})});
  EXPECT_EQ(sum.kind, OperationKind::kElementwise);
  EXPECT_EQ(sum.bytes_read, 4 * (3 * 128 + 128));
  EXPECT_EQ(sum.bytes_written, 4 * 3 * 128);
  EXPECT_EQ(sum.flops, 3.0 * 128);
}

TEST(OperatorCosts, AChoiceOfRowsReadsTheseAndTheIndex) {
  const at::Tensor table = shaped({100'000, 64}, at::kHalf);
  const TimedOperation rows = cost(
      "aten::index_select", "", {table, 0, shaped({10}, at::kLong)}, {shaped({10, 64}, at::kHalf)});
  EXPECT_EQ(rows.bytes_read, 2 * 10 * 64 + 8 * 10);
  EXPECT_EQ(rows.bytes_written, 2 * 10 * 64);
}

TEST(OperatorCosts, AReductionReadsAllAndAnOperationInPlaceWritesWhatItReads) {
  const TimedOperation sum = cost("aten::sum", "", {shaped({1'000}), c10::IValue()}, {shaped({})});
  EXPECT_EQ(sum.bytes_read, 4'000);
  EXPECT_EQ(sum.bytes_written, 4);
  EXPECT_EQ(sum.flops, 1'000.0);
  const TimedOperation scaled = cost("aten::mul_", "Scalar", {shaped({1'000}), 2.0}, {});
  EXPECT_EQ(scaled.bytes_read, 4'000);
  EXPECT_EQ(scaled.bytes_written, 4'000);
}

TEST(OperatorCosts, ACopyReadsAndWritesEachElement) {
  const TimedOperation copy = device_copy(shaped({8, 16}, at::kHalf), shaped({8, 16}));
  EXPECT_EQ(copy.kind, OperationKind::kDeviceCopy);
  EXPECT_EQ(copy.bytes_read, 4 * 8 * 16);
  EXPECT_EQ(copy.bytes_written, 2 * 8 * 16);
}

}  // namespace
}  // namespace hybridgen::emulated
