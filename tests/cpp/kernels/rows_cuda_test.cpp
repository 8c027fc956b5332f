// SPDX-License-Identifier: Apache-2.0
// Norms on a device against their CPU twins.
#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_rows.h"
#include "row_test_support.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "device_rows.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(RowsCuda, WithoutCudaIsRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(norm_rows_cuda({}, nullptr), DeviceError);
  EXPECT_THROW(place_heads_cuda({}, nullptr), DeviceError);
  EXPECT_THROW(select_rows_cuda({}, nullptr), DeviceError);
  EXPECT_THROW(silu_gate_cuda({}, nullptr), DeviceError);
  EXPECT_THROW(relu_cuda(DType::kFloat32, nullptr, 1, nullptr), DeviceError);
  EXPECT_THROW(add_cuda(DType::kFloat32, nullptr, nullptr, 1, nullptr), DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

enum class Kind : std::uint8_t { kRms, kLayer };

struct Shape {
  Kind kind;
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t dim;
  Layout layout;

  std::int64_t stride() const { return heads * dim + layout.gap; }
};

/// What goes into a norm, and into one of the same x with other weights.
struct Inputs {
  Inputs(DType dtype, const Shape& shape)
      : Inputs(random_array(dtype, shape.rows * shape.stride(), 100), shape) {}
  Inputs(Array given_x, const Shape& shape)
      : x(std::move(given_x)),
        addend(random_array(x.dtype(), x.count(), 101)),
        y(random_array(x.dtype(), x.count(), 102)) {
    for (std::uint32_t i = 0; i < 2; ++i) {
      weights[i] = random_array(x.dtype(), shape.dim, 103 + i);
      biases[i] = random_array(x.dtype(), shape.dim, 105 + i);
    }
  }

  Array x;
  Array addend;
  Array y;
  Array weights[2];
  Array biases[2];
};

struct Options {
  bool adds = false;
  bool is_in_place = false;
  bool has_second = false;
  std::size_t weights = 0;
};

struct Results {
  Array x;
  Array y;
  Array second_y;
};

Results on_device(const Inputs& in, const Shape& shape, Options options = {}) {
  const std::size_t shift = shape.layout.shift;
  const DeviceRows x(in.x, shift);
  const DeviceRows addend(in.addend, shift);
  const DeviceRows y(in.y, shift);
  const DeviceRows second_y(in.y, shift);
  const DeviceRows weights[] = {DeviceRows(in.weights[0], shift), DeviceRows(in.weights[1], shift)};
  const DeviceRows biases[] = {DeviceRows(in.biases[0], shift), DeviceRows(in.biases[1], shift)};
  NormRows args{.dtype = in.x.dtype(),
                .x = x.data(),
                .addend = options.adds ? addend.data() : nullptr,
                .weight = weights[options.weights].data(),
                .y = options.is_in_place ? x.data() : y.data(),
                .is_layer_norm = shape.kind == Kind::kLayer,
                .rows = shape.rows,
                .heads = shape.heads,
                .dim = shape.dim,
                .x_stride = shape.stride(),
                .addend_stride = shape.stride(),
                .y_stride = shape.stride(),
                .second_y_stride = shape.stride(),
                .eps = 1e-3F};
  if (args.is_layer_norm) args.bias = biases[options.weights].data();
  if (options.has_second) {
    args.second_y = second_y.data();
    args.second_weight = weights[1].data();
    if (args.is_layer_norm) args.second_bias = biases[1].data();
  }
  norm_rows_cuda(args, nullptr);
  return {x.values(), options.is_in_place ? x.values() : y.values(), second_y.values()};
}

/// y of the CPU twin, whose rows have one head.
Array on_host(const Inputs& in, const Shape& shape) {
  const CpuKernels& twin = cpu_kernels(Isa::kPortable);
  Array y = in.y;
  for (std::int64_t head = 0; head < shape.heads; ++head) {
    const std::size_t at = static_cast<std::size_t>(head * shape.dim) * size_of(y.dtype());
    const NormArgs args{.dtype = y.dtype(),
                        .x = static_cast<const std::byte*>(in.x.data()) + at,
                        .weight = in.weights[0].data(),
                        .bias = shape.kind == Kind::kLayer ? in.biases[0].data() : nullptr,
                        .y = static_cast<std::byte*>(y.data()) + at,
                        .rows = shape.rows,
                        .dim = shape.dim,
                        .x_stride = shape.stride(),
                        .y_stride = shape.stride(),
                        .eps = 1e-3F};
    (shape.kind == Kind::kLayer ? twin.layer_norm : twin.rms_norm)(args);
  }
  return y;
}

class NormRowsOnDevice : public testing::TestWithParam<std::tuple<DType, Kind>> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
  DType dtype() const { return std::get<0>(GetParam()); }
  Kind kind() const { return std::get<1>(GetParam()); }

  /// Calls `check` with shapes of all kinds: one number, fewer than a warp, more than a block has
  /// packs for, whole packs and not, rows that are several heads.
  template <typename Check>
  void for_shapes(Check check) const {
    for (const Layout layout : kLayouts) {
      for (const std::int64_t dim : {1, 33, 96, 4097, 4608}) {
        for (const auto& [rows, heads] : {std::pair{1, 1}, std::pair{3, 1}, std::pair{2, 5}}) {
          if (dim > 4000 && (rows > 1 || layout.gap > 0)) continue;
          SCOPED_TRACE(message(rows, " rows of ", heads, " x ", dim, ", shift ", layout.shift));
          check(Shape{kind(), rows, heads, dim, layout});
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
};

// ---- Identities ----

// With exact sums the scale has the twin's bits, and an RMS norm all of them: a number that is left
// out or taken twice shows in every row, however long. A layer norm's last product and sum may be
// rounded once or twice in float32, after which the rounding to the dtype may go the other way.
TEST_P(NormRowsOnDevice, OfExactSumsHasTheTwinsBits) {
  for_shapes([&](const Shape& shape) {
    Inputs in(dtype(), shape);
    for (std::int64_t row = 0; row < shape.rows; ++row) {
      for (std::int64_t head = 0; head < shape.heads; ++head) {
        const std::int64_t at = row * shape.stride() + head * shape.dim;
        set_mirrored_integers(in.x, at, shape.dim, kind() == Kind::kLayer ? 5.0F : 0.0F);
      }
    }
    const Array y = on_device(in, shape).y;
    const Array expected = on_host(in, shape);
    if (kind() == Kind::kRms) {
      expect_same(y, expected);
      return;
    }
    expect_near(y, expected, [&](std::int64_t i, double value) {
      const std::int64_t column = i % shape.stride();
      if (column >= shape.heads * shape.dim) return 0.0;  // the gap between rows
      const double bias = in.biases[0].at(column % shape.dim);
      const double product = std::abs(value) + std::abs(bias);
      return 2.02 * unit_roundoff(DType::kFloat32) * product +
             2.02 * unit_roundoff(dtype()) * std::abs(value) + absolute_floor(dtype());
    });
  });
}

TEST_P(NormRowsOnDevice, OfASumIsTheSumAndThenItsNorm) {
  for_shapes([&](const Shape& shape) {
    const Inputs in(dtype(), shape);
    const Results fused = on_device(in, shape, {.adds = true});
    Inputs added = in;
    for (std::int64_t i = 0; i < in.x.count(); ++i) {
      const bool is_gap = i % shape.stride() >= shape.heads * shape.dim;
      if (!is_gap) added.x.set(i, in.x.at(i) + in.addend.at(i));
    }
    expect_same(fused.x, added.x);
    expect_same(fused.y, on_device(added, shape).y);
  });
}

TEST_P(NormRowsOnDevice, WithASecondOutputIsTwoNorms) {
  for_shapes([&](const Shape& shape) {
    const Inputs in(dtype(), shape);
    const Results both = on_device(in, shape, {.has_second = true});
    expect_same(both.x, in.x);
    expect_same(both.y, on_device(in, shape).y);
    expect_same(both.second_y, on_device(in, shape, {.weights = 1}).y);
  });
}

TEST_P(NormRowsOnDevice, MayWriteOverItsInput) {
  for_shapes([&](const Shape& shape) {
    Inputs in(dtype(), shape);
    in.y = in.x;  // so that gaps are the same
    expect_same(on_device(in, shape, {.is_in_place = true}).y, on_device(in, shape).y);
    expect_same(on_device(in, shape, {.adds = true, .is_in_place = true}).y,
                on_device(in, shape, {.adds = true}).y);
  });
}

TEST_P(NormRowsOnDevice, OfNothingWritesNothing) {
  const Shape shape{kind(), 2, 1, 8, {}};
  const Inputs in(dtype(), shape);
  for (const Shape& empty :
       {Shape{kind(), 0, 1, 8, {}}, Shape{kind(), 2, 0, 8, {}}, Shape{kind(), 2, 1, 0, {}}}) {
    expect_same(on_device(in, empty).y, in.y);
  }
}

// ---- The twin ----

/// The most that a norm of random numbers around `mean` may be away from the twin's: each is off
/// by the error of its sums; the second rounding to the dtype may go another way, as may the first
/// of an RMS norm.
auto tolerance_of(const Inputs& in, const Shape& shape, double mean) {
  return [&in, shape, mean](std::int64_t i, double value) {
    const std::int64_t column = i % shape.stride();
    if (column >= shape.heads * shape.dim) return 0.0;  // the gap between rows
    const DType dtype = in.x.dtype();
    const double weight = std::abs(static_cast<double>(in.weights[0].at(column % shape.dim)));
    double size = std::abs(value);
    double roundings = 2.0;
    if (shape.kind == Kind::kLayer) {
      // The mean is off by up to mean * sum_error, and the result by that times the scale, which is
      // at most 1 / sqrt(eps).
      size += 2.0 * std::abs(static_cast<double>(in.biases[0].at(column % shape.dim)));
      size += 2.0 * (mean + 6.0) * weight / std::sqrt(1e-3);
      roundings = 1.0;
    }
    return size * sum_error(shape.dim + 8) +
           2.02 * roundings * unit_roundoff(dtype) * std::abs(value) +
           absolute_floor(dtype) * (1.0 + weight);
  };
}

TEST_P(NormRowsOnDevice, AgreesWithTheTwin) {
  for (const float mean : {0.0F, 100.0F}) {
    for_shapes([&](const Shape& shape) {
      Inputs in(dtype(), shape);
      for (std::int64_t i = 0; i < in.x.count(); ++i) in.x.set(i, in.x.at(i) + mean);
      expect_near(on_device(in, shape).y,
                  on_host(in, shape),
                  tolerance_of(in, shape, static_cast<double>(mean)));
    });
  }
}

TEST_P(NormRowsOnDevice, GivesTheSameInEveryOrder) {
  const Shape shape{kind(), 3, 2, 520, {.shift = 0, .gap = 8}};
  const Inputs in(dtype(), shape);
  const Options all{.adds = true, .has_second = true};
  const Results expected = on_device(in, shape, all);
  in_every_order([&] {
    const Results results = on_device(in, shape, all);
    expect_same(results.x, expected.x);
    expect_same(results.y, expected.y);
    expect_same(results.second_y, expected.second_y);
  });
}

// A number that is none makes its own row useless, as on the CPU, and no other.
TEST_P(NormRowsOnDevice, KeepsWhatIsNotFiniteInItsRow) {
  const Shape shape{kind(), 5, 1, 96, {}};
  Inputs in(dtype(), shape);
  in.x.set(1 * 96 + 95, kInfinity);
  in.x.set(3 * 96 + 7, -kInfinity);
  set_nan(in.x, 4 * 96);
  const Array y = on_device(in, shape).y;
  expect_near(y, on_host(in, shape), tolerance_of(in, shape, 0.0));
  EXPECT_TRUE(std::isnan(y.at(1 * 96 + 95)));
  EXPECT_TRUE(std::isnan(y.at(4 * 96 + 50)));
  EXPECT_TRUE(std::isfinite(y.at(2 * 96 + 50)));
}

INSTANTIATE_TEST_SUITE_P(Every,
                         NormRowsOnDevice,
                         testing::Combine(all_dtypes(), testing::Values(Kind::kRms, Kind::kLayer)),
                         [](const auto& param) {
                           return std::string(name_of(std::get<0>(param.param))) +
                                  (std::get<1>(param.param) == Kind::kRms ? "_rms" : "_layer");
                         });

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
