// SPDX-License-Identifier: Apache-2.0
#include "kernels/coded_linear.h"

#include <memory>
#include <thread>

#include "kernel_test_support.h"
#include "kernels/float16.h"
#include "runtime/cpus.h"

namespace hybridgen::kernels::test {
namespace {

class CodedLinear : public KernelTest {
 protected:
  const CodedKernels& coded() const { return coded_kernels(std::get<0>(GetParam())); }
};

struct Format {
  int bits = 8;
  std::int64_t group = 0;  // 0: all inputs
  bool has_minima = false;
  DType scale_dtype = DType::kFloat32;
};

constexpr Format kFormats[] = {{8, 0, false, DType::kFloat32},
                               {8, 0, false, DType::kFloat16},
                               {8, 16, false, DType::kFloat32},
                               {8, 32, false, DType::kFloat16},
                               {8, 32, true, DType::kFloat32},
                               {8, 48, true, DType::kFloat16},
                               {8, 128, true, DType::kFloat16},
                               {4, 0, false, DType::kFloat16},
                               {4, 0, true, DType::kFloat32},
                               {4, 32, false, DType::kFloat16},
                               {4, 32, true, DType::kFloat32},
                               {4, 64, true, DType::kFloat16},
                               {4, 96, false, DType::kFloat32},
                               {4, 128, false, DType::kFloat16},
                               {4, 128, true, DType::kFloat32},
                               {4, 256, true, DType::kFloat16}};

std::string describe(const Format& format) {
  return std::to_string(format.bits) + " bits, groups of " + std::to_string(format.group) +
         (format.has_minima ? " with minima" : "");
}

/// A coded matrix of random codes, scales and minima.
struct Weight {
  std::vector<std::uint8_t> codes;
  Array scales;
  Array minima;
  CodedWeightView view;
  std::int64_t outputs = 0;

  float value(std::int64_t output, std::int64_t input) const {
    std::vector<float> row(static_cast<std::size_t>(view.inputs));
    restore_row(view, output, row.data());
    return row[static_cast<std::size_t>(input)];
  }
  /// [outputs, inputs]
  std::vector<float> values() const {
    std::vector<float> all(static_cast<std::size_t>(outputs * view.inputs));
    for (std::int64_t n = 0; n < outputs; ++n) restore_row(view, n, all.data() + n * view.inputs);
    return all;
  }
};

std::unique_ptr<Weight> random_weight(const Format& format,
                                      std::int64_t inputs,
                                      std::int64_t outputs) {
  auto weight = std::make_unique<Weight>();
  const std::int64_t group = format.group == 0 ? inputs : format.group;
  const std::int64_t row_bytes = coded_row_bytes(format.bits, inputs);
  weight->codes.resize(static_cast<std::size_t>(outputs * row_bytes));
  std::mt19937 generator(static_cast<std::uint32_t>(inputs + format.bits));
  std::vector<std::int8_t> codes(static_cast<std::size_t>(inputs));
  for (std::int64_t n = 0; n < outputs; ++n) {
    for (std::int8_t& code : codes) {
      code = static_cast<std::int8_t>(format.bits == 8 ? generator() % 256 : generator() % 16);
    }
    pack_row(format.bits, codes.data(), inputs, weight->codes.data() + n * row_bytes);
  }
  const std::int64_t groups = coded_groups(inputs, group);
  weight->scales = random_array(format.scale_dtype, outputs * groups, 7);
  weight->minima = random_array(format.scale_dtype, outputs * groups, 8);
  weight->outputs = outputs;
  weight->view = {.bits = format.bits,
                  .group = group,
                  .inputs = inputs,
                  .codes = weight->codes.data(),
                  .scale_dtype = format.scale_dtype,
                  .scales = weight->scales.data(),
                  .minima = format.has_minima ? weight->minima.data() : nullptr};
  return weight;
}

CodedLinearArgs arguments(const Weight& weight, const Array& x, const Array* bias, Array& y) {
  const std::int64_t inputs = weight.view.inputs;
  return {.weight = weight.view,
          .dtype = x.dtype(),
          .y_dtype = y.dtype(),
          .x = x.data(),
          .bias = bias == nullptr ? nullptr : bias->data(),
          .y = y.data(),
          .rows = x.count() / inputs,
          .x_stride = inputs,
          .y_stride = weight.outputs};
}

void multiply(const CodedKernels& kernels,
              const CodedLinearArgs& args,
              std::int64_t begin,
              std::int64_t end) {
  std::vector<std::byte> memory(static_cast<std::size_t>(kernels.rows_bytes(args)) + 64);
  std::size_t room = memory.size();
  void* prepared = memory.data();
  std::align(64, room - 64, prepared, room);
  for (std::int64_t r = 0; r < args.rows; ++r) kernels.prepare_rows(args, r, r + 1, prepared);
  kernels.multiply(args, prepared, begin, end);
}

/// Largest error of output (r, n): half a step of x's codes in every element, and float32 sums.
double tolerance(const Weight& weight,
                 const std::vector<float>& values,
                 const Array& x,
                 std::int64_t r,
                 std::int64_t n) {
  const CodedWeightView& view = weight.view;
  const std::int64_t block = coded_block(view.bits);
  const std::int64_t groups = coded_groups(view.inputs, view.group);
  double rounding = 0.0;
  double size = 0.0;  // of what is summed: codes and, apart from them, where they start
  for (std::int64_t first = 0; first < view.inputs; first += block) {
    double peak = 0.0;
    double weights = 0.0;
    for (std::int64_t k = first; k < std::min(view.inputs, first + block); ++k) {
      const double factor = std::abs(static_cast<double>(x.at(r * view.inputs + k)));
      const double value = std::abs(values[static_cast<std::size_t>(n * view.inputs + k)]);
      const std::int64_t g = n * groups + k / view.group;
      const double start = view.minima != nullptr ? weight.minima.at(g)
                           : view.bits == 4       ? 8 * weight.scales.at(g)
                                                  : 0.0F;
      peak = std::max(peak, factor);
      weights += value;
      size += factor * (value + 2 * std::abs(start));
    }
    rounding += weights * peak * 0.5 / 32767.0;
  }
  // Of each of eight sums: one term per vector of two blocks and one per chunk of eight; then eight
  // lanes.
  return 1.001 * rounding + size * sum_error(view.inputs / block + 8);
}

TEST_P(CodedLinear, MatchesTheProductWithTheRestoredMatrixForEveryFormatAndTail) {
  for (const Format& format : kFormats) {
    for (const std::int64_t inputs : {1, 15, 33, 64, 96, 127, 256, 300, 577}) {
      for (const std::int64_t rows : {1, 2, 3, 6, 9}) {
        constexpr std::int64_t kOutputs = 7;
        const auto weight = random_weight(format, inputs, kOutputs);
        const std::vector<float> values = weight->values();
        const Array x = random_array(dtype(), rows * inputs, 1);
        const Array bias = random_array(dtype(), kOutputs, 2);
        const DType y_dtype = rows % 2 == 0 ? dtype() : DType::kFloat32;
        Array y(y_dtype, rows * kOutputs);
        multiply(coded(), arguments(*weight, x, &bias, y), 0, kOutputs);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t n = 0; n < kOutputs; ++n) {
            double expected = bias.at(n);
            for (std::int64_t k = 0; k < inputs; ++k) {
              expected += static_cast<double>(x.at(r * inputs + k)) *
                          static_cast<double>(values[static_cast<std::size_t>(n * inputs + k)]);
            }
            const double most = tolerance(*weight, values, x, r, n) +
                                1.01 * std::abs(expected) * unit_roundoff(y_dtype) +
                                absolute_floor(y_dtype);
            ASSERT_NEAR(y.at(r * kOutputs + n), expected, most)
                << describe(format) << ", " << inputs << " inputs, row " << r << " of " << rows
                << ", output " << n;
          }
        }
      }
    }
  }
}

TEST_P(CodedLinear, GivesTheBitsOfThePortableFormOnEveryInstructionSet) {
  for (const Format& format : kFormats) {
    for (const std::int64_t inputs : {96, 300, 1030}) {
      const auto weight = random_weight(format, inputs, 11);
      const Array x = random_array(dtype(), 5 * inputs, 3);
      Array y(DType::kFloat32, 5 * 11);
      Array portable(DType::kFloat32, 5 * 11);
      multiply(coded(), arguments(*weight, x, nullptr, y), 0, 11);
      multiply(coded_kernels(Isa::kPortable), arguments(*weight, x, nullptr, portable), 0, 11);
      ASSERT_EQ(y, portable) << describe(format) << ", " << inputs << " inputs";
    }
  }
}

TEST_P(CodedLinear, ARowsBitsDependNeitherOnOtherRowsNorOnTheSplitOfOutputs) {
  constexpr std::int64_t kInputs = 200;
  constexpr std::int64_t kOutputs = 13;
  for (const Format& format : {kFormats[0], kFormats[11]}) {
    const auto weight = random_weight(format, kInputs, kOutputs);
    const Array x = random_array(dtype(), 64 * kInputs, 4);
    Array together(DType::kFloat32, 64 * kOutputs);
    multiply(coded(), arguments(*weight, x, nullptr, together), 0, kOutputs);
    for (std::int64_t rows = 1; rows <= 64; ++rows) {
      Array some(DType::kFloat32, rows * kOutputs);
      CodedLinearArgs args = arguments(*weight, x, nullptr, some);
      args.rows = rows;
      const std::int64_t cut = rows % (kOutputs + 1);
      multiply(coded(), args, 0, cut);
      multiply(coded(), args, cut, kOutputs);
      for (std::int64_t i = 0; i < some.count(); ++i) ASSERT_EQ(some.at(i), together.at(i)) << rows;
    }
  }
}

TEST_P(CodedLinear, ReadsMatricesOfManyOutputsTileByTile) {
  const auto weight = random_weight(kFormats[8], 4000, 40);
  const Array x = random_array(dtype(), 9 * 4000, 5);
  Array whole(DType::kFloat32, 9 * 40);
  multiply(coded(), arguments(*weight, x, nullptr, whole), 0, 40);
  for (std::int64_t n = 0; n < 40; ++n) {
    Array one(DType::kFloat32, 9 * 40);
    multiply(coded(), arguments(*weight, x, nullptr, one), n, n + 1);
    for (std::int64_t r = 0; r < 9; ++r) ASSERT_EQ(one.at(r * 40 + n), whole.at(r * 40 + n));
  }
}

TEST_P(CodedLinear, NanAndInfinityInARowMakeItsOutputsNanAndNoOther) {
  constexpr std::int64_t kInputs = 70;
  for (const Format& format : kFormats) {
    const auto weight = random_weight(format, kInputs, 5);
    Array x = random_array(dtype(), 3 * kInputs, 6);
    Array clean(DType::kFloat32, 15);
    multiply(coded(), arguments(*weight, x, nullptr, clean), 0, 5);
    for (const std::uint16_t pattern : {0x7f80, 0xff80, 0x7fff}) {
      Array odd = x;
      const std::int64_t at = kInputs + 69;
      if (dtype() == DType::kFloat32) {
        odd.set(at, decode(DType::kBFloat16, pattern));
      } else {
        const std::uint16_t bits =
            dtype() == DType::kBFloat16 || pattern == 0x7fff ? pattern : pattern & 0xfc00U;
        std::memcpy(static_cast<std::byte*>(odd.data()) + 2 * at, &bits, 2);
      }
      Array y(DType::kFloat32, 15);
      multiply(coded(), arguments(*weight, odd, nullptr, y), 0, 5);
      for (std::int64_t i = 0; i < 15; ++i) {
        if (i / 5 == 1) {
          EXPECT_TRUE(std::isnan(y.at(i))) << describe(format);
        } else {
          EXPECT_EQ(y.at(i), clean.at(i)) << describe(format);
        }
      }
    }
  }
}

TEST_P(CodedLinear, OfZerosIsTheBiasAndTinyBlocksCountAsZero) {
  for (const Format& format : kFormats) {
    const auto weight = random_weight(format, 100, 6);
    Array x(dtype(), 200);
    if (dtype() == DType::kFloat32) x.set(150, 1e-38F);
    const Array bias = random_array(dtype(), 6, 2);
    Array y(DType::kFloat32, 12);
    multiply(coded(), arguments(*weight, x, &bias, y), 0, 6);
    for (std::int64_t i = 0; i < 12; ++i) EXPECT_EQ(y.at(i), bias.at(i % 6)) << describe(format);
  }
}

TEST_P(CodedLinear, ReadsAndWritesRowsByTheirStridesOnly) {
  constexpr std::int64_t kInputs = 65;
  const auto weight = random_weight(kFormats[10], kInputs, 4);
  const Array dense = random_array(dtype(), 3 * kInputs, 1);
  Array expected(dtype(), 12);
  multiply(coded(), arguments(*weight, dense, nullptr, expected), 0, 4);
  Array x(dtype(), 1 + 3 * (kInputs + 3));
  for (std::int64_t i = 0; i < 3 * kInputs; ++i) {
    x.set(1 + i / kInputs * (kInputs + 3) + i % kInputs, dense.at(i));
  }
  Array y(dtype(), 1 + 3 * 6);
  for (std::int64_t i = 0; i < y.count(); ++i) y.set(i, 77.0F);
  CodedLinearArgs args = arguments(*weight, dense, nullptr, y);
  args.x = static_cast<const std::byte*>(x.data()) + size_of(dtype());
  args.y = static_cast<std::byte*>(y.data()) + size_of(dtype());
  args.x_stride = kInputs + 3;
  args.y_stride = 6;
  multiply(coded(), args, 0, 4);
  for (std::int64_t i = 0; i < y.count(); ++i) {
    const bool is_written = i > 0 && (i - 1) % 6 < 4;
    EXPECT_EQ(y.at(i), is_written ? expected.at((i - 1) / 6 * 4 + (i - 1) % 6) : 77.0F) << i;
  }
}

TEST_P(CodedLinear, RestoresRowsAsTheReferenceDoesRoundedOnce) {
  for (const Format& format : kFormats) {
    for (const std::int64_t inputs : {1, 31, 64, 300}) {
      const auto weight = random_weight(format, inputs, 5);
      const std::vector<float> values = weight->values();
      Array restored(dtype(), 3 * inputs);
      coded().restore_rows({.weight = weight->view,
                            .dtype = dtype(),
                            .first = 1,
                            .count = 3,
                            .values = restored.data()});
      Array expected(dtype(), 3 * inputs);
      for (std::int64_t i = 0; i < 3 * inputs; ++i) {
        expected.set(i, values[static_cast<std::size_t>(inputs + i)]);
      }
      ASSERT_EQ(restored, expected) << describe(format) << ", " << inputs << " inputs";
    }
  }
}

TEST_P(CodedLinear, GivesTheSameBitsInAWorkerWhichReadsSubnormalsAsZero) {
  for (const Format& format : kFormats) {
    if (format.scale_dtype != DType::kFloat16) continue;
    const auto weight = random_weight(format, 300, 5);
    for (std::int64_t i = 0; i < weight->scales.count(); i += 2) {  // subnormal as float16
      weight->scales.set(i, static_cast<float>(1 + i % 1023) * 0x1p-24F);
    }
    const Array x = random_array(dtype(), 300, 9);
    const auto outputs = [&] {
      Array y(DType::kFloat32, 5);
      const CodedLinearArgs args = arguments(*weight, x, nullptr, y);
      multiply(coded(), args, 0, 5);
      return y;
    };
    const Array expected = outputs();
    Array in_worker(DType::kFloat32, 5);
    std::thread([&] {
      flush_denormals_in_current_thread();
      in_worker = outputs();
    }).join();
    EXPECT_EQ(in_worker, expected) << describe(format);
  }
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(CodedLinear);

}  // namespace
}  // namespace hybridgen::kernels::test
