// SPDX-License-Identifier: Apache-2.0
// Element-wise kernels of a device against their CPU twins, and how many blocks they take.
#include "kernel_test_support.h"
#include "kernels/cuda_grid.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_rows.h"
#include "row_test_support.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "device_rows.h"
#endif

namespace hybridgen::kernels::test {
namespace {

// ---- Launches ----

// All sizes that a caller may have, and far beyond, without launching them.
constexpr std::int64_t kSizes[] = {
    1, 2, 31, 32, 33, 127, 128, 129, 4096, 32768, 65535, 65536, 1'000'000, std::int64_t{1} << 40};

void expect_within_limits(const LaunchShape& shape) {
  EXPECT_GE(shape.blocks_x, 1);
  EXPECT_LE(shape.blocks_x, 2147483647);
  EXPECT_GE(shape.blocks_y, 1);
  EXPECT_LE(shape.blocks_y, 65535);
  EXPECT_GE(shape.threads, 32);
  EXPECT_LE(shape.threads, 1024);
  EXPECT_EQ(shape.threads % 32, 0) << "sums take whole warps";
}

TEST(CudaGrid, EveryShapeIsWithinADevicesLimits) {
  for (const std::int64_t rows : kSizes) {
    for (const std::int64_t packs : kSizes) {
      SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(packs) + " packs");
      expect_within_limits(norm_shape(rows, packs));
      expect_within_limits(elementwise_shape(rows, packs));
      expect_within_limits(heads_shape(rows, lanes_of_head(packs)));
    }
  }
}

TEST(CudaGrid, ShapesOfADecodeStepReachEveryPackWithoutALoop) {
  for (const std::int64_t rows : {1, 5, 4096}) {
    for (const std::int64_t packs : {1, 16, 33, 512, 4096}) {
      EXPECT_EQ(norm_shape(rows, packs).blocks_x, rows);
      const LaunchShape shape = elementwise_shape(rows, packs);
      EXPECT_EQ(shape.blocks_y, rows);
      EXPECT_GE(shape.blocks_x * shape.threads, packs);
      EXPECT_LT((shape.blocks_x - 1) * shape.threads, packs) << "a block without work";
      const std::int64_t lanes = lanes_of_head(packs);
      EXPECT_EQ(32 % lanes, 0) << "a head's lanes are of one warp";
      EXPECT_GE(lanes, std::min<std::int64_t>(packs, 32));
      EXPECT_LT(lanes, 2 * packs) << "half of them without work";
      const LaunchShape heads = heads_shape(rows, lanes);
      EXPECT_GE(heads.blocks_x * heads.threads / lanes, rows);
    }
  }
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

const CpuKernels& twin() { return cpu_kernels(Isa::kPortable); }

class ElementwiseOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
  DType dtype() const { return GetParam(); }

  /// Random numbers, some of them as large and as odd as they can be.
  Array odd_numbers(std::int64_t count, std::uint32_t seed) const {
    Array array = random_array(dtype(), count, seed);
    const float largest = dtype() == DType::kFloat16 ? 65504.0F : 3e38F;
    const float odd[] = {0.0F, -0.0F, kInfinity, -kInfinity, largest, -largest, 1e-6F, 100.0F};
    for (std::size_t i = 0; i < std::size(odd); ++i) {
      // Beside each other in pairs of arrays with different seeds, too.
      const auto at = static_cast<std::int64_t>(i * 5 + seed % 3);
      if (at < count) array.set(at, odd[(i + seed) % std::size(odd)]);
    }
    if (count > 50) set_nan(array, 50);
    return array;
  }
};

constexpr std::int64_t kCounts[] = {1, 33, 96, 1033, 1096};

// ---- Sums and relu: the twin's bits ----

TEST_P(ElementwiseOnDevice, AddHasTheTwinsBits) {
  for (const std::size_t shift : {0U, 1U}) {
    for (const std::int64_t count : kCounts) {
      const Array x = odd_numbers(count, 110);
      Array y = odd_numbers(count, 111);
      in_every_order([&] {
        const DeviceRows device_x(x, shift);
        const DeviceRows device_y(y, shift);
        add_cuda(dtype(), device_y.data(), device_x.data(), count, nullptr);
        Array sum = y;
        twin().add(dtype(), sum.data(), x.data(), count);
        expect_same(device_y.values(), sum);
        expect_same(device_x.values(), x);
      });
    }
  }
}

TEST_P(ElementwiseOnDevice, ReluHasTheTwinsBits) {
  for (const std::size_t shift : {0U, 1U}) {
    for (const std::int64_t count : kCounts) {
      const Array x = odd_numbers(count, 112);
      in_every_order([&] {
        const DeviceRows device_x(x, shift);
        relu_cuda(dtype(), device_x.data(), count, nullptr);
        Array expected = x;
        twin().relu(dtype(), expected.data(), count);
        expect_same(device_x.values(), expected);
      });
    }
  }
}

// ---- The gate ----

struct Gate {
  std::int64_t rows;
  std::int64_t dim;
  Layout layout;
};

/// y of the device or, if that runs on the host, of the twin.
template <typename Run>
void run_gate(const Gate& gate, DType dtype, const void* g, const void* up, void* y, Run run) {
  const std::int64_t stride = gate.dim + gate.layout.gap;
  run(SiluGateArgs{.dtype = dtype,
                   .gate = g,
                   .up = up,
                   .y = y,
                   .rows = gate.rows,
                   .dim = gate.dim,
                   .gate_stride = stride,
                   .up_stride = stride,
                   .y_stride = stride});
}

TEST_P(ElementwiseOnDevice, SiluGateAgreesWithTheTwin) {
  for (const Layout layout : kLayouts) {
    for (const Gate gate : {Gate{1, 1, layout},
                            Gate{5, 33, layout},
                            Gate{3, 96, layout},
                            Gate{1, 1033, layout},
                            Gate{2, 1032, layout}}) {
      const std::int64_t count = gate.rows * (gate.dim + layout.gap);
      Array g = odd_numbers(count, 113);
      for (std::int64_t i = 0; i < count; i += 2) g.set(i, g.at(i) * 20.0F);
      const Array up = random_array(dtype(), count, 114);
      const Array before = random_array(dtype(), count, 115);
      Array expected = before;
      run_gate(gate, dtype(), g.data(), up.data(), expected.data(), twin().silu_gate);
      in_every_order([&] {
        const DeviceRows device_g(g, layout.shift);
        const DeviceRows device_up(up, layout.shift);
        const DeviceRows y(before, layout.shift);
        run_gate(gate,
                 dtype(),
                 device_g.data(),
                 device_up.data(),
                 y.data(),
                 [](const SiluGateArgs& args) { silu_gate_cuda(args, nullptr); });
        expect_near(y.values(), expected, [&](std::int64_t i, double value) {
          if (i % (gate.dim + layout.gap) >= gate.dim) return 0.0;  // the gap between rows
          // Both exponentials are off by at most 2 units in the last place, and each has a sum, a
          // quotient and a product: 2 * (4 + 3) halves of a unit.
          return std::abs(value) * (sum_error(10) + 2.02 * unit_roundoff(dtype())) +
                 absolute_floor(dtype());
        });
      });
    }
  }
}

TEST_P(ElementwiseOnDevice, SiluGateMayWriteOverItsInputs) {
  const Gate gate{2, 96, {}};
  const Array g = odd_numbers(2 * 96, 116);
  const Array up = random_array(dtype(), 2 * 96, 117);
  const auto on_device = [](const SiluGateArgs& args) { silu_gate_cuda(args, nullptr); };
  const DeviceRows device_g(g);
  const DeviceRows device_up(up);
  const DeviceRows y(up);
  run_gate(gate, dtype(), device_g.data(), device_up.data(), y.data(), on_device);
  const DeviceRows over_g(g);
  run_gate(gate, dtype(), over_g.data(), device_up.data(), over_g.data(), on_device);
  const DeviceRows over_up(up);
  run_gate(gate, dtype(), device_g.data(), over_up.data(), over_up.data(), on_device);
  expect_same(over_g.values(), y.values());
  expect_same(over_up.values(), y.values());
}

// ---- Rows of a table ----

TEST_P(ElementwiseOnDevice, SelectRowsCopiesTheRowsOfTheIds) {
  const std::vector<std::int64_t> ids = {4, 0, 4, -1, 2};
  const DeviceCopy device_ids(ids);
  constexpr std::int64_t kOffset = 2;
  for (const Layout layout : kLayouts) {
    for (const std::int64_t dim : {1, 33, 96, 1032}) {
      const std::int64_t stride = dim + layout.gap;
      const Array table = odd_numbers(7 * dim, 118);
      const Array before = odd_numbers(5 * stride, 119);
      Array expected = before;
      for (std::int64_t row = 0; row < 5; ++row) {
        for (std::int64_t i = 0; i < dim; ++i) {
          const float from = table.at((ids[static_cast<std::size_t>(row)] + kOffset) * dim + i);
          if (std::isnan(from)) {
            set_nan(expected, row * stride + i);
          } else {
            expected.set(row * stride + i, from);
          }
        }
      }
      in_every_order([&] {
        const DeviceRows device_table(table, layout.shift);
        const DeviceRows y(before, layout.shift);
        select_rows_cuda({.dtype = dtype(),
                          .table = device_table.data(),
                          .ids = device_ids.get<std::int64_t>(),
                          .offset = kOffset,
                          .y = y.data(),
                          .rows = 5,
                          .dim = dim,
                          .y_stride = stride},
                         nullptr);
        expect_same(y.values(), expected);
      });
    }
  }
}

TEST_P(ElementwiseOnDevice, NothingWritesNothing) {
  const Array before = random_array(dtype(), 8, 121);
  const DeviceRows y(before);
  add_cuda(dtype(), y.data(), y.data(), 0, nullptr);
  relu_cuda(dtype(), y.data(), 0, nullptr);
  silu_gate_cuda({.dtype = dtype(), .gate = y.data(), .up = y.data(), .y = y.data(), .dim = 8},
                 nullptr);
  select_rows_cuda({.dtype = dtype(), .table = y.data(), .y = y.data(), .rows = 1}, nullptr);
  expect_same(y.values(), before);
}

// More rows than a grid has along y, so that blocks take several.
TEST(SelectRowsCuda, LoopsOverMoreRowsThanAGridHas) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
#if HYBRIDGEN_SANITIZES_THREAD
  GTEST_SKIP() << "any other build would run it: two million threads, none of which meet";
#endif
  constexpr std::int64_t kRows = kMostBlocksY + 7;
  std::vector<std::int64_t> ids(kRows);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i % 11);
  const DeviceCopy device_ids(ids);
  const Array table = random_array(DType::kFloat32, 11, 120);
  const DeviceRows device_table(table);
  const DeviceRows y(Array(DType::kFloat32, kRows));
  select_rows_cuda({.dtype = DType::kFloat32,
                    .table = device_table.data(),
                    .ids = device_ids.get<std::int64_t>(),
                    .y = y.data(),
                    .rows = kRows,
                    .dim = 1,
                    .y_stride = 1},
                   nullptr);
  const Array values = y.values();
  for (std::int64_t row = 0; row < kRows; ++row) ASSERT_EQ(values.at(row), table.at(row % 11));
}

INSTANTIATE_TEST_SUITE_P(DTypes, ElementwiseOnDevice, all_dtypes(), [](const auto& param) {
  return std::string(name_of(param.param));
});

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
