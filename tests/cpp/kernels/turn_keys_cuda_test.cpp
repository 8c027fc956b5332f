// SPDX-License-Identifier: Apache-2.0
// Keys turned by their tokens' places on a device, beside copies that the CPU kernel rotates.
#include <memory>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_resident.h"
#include "row_test_support.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "device_rows.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(TurnKeysCuda, WithoutCudaIsRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(turn_keys_cuda({}, nullptr), DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

constexpr std::int64_t kBatch = 4;
constexpr std::int64_t kLayers = 2;
constexpr std::int64_t kLayer = 1;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kSlots = 7;
constexpr std::int64_t kWindow = 6;  ///< slots of turned keys
constexpr std::int64_t kUnturned = 3;

/// Tokens of a row's request, some of which lie behind the first slot.
std::int64_t first_slot(std::int64_t row) { return row % 2; }
std::int64_t num_resident(std::int64_t row) { return kWindow - row; }

/// Keys of all rows, what they turn by, and what lies where turned ones go.
struct Keys {
  Keys(DType dtype, std::int64_t dim)
      : cosines(random_floats(kWindow * (dim / 2), 220)),
        sines(random_floats(kWindow * (dim / 2), 221)) {
    for (std::uint32_t row = 0; row < kBatch; ++row) {
      keys.push_back(random_array(dtype, kLayers * kHeads * kSlots * dim, 222 + row));
      turned.push_back(random_array(dtype, kHeads * kWindow * dim, 230 + row));
    }
    // The heads of a layer have places of their own in one row and share them in the next.
    for (std::int64_t i = 0; i < 2 * kWindow; ++i) places.push_back(i * 5 % kWindow);
  }
  static std::vector<std::int64_t> place_rows(std::int64_t row) {
    return row % 2 == 0 ? std::vector<std::int64_t>{0, 0, 0, 1}
                        : std::vector<std::int64_t>{0, 0, 1, 1};
  }

  std::vector<Array> keys;    ///< [kLayers, kHeads, kSlots, dim] of each row's request
  std::vector<Array> turned;  ///< [kHeads, kWindow, dim]
  std::vector<float> cosines, sines;
  std::vector<std::int64_t> places;  ///< [2, kWindow]
};

std::vector<Array> on_host(const Keys& in, std::int64_t dim) {
  std::vector<Array> turned = in.turned;
  for (std::int64_t row = 0; row < kBatch; ++row) {
    if (row == kUnturned) continue;
    Array& to = turned[static_cast<std::size_t>(row)];
    for (std::int64_t head = 0; head < kHeads; ++head) {
      copy_numbers(to,
                   head * kWindow * dim,
                   in.keys[static_cast<std::size_t>(row)],
                   ((kLayer * kHeads + head) * kSlots + first_slot(row)) * dim,
                   num_resident(row) * dim);
      const std::int64_t of_head =
          Keys::place_rows(row)[static_cast<std::size_t>(kLayer * kHeads + head)];
      cpu_kernels(Isa::kPortable)
          .rotate({.dtype = to.dtype(),
                   .x = static_cast<std::byte*>(to.data()) +
                        static_cast<std::size_t>(head * kWindow * dim) * size_of(to.dtype()),
                   .positions = in.places.data() + of_head * kWindow,
                   .cosines = in.cosines.data(),
                   .sines = in.sines.data(),
                   .rows = num_resident(row),
                   .heads = 1,
                   .head_dim = dim,
                   .x_stride = dim});
    }
  }
  return turned;
}

std::vector<Array> on_device(const Keys& in, std::int64_t dim, std::size_t shift) {
  std::vector<std::unique_ptr<DeviceRows>> keys;
  std::vector<std::unique_ptr<DeviceRows>> turned;
  std::vector<std::unique_ptr<DeviceCopy>> place_rows;
  const DeviceCopy places(in.places);
  const DeviceCopy cosines(in.cosines);
  const DeviceCopy sines(in.sines);
  std::vector<StepRow> steps;
  for (std::int64_t row = 0; row < kBatch; ++row) {
    const auto at = static_cast<std::size_t>(row);
    keys.push_back(std::make_unique<DeviceRows>(in.keys[at], row == 2 ? shift : 0));
    turned.push_back(std::make_unique<DeviceRows>(in.turned[at], row == 0 ? shift : 0));
    place_rows.push_back(std::make_unique<DeviceCopy>(Keys::place_rows(row)));
    StepRow step{.num_resident = num_resident(row),
                 .first_slot = first_slot(row),
                 .keys = keys[at]->data(),
                 .layer_stride = kHeads * kSlots * dim,
                 .head_stride = kSlots * dim};
    if (row != kUnturned) {
      step.turned_keys = turned[at]->data();
      step.turned_head_stride = kWindow * dim;
      step.place_rows = place_rows[at]->get<std::int64_t>();
      step.places = places.get<std::int64_t>();
      step.place_stride = kWindow;
    }
    steps.push_back(step);
  }
  const DeviceCopy step_rows(steps);
  turn_keys_cuda({.dtype = in.keys[0].dtype(),
                  .rows = step_rows.get<StepRow>(),
                  .batch = kBatch,
                  .num_kv_heads = kHeads,
                  .head_dim = dim,
                  .layer = kLayer,
                  .max_resident = kWindow,
                  .cosines = cosines.get<float>(),
                  .sines = sines.get<float>()},
                 nullptr);
  std::vector<Array> out;
  for (std::size_t row = 0; row < kBatch; ++row) {
    EXPECT_TRUE(keys[row]->values() == in.keys[row]) << "keys of row " << row;
    out.push_back(turned[row]->values());
  }
  return out;
}

class TurnKeysOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
  /// Calls `check` with keys of one number up to more than a warp's packs, and odd sizes.
  template <typename Check>
  void for_sizes(Check check) const {
    for (const std::int64_t dim : {1, 6, 33, 128, 528}) {
      for (const std::size_t shift : {0U, 1U}) {
        SCOPED_TRACE(std::to_string(dim) + " dimensions, shift " + std::to_string(shift));
        check(dim, shift);
      }
    }
  }
};

// Products by 0 and 1 and sums with 0 are exact.
TEST_P(TurnKeysOnDevice, TheAngleZeroCopies) {
  for_sizes([&](std::int64_t dim, std::size_t shift) {
    Keys in(GetParam(), dim);
    in.cosines.assign(in.cosines.size(), 1.0F);
    in.sines.assign(in.sines.size(), 0.0F);
    const std::vector<Array> actual = on_device(in, dim, shift);
    const std::vector<Array> expected = on_host(in, dim);
    for (std::size_t row = 0; row < kBatch; ++row) expect_same(actual[row], expected[row]);
  });
}

// A rotation may be contracted to fused products and sums, nothing else differs.
TEST_P(TurnKeysOnDevice, AgreesWithTheTwin) {
  for_sizes([&](std::int64_t dim, std::size_t shift) {
    const Keys in(GetParam(), dim);
    const std::vector<Array> actual = on_device(in, dim, shift);
    const std::vector<Array> expected = on_host(in, dim);
    for (std::size_t row = 0; row < kBatch; ++row) {
      // No number of a key, cosine or sine is beyond 8: so large are the two products at most.
      expect_near(actual[row], expected[row], [&](std::int64_t /*i*/, double value) {
        return 2 * 64 * sum_error(2) + 2.02 * unit_roundoff(GetParam()) * std::abs(value) +
               absolute_floor(GetParam());
      });
    }
    expect_same(actual[kUnturned], in.turned[kUnturned]);
  });
}

TEST_P(TurnKeysOnDevice, GivesTheSameInEveryOrder) {
  for (const std::int64_t dim : {33, 128}) {
    const Keys in(GetParam(), dim);
    const std::vector<Array> expected = on_device(in, dim, 0);
    in_every_order([&] {
      const std::vector<Array> actual = on_device(in, dim, 0);
      for (std::size_t row = 0; row < kBatch; ++row) expect_same(actual[row], expected[row]);
    });
  }
}

TEST_P(TurnKeysOnDevice, NothingWritesNothing) {
  turn_keys_cuda({.dtype = GetParam(), .batch = 1, .num_kv_heads = 1, .head_dim = 8}, nullptr);
}

INSTANTIATE_TEST_SUITE_P(DTypes, TurnKeysOnDevice, all_dtypes(), [](const auto& param) {
  return std::string(name_of(param.param));
});

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
