// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_coded.h"
#include "kernels/cuda_kernels.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "device_copy.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(CodedCuda, WithoutCudaIsRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(coded_linear_cuda({}, 1, nullptr), DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

struct Format {
  int bits = 8;
  std::int64_t group = 0;  // 0: all inputs
  bool has_minima = false;
  DType scale_dtype = DType::kFloat32;
};

constexpr Format kFormats[] = {{8, 0, false, DType::kFloat32},
                               {8, 16, true, DType::kFloat16},
                               {8, 48, false, DType::kFloat16},
                               {4, 0, true, DType::kFloat16},
                               {4, 32, false, DType::kFloat16},
                               {4, 96, true, DType::kFloat32}};

std::string describe(const Format& format) {
  return std::to_string(format.bits) + " bits, groups of " + std::to_string(format.group) +
         (format.has_minima ? " with minima" : "");
}

/// A coded matrix of random codes, scales and minima, and its values by the reference.
class Weight {
 public:
  Weight(const Format& format, std::int64_t inputs, std::int64_t outputs)
      : outputs_(outputs), values_(DType::kFloat32, outputs * inputs) {
    const std::int64_t group = format.group == 0 ? inputs : format.group;
    const std::int64_t row_bytes = coded_row_bytes(format.bits, inputs);
    codes_.resize(static_cast<std::size_t>(outputs * row_bytes));
    std::mt19937 generator(static_cast<std::uint32_t>(inputs + format.bits));
    std::vector<std::int8_t> row(static_cast<std::size_t>(inputs));
    for (std::int64_t n = 0; n < outputs; ++n) {
      for (std::int8_t& code : row) {
        code = static_cast<std::int8_t>(format.bits == 8 ? generator() % 256 : generator() % 16);
      }
      pack_row(format.bits, row.data(), inputs, codes_.data() + n * row_bytes);
    }
    const std::int64_t groups = coded_groups(inputs, group);
    scales_ = random_array(format.scale_dtype, outputs * groups, 7);
    minima_ = random_array(format.scale_dtype, outputs * groups, 8);
    view_ = {.bits = format.bits,
             .group = group,
             .inputs = inputs,
             .codes = codes_.data(),
             .scale_dtype = format.scale_dtype,
             .scales = scales_.data(),
             .minima = format.has_minima ? minima_.data() : nullptr};
    std::vector<float> values(static_cast<std::size_t>(inputs));
    for (std::int64_t n = 0; n < outputs; ++n) {
      restore_row(view_, n, values.data());
      for (std::int64_t k = 0; k < inputs; ++k) {
        values_.set(n * inputs + k, values[static_cast<std::size_t>(k)]);
      }
    }
  }

  std::int64_t inputs() const { return view_.inputs; }
  std::int64_t outputs() const { return outputs_; }
  float value(std::int64_t n, std::int64_t k) const { return values_.at(n * inputs() + k); }
  /// |scale| |number| + |minimum|: what a kernel may add up apart.
  double size(std::int64_t n, std::int64_t k) const {
    if (view_.minima == nullptr) return std::abs(double{value(n, k)});
    const std::int64_t g = n * coded_groups(inputs(), view_.group) + k / view_.group;
    const double minimum = minima_.at(g);
    return std::abs(value(n, k) - minimum) + std::abs(minimum);
  }

  struct Product {
    const Array& x;
    std::int64_t x_stride;
    const Array* bias = nullptr;
    DType y_dtype = DType::kFloat32;
  };
  /// [rows, outputs + 1] on the device: a gap of one in each row, which stays as it is.
  Array multiply(const Product& product, std::int64_t rows) const {
    const DeviceCopy codes(codes_);
    const DeviceCopy scales(scales_);
    const DeviceCopy minima(minima_);
    const DeviceCopy x(product.x);
    const DeviceCopy bias(product.bias == nullptr ? Array() : *product.bias);
    Array result(product.y_dtype, rows * (outputs_ + 1));
    for (std::int64_t i = 0; i < result.count(); ++i) result.set(i, kGap);
    const DeviceCopy y(result);
    CodedLinearArgs args{.weight = view_,
                         .dtype = product.x.dtype(),
                         .y_dtype = product.y_dtype,
                         .x = x.get(),
                         .bias = product.bias == nullptr ? nullptr : bias.get(),
                         .y = y.get(),
                         .rows = rows,
                         .x_stride = product.x_stride,
                         .y_stride = outputs_ + 1};
    args.weight.codes = codes.get<std::uint8_t>();
    args.weight.scales = scales.get();
    if (view_.minima != nullptr) args.weight.minima = minima.get();
    coded_linear_cuda(args, outputs_, nullptr);
    y.copy_to(result.data());
    for (std::int64_t r = 0; r < rows; ++r) {
      EXPECT_EQ(result.at(r * (outputs_ + 1) + outputs_), kGap);
    }
    return result;
  }

 private:
  static constexpr float kGap = 5.0F;

  std::int64_t outputs_;
  std::vector<std::uint8_t> codes_;
  Array scales_;
  Array minima_;
  Array values_;
  CodedWeightView view_;
};

/// Holds y [rows, outputs + 1] against the dense product in float64.
void expect_product(const Weight& weight,
                    const Weight::Product& product,
                    std::int64_t rows,
                    const Array& y) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t n = 0; n < weight.outputs(); ++n) {
      const double bias = product.bias == nullptr ? 0.0 : double{product.bias->at(n)};
      double sum = bias;
      double size = std::abs(bias);
      for (std::int64_t k = 0; k < weight.inputs(); ++k) {
        const double x = product.x.at(r * product.x_stride + k);
        sum += x * double{weight.value(n, k)};
        size += std::abs(x) * weight.size(n, k);
      }
      // Besides the products: scale, minimum and value are rounded, sums of threads and the bias
      // are added.
      const double error = 2.0 * sum_error(weight.inputs() + 16) * size;
      ASSERT_NEAR(y.at(r * (weight.outputs() + 1) + n),
                  sum,
                  error + 1.01 * unit_roundoff(y.dtype()) * (std::abs(sum) + error) +
                      absolute_floor(y.dtype()))
          << "row " << r << ", output " << n;
    }
  }
}

class CodedOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

// Rows of the identity give the weight's columns, to the bit as the reference restores them.
TEST_P(CodedOnDevice, RowsOfTheIdentityRestoreTheWeight) {
  for (const Format& format : kFormats) {
    SCOPED_TRACE(describe(format));
    const std::int64_t inputs = 110;
    const Weight weight(format, inputs, 5);
    Array x(GetParam(), inputs * inputs);
    for (std::int64_t k = 0; k < inputs; ++k) x.set(k * inputs + k, 1.0F);
    const Array y = weight.multiply({x, inputs}, inputs);
    for (std::int64_t k = 0; k < inputs; ++k) {
      for (std::int64_t n = 0; n < 5; ++n) ASSERT_EQ(y.at(k * 6 + n), weight.value(n, k)) << k;
    }
  }
}

// Rows around what one launch's blocks take, inputs around words, blocks and a block of threads,
// groups that divide them and that do not.
TEST_P(CodedOnDevice, AgreeWithTheRestoredProduct) {
  const std::int64_t most_rows = 17;
  for (const Format& format : kFormats) {
    SCOPED_TRACE(describe(format));
    for (const std::int64_t inputs : {1, 31, 160, 515, 1101}) {
      const Weight weight(format, inputs, inputs == 160 ? 9 : 3);
      const std::int64_t stride = inputs + inputs % 3;
      const Array x = random_array(GetParam(), most_rows * stride, 9);
      const Array bias = random_array(GetParam(), weight.outputs(), 10);
      for (const std::int64_t rows : {1, 2, 4, 5, 16, 17}) {
        if (rows != 1 && rows != 5 && inputs != 160) continue;
        const Weight::Product plain{x, stride};
        expect_product(weight, plain, rows, weight.multiply(plain, rows));
        const Weight::Product with_bias{x, stride, &bias, GetParam()};
        expect_product(weight, with_bias, rows, weight.multiply(with_bias, rows));
      }
    }
  }
}

TEST_P(CodedOnDevice, ARowsOutputsDoNotDependOnTheOthers) {
  for (const Format& format : kFormats) {
    SCOPED_TRACE(describe(format));
    const Weight weight(format, 330, 5);
    const Array x = random_array(GetParam(), 16 * 330, 11);
    const Array together = weight.multiply({x, 330}, 16);
    for (const std::int64_t rows : {1, 3}) {
      const Array alone = weight.multiply({x, 330}, rows);
      for (std::int64_t i = 0; i < alone.count(); ++i) ASSERT_EQ(alone.at(i), together.at(i)) << i;
    }
  }
}

TEST_P(CodedOnDevice, AgreeInAnyOrder) {
  for (const Format& format : {kFormats[1], kFormats[5]}) {
    SCOPED_TRACE(describe(format));
    const Weight weight(format, 701, 7);
    const Array x = random_array(GetParam(), 6 * 704, 12);
    const Weight::Product product{x, 704, nullptr, GetParam()};
    for (const std::int64_t rows : {1, 6}) {
      in_every_order(
          [&] { expect_product(weight, product, rows, weight.multiply(product, rows)); });
    }
  }
}

TEST_P(CodedOnDevice, WhatIsNotFiniteStaysInItsRow) {
  for (const float value : {kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (const Format& format : kFormats) {
      SCOPED_TRACE(describe(format));
      const Weight weight(format, 70, 3);
      Array x(GetParam(), 5 * 70);
      for (std::int64_t i = 0; i < x.count(); ++i) x.set(i, 0.5F);
      if (std::isnan(value)) {
        std::memset(static_cast<std::byte*>(x.data()) + (3 * 70 + 69) * size_of(GetParam()),
                    0xff,
                    size_of(GetParam()));
      } else {
        x.set(3 * 70 + 69, kInfinity);
      }
      const Array y = weight.multiply({x, 70}, 5);
      for (std::int64_t r = 0; r < 5; ++r) {
        for (std::int64_t n = 0; n < 3; ++n) ASSERT_EQ(std::isfinite(y.at(r * 4 + n)), r != 3) << r;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         CodedOnDevice,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
