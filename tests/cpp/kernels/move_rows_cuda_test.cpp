// SPDX-License-Identifier: Apache-2.0
// The newest tokens' rows take other slots on a device as copies on the host do.
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

TEST(MoveRowsCuda, WithoutCudaIsRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(move_rows_cuda({}, nullptr), DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

constexpr std::int64_t kBatch = 3;
constexpr std::int64_t kLayers = 2;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kSlots = 7;

/// Tokens of a row's request, some of which lie behind the first slot.
std::int64_t first_slot(std::int64_t row) { return row % 2; }
std::int64_t num_resident(std::int64_t row) { return 4 + row % 3; }

/// Caches of all rows and where the newest tokens go: some stay, in one row all do.
struct Caches {
  Caches(DType dtype, std::int64_t dim) {
    for (std::uint32_t row = 0; row < kBatch; ++row) {
      keys.push_back(random_array(dtype, kLayers * kHeads * kSlots * dim, 200 + row));
      values.push_back(random_array(dtype, kLayers * kHeads * kSlots * dim, 210 + row));
      set_nan(keys.back(), keys.back().count() - 1);
    }
    for (std::int64_t at = 0; at < kBatch * kLayers * kHeads; ++at) {
      const std::int64_t row = at / (kLayers * kHeads);
      const bool stays = row == 1 || at % 3 == 2;
      slots.push_back(stays ? -1 : static_cast<std::int32_t>(at % 3 + first_slot(row)));
    }
  }

  std::vector<Array> keys, values;  ///< [kLayers, kHeads, kSlots, dim] of each row's request
  std::vector<std::int32_t> slots;  ///< [kBatch, kLayers, kHeads]
};

Caches on_host(const Caches& in, std::int64_t dim) {
  Caches out = in;
  for (std::size_t at = 0; at < in.slots.size(); ++at) {
    if (in.slots[at] < 0) continue;
    const std::size_t row = at / (kLayers * kHeads);
    const auto number = static_cast<std::int64_t>(row);
    const std::int64_t head = static_cast<std::int64_t>(at) % (kLayers * kHeads) * kSlots;
    const std::int64_t from = (head + first_slot(number) + num_resident(number) - 1) * dim;
    const std::int64_t to = (head + in.slots[at]) * dim;
    copy_numbers(out.keys[row], to, in.keys[row], from, dim);
    copy_numbers(out.values[row], to, in.values[row], from, dim);
  }
  return out;
}

Caches on_device(const Caches& in, std::int64_t dim, std::size_t shift) {
  std::vector<std::unique_ptr<DeviceRows>> keys;
  std::vector<std::unique_ptr<DeviceRows>> values;
  std::vector<StepRow> steps;
  for (std::size_t row = 0; row < kBatch; ++row) {
    const auto number = static_cast<std::int64_t>(row);
    keys.push_back(std::make_unique<DeviceRows>(in.keys[row], row == 2 ? shift : 0));
    values.push_back(std::make_unique<DeviceRows>(in.values[row], shift));
    steps.push_back({.num_resident = num_resident(number),
                     .first_slot = first_slot(number),
                     .keys = keys[row]->data(),
                     .values = values[row]->data(),
                     .layer_stride = kHeads * kSlots * dim,
                     .head_stride = kSlots * dim});
  }
  const DeviceCopy step_rows(steps);
  const DeviceCopy slots(in.slots);
  move_rows_cuda({.dtype = in.keys[0].dtype(),
                  .rows = step_rows.get<StepRow>(),
                  .slots = slots.get<std::int32_t>(),
                  .batch = kBatch,
                  .num_layers = kLayers,
                  .num_kv_heads = kHeads,
                  .head_dim = dim},
                 nullptr);
  Caches out = in;
  for (std::size_t row = 0; row < kBatch; ++row) {
    out.keys[row] = keys[row]->values();
    out.values[row] = values[row]->values();
  }
  return out;
}

/// Every bit, those of what is no number too.
void expect_equal(const Caches& actual, const Caches& expected) {
  for (std::size_t row = 0; row < kBatch; ++row) {
    EXPECT_TRUE(actual.keys[row] == expected.keys[row]) << "row " << row;
    EXPECT_TRUE(actual.values[row] == expected.values[row]) << "row " << row;
  }
}

class MoveRowsOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

TEST_P(MoveRowsOnDevice, MovesWhatMovesAndNothingElse) {
  for (const std::int64_t dim : {1, 6, 33, 128, 528}) {
    for (const std::size_t shift : {0U, 1U}) {
      SCOPED_TRACE(std::to_string(dim) + " dimensions, shift " + std::to_string(shift));
      const Caches in(GetParam(), dim);
      expect_equal(on_device(in, dim, shift), on_host(in, dim));
    }
  }
}

TEST_P(MoveRowsOnDevice, GivesTheSameInEveryOrder) {
  for (const std::int64_t dim : {33, 128}) {
    const Caches in(GetParam(), dim);
    const Caches expected = on_host(in, dim);
    in_every_order([&] { expect_equal(on_device(in, dim, 0), expected); });
  }
}

TEST_P(MoveRowsOnDevice, NothingMovesNothing) {
  Caches in(GetParam(), 8);
  std::ranges::fill(in.slots, -1);
  expect_equal(on_device(in, 8, 0), in);
  move_rows_cuda({.dtype = GetParam(), .head_dim = 8}, nullptr);
}

INSTANTIATE_TEST_SUITE_P(DTypes, MoveRowsOnDevice, all_dtypes(), [](const auto& param) {
  return std::string(name_of(param.param));
});

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
