// SPDX-License-Identifier: Apache-2.0
// The instructions behind kernels/cuda_tensor_core.h: exact results, on a device and on the
// emulator.
#include <numeric>

#include "device_copy.h"
#include "kernels/cuda_kernels.h"
#include "support/in_every_order.h"
#include "tensor_core_kernels.h"

namespace hybridgen::kernels::test {
namespace {

using hybridgen::test::in_every_order;

class TensorCore : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

/// Whole numbers, so small that every sum of products is exact in float32.
Array small_numbers(DType dtype, std::int64_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> numbers(-8, 8);
  Array array(dtype, count);
  for (std::int64_t i = 0; i < count; ++i) array.set(i, static_cast<float>(numbers(generator)));
  return array;
}

TEST_F(TensorCore, MultipliesMatricesExactly) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const Array a = small_numbers(dtype, 16 * 16, 1);
    const Array b = small_numbers(dtype, 16 * 8, 2);
    const Array c = small_numbers(DType::kFloat32, 16 * 8, 3);
    Array expected(DType::kFloat32, 16 * 8);
    for (std::int64_t row = 0; row < 16; ++row) {
      for (std::int64_t column = 0; column < 8; ++column) {
        float sum = c.at(row * 8 + column);
        for (std::int64_t k = 0; k < 16; ++k) sum += a.at(row * 16 + k) * b.at(k * 8 + column);
        expected.set(row * 8 + column, sum);
      }
    }
    const DeviceCopy device_a(a);
    const DeviceCopy device_b(b);
    in_every_order([&] {
      const DeviceCopy device_c(c);
      multiply_on_tensor_core(dtype, device_a.get(), device_b.get(), device_c.get<float>());
      Array result(DType::kFloat32, 16 * 8);
      device_c.copy_to(result.data());
      EXPECT_EQ(result, expected);
    });
  }
}

TEST_F(TensorCore, LoadsMatricesAsTheirRowsOrColumns) {
  std::vector<std::uint16_t> matrices(4 * 8 * 8);
  std::iota(matrices.begin(), matrices.end(), std::uint16_t{1000});
  const DeviceCopy device_matrices(matrices);
  for (const bool is_transposed : {false, true}) {
    std::vector<std::uint32_t> expected;
    for (std::size_t lane = 0; lane < 32; ++lane) {
      for (std::size_t matrix = 0; matrix < 4; ++matrix) {
        const auto element = [&](std::size_t i) {
          const std::size_t place = is_transposed ? i * 8 + lane / 4 : lane / 4 * 8 + i;
          return std::uint32_t{matrices[matrix * 64 + place]};
        };
        expected.push_back(element(2 * (lane % 4)) | element(2 * (lane % 4) + 1) << 16);
      }
    }
    in_every_order([&] {
      const DeviceCopy out(std::vector<std::uint32_t>(128));
      load_four_matrices(
          device_matrices.get<std::uint16_t>(), is_transposed, out.get<std::uint32_t>());
      EXPECT_EQ(out.values<std::uint32_t>(), expected);
    });
  }
}

TEST_F(TensorCore, CopiesAheadAndFillsTheRestWithZeros) {
  for (const int pieces : {1, 2, 7}) {
    for (const int last_bytes : {16, 8, 0}) {
      std::vector<float> values(static_cast<std::size_t>(pieces) * 4);
      std::iota(values.begin(), values.end(), 1.0F);
      std::vector<float> expected = values;
      std::fill(expected.end() - (16 - last_bytes) / 4, expected.end(), 0.0F);
      const DeviceCopy in(values);
      in_every_order([&] {
        const DeviceCopy out(std::vector<float>(values.size()));
        copy_through_shared(in.get<float>(), pieces, last_bytes, out.get<float>());
        EXPECT_EQ(out.values<float>(), expected);
      });
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels::test
