// SPDX-License-Identifier: Apache-2.0
// Query and key heads between projection and attention, on a device: norm, rotation and the copy to
// the new token's slot.
#include <memory>

#include "heads_test_support.h"
#include "hybridgen/core/error.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_rows.h"
#include "row_test_support.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "device_rows.h"
#endif

namespace hybridgen::kernels::test {
namespace {

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

Heads on_device(const Heads& in, const HeadsShape& shape, HeadsOptions options) {
  const std::size_t shift = shape.layout.shift;
  const DeviceRows query(in.query, shift);
  const DeviceRows key(in.key, shift);
  const DeviceRows value(in.value, shift);
  const DeviceRows norms[] = {DeviceRows(in.norms[0], shift), DeviceRows(in.norms[1])};
  const DeviceCopy cosines(in.cosines);
  const DeviceCopy sines(in.sines);
  const DeviceCopy rotation_rows(in.rotation_rows);
  std::vector<std::unique_ptr<DeviceRows>> keys(in.keys.size());
  std::vector<std::unique_ptr<DeviceRows>> values(in.keys.size());
  std::vector<StepRow> steps;
  for (std::size_t row = 0; row < in.keys.size(); ++row) {
    // Where a request's tokens lie is not where all others' do: of some rows the slots cannot be
    // written in packs.
    keys[row] = std::make_unique<DeviceRows>(in.keys[row], row % 3);
    values[row] = std::make_unique<DeviceRows>(in.values[row], row % 2);
    const auto number = static_cast<std::int64_t>(row);
    steps.push_back({.num_resident = num_resident(number),
                     .first_slot = first_slot(number),
                     .keys = keys[row]->data(),
                     .values = values[row]->data(),
                     .layer_stride = shape.kv_heads * kSlots * shape.dim,
                     .head_stride = kSlots * shape.dim});
  }
  const DeviceCopy step_rows(steps);
  HeadsOfRows args{.dtype = in.query.dtype(),
                   .query = options.query ? query.data() : nullptr,
                   .key = options.key ? key.data() : nullptr,
                   .value = options.value ? value.data() : nullptr,
                   .rows = shape.rows,
                   .num_heads = shape.heads,
                   .num_kv_heads = shape.kv_heads,
                   .head_dim = shape.dim,
                   .query_stride = shape.stride(shape.heads),
                   .key_stride = shape.stride(shape.kv_heads),
                   .value_stride = shape.stride(shape.kv_heads),
                   .eps = kEps,
                   .rotate_key = options.turns_key,
                   .layer = kLayer};
  if (options.norms) {
    args.query_norm = norms[0].data();
    args.key_norm = norms[1].data();
  }
  if (options.turns) {
    args.rotation_rows = rotation_rows.get<std::int64_t>();
    args.cosines = cosines.get<float>();
    args.sines = sines.get<float>();
  }
  if (options.places) args.step_rows = step_rows.get<StepRow>();
  place_heads_cuda(args, nullptr);
  Heads out = in;
  out.query = query.values();
  out.key = key.values();
  out.value = value.values();
  for (std::size_t row = 0; row < in.keys.size(); ++row) {
    out.keys[row] = keys[row]->values();
    out.values[row] = values[row]->values();
  }
  return out;
}

void expect_same(const Heads& actual, const Heads& expected) {
  test::expect_same(actual.query, expected.query);
  test::expect_same(actual.key, expected.key);
  test::expect_same(actual.value, expected.value);
  for (std::size_t row = 0; row < actual.keys.size(); ++row) {
    SCOPED_TRACE("row " + std::to_string(row));
    test::expect_same(actual.keys[row], expected.keys[row]);
    test::expect_same(actual.values[row], expected.values[row]);
  }
}

class PlaceHeads : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
  DType dtype() const { return GetParam(); }

  /// Calls `check` with heads of one number up to more than a warp's packs, odd sizes too, and
  /// with several query heads per KV head or one.
  template <typename Check>
  void for_shapes(Check check) const {
    for (const Layout layout : kLayouts) {
      for (const std::int64_t dim : {1, 6, 33, 96, 128, 528}) {
        for (const HeadsShape& shape :
             {HeadsShape{5, 3, 1, dim, layout}, HeadsShape{2, 2, 2, dim, layout}}) {
          SCOPED_TRACE(message(shape.rows,
                               " rows, ",
                               shape.heads,
                               " heads of ",
                               dim,
                               ", shift ",
                               layout.shift,
                               ", gap ",
                               layout.gap));
          check(shape);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
};

// ---- Identities ----

TEST_P(PlaceHeads, WithoutNormAndTablesOnlyTheSlotsOfNewTokensChange) {
  for_shapes([&](const HeadsShape& shape) {
    const Heads in(dtype(), shape);
    const HeadsOptions options{.places = true};
    expect_same(on_device(in, shape, options), on_host(in, shape, options));
  });
}

TEST_P(PlaceHeads, NormsHaveTheTwinsBits) {
  for_shapes([&](const HeadsShape& shape) {
    const Heads in(dtype(), shape);
    const HeadsOptions options{.norms = true, .places = true};
    expect_same(on_device(in, shape, options), on_host(in, shape, options));
  });
}

// Products by 0 and 1 and sums with 0 are exact.
TEST_P(PlaceHeads, TheAngleZeroChangesNothing) {
  for_shapes([&](const HeadsShape& shape) {
    Heads in(dtype(), shape);
    in.cosines.assign(in.cosines.size(), 1.0F);
    in.sines.assign(in.sines.size(), 0.0F);
    const HeadsOptions options{.turns = true, .places = true};
    const HeadsOptions unturned{.places = true};
    expect_same(on_device(in, shape, options), on_host(in, shape, unturned));
  });
}

TEST_P(PlaceHeads, AQuarterTurnSwapsTheHalves) {
  for_shapes([&](const HeadsShape& shape) {
    Heads in(dtype(), shape);
    const std::int64_t half = shape.dim / 2;
    in.cosines.assign(in.cosines.size(), 0.0F);
    in.sines.assign(in.sines.size(), 1.0F);
    const Heads out = on_device(in, shape, {.turns = true});
    for (std::int64_t i = 0; i < in.query.count(); ++i) {
      const std::int64_t column = i % shape.stride(shape.heads);
      const std::int64_t d = column % shape.dim;
      // Neither the gap between rows nor the last one of an odd number is turned.
      const bool turns = column < shape.heads * shape.dim && d < 2 * half;
      const float expected = !turns     ? in.query.at(i)
                             : d < half ? -in.query.at(i + half)
                                        : in.query.at(i - half);
      ASSERT_EQ(out.query.at(i), expected) << i;
    }
  });
}

// ---- The twin ----

/// Heads that differ from the twin's in the rounding of the rotation, and before it by
/// `normed_error` of the normalised numbers, which `normed` holds.
void expect_turned(const Array& actual,
                   const Array& expected,
                   const Array& normed,
                   const Heads& in,
                   const HeadsShape& shape,
                   std::int64_t heads,
                   double normed_error) {
  const std::int64_t half = shape.dim / 2;
  const std::int64_t stride = shape.stride(heads);
  expect_near(actual, expected, [&](std::int64_t i, double value) {
    const std::int64_t d = i % stride % shape.dim;
    if (i % stride >= heads * shape.dim) return 0.0;  // the gap between rows
    double size = std::abs(value);
    if (d < 2 * half) {
      const std::int64_t angles = in.rotation_rows[static_cast<std::size_t>(i / stride)] * half;
      const auto at = static_cast<std::size_t>(angles + d % half);
      const std::int64_t other = d < half ? i + half : i - half;
      size = std::abs(static_cast<double>(normed.at(i)) * static_cast<double>(in.cosines[at])) +
             std::abs(static_cast<double>(normed.at(other)) * static_cast<double>(in.sines[at]));
    }
    const double floor = absolute_floor(actual.dtype());
    return size * (sum_error(2) + normed_error) +
           2.02 * unit_roundoff(actual.dtype()) * std::abs(value) + floor +
           (normed_error > 0.0 ? 16.0 * floor : 0.0);
  });
}

void expect_agreement(const Heads& in,
                      const HeadsShape& shape,
                      HeadsOptions options,
                      double normed_error) {
  const Heads actual = on_device(in, shape, options);
  const Heads expected = on_host(in, shape, options);
  HeadsOptions unturned = options;
  unturned.turns = false;
  const Heads normed = on_host(in, shape, unturned);
  expect_turned(actual.query, expected.query, normed.query, in, shape, shape.heads, normed_error);
  expect_turned(actual.key, expected.key, normed.key, in, shape, shape.kv_heads, normed_error);
  // What lies in the slots are the very bits of what lies in the rows.
  Heads placed = in;
  if (options.places && options.key) place(placed.keys, actual.key, shape);
  if (options.places && options.value) place(placed.values, in.value, shape);
  for (std::size_t row = 0; row < placed.keys.size(); ++row) {
    test::expect_same(actual.keys[row], placed.keys[row]);
    test::expect_same(actual.values[row], placed.values[row]);
  }
}

constexpr HeadsOptions kChoices[] = {
    {.norms = true, .turns = true, .places = true},
    {.norms = true, .turns = true, .turns_key = false, .places = true},
    {.turns = true},
    {.key = false, .value = false, .turns = true, .places = true},
    {.key = false, .value = false, .norms = true, .turns = true},
    {.query = false, .norms = true, .turns = true, .places = true},
    {.value = false, .turns = true, .places = true},
    {.query = false, .key = false, .places = true},
};

TEST_P(PlaceHeads, RotatesLikeTheTwinWhateverElseIsWanted) {
  for_shapes([&](const HeadsShape& shape) {
    const Heads in(dtype(), shape);
    for (const HeadsOptions& options : kChoices) expect_agreement(in, shape, options, 0.0);
  });
}

TEST_P(PlaceHeads, AgreesWithTheTwinOnRandomHeads) {
  for_shapes([&](const HeadsShape& shape) {
    Heads in(dtype(), shape);
    in.query = random_array(dtype(), in.query.count(), 160);
    in.key = random_array(dtype(), in.key.count(), 162);
    // The sum of squares is another one's, and both roundings of a norm may go another way.
    const double normed_error = sum_error(shape.dim + 8) + 4.04 * unit_roundoff(dtype());
    expect_agreement(in, shape, kChoices[0], normed_error);
  });
}

TEST_P(PlaceHeads, GivesTheSameInEveryOrder) {
  for (const std::int64_t dim : {33, 128}) {
    const HeadsShape shape{5, 6, 2, dim, {}};
    const Heads in(dtype(), shape);
    const Heads expected = on_device(in, shape, kChoices[0]);
    in_every_order([&] { expect_same(on_device(in, shape, kChoices[0]), expected); });
  }
}

// What is no number stays in its head.
TEST_P(PlaceHeads, KeepsWhatIsNotFiniteInItsHead) {
  const HeadsShape shape{5, 4, 2, 96, {}};
  Heads in(dtype(), shape);
  set_nan(in.query, 1 * 96 + 5);
  in.query.set(3 * 96, kInfinity);
  set_nan(in.key, shape.stride(2) + 95);
  set_nan(in.value, 3 * shape.stride(2));
  const Heads out = on_device(in, shape, kChoices[0]);
  const Heads expected = on_host(in, shape, kChoices[0]);
  for (std::int64_t i = 0; i < in.query.count(); ++i) {
    ASSERT_EQ(std::isfinite(out.query.at(i)), std::isfinite(expected.query.at(i))) << i;
    const std::int64_t head = i / 96;
    ASSERT_EQ(std::isnan(out.query.at(i)), head == 1 || (head == 3 && i % 48 == 0)) << i;
  }
  for (std::int64_t i = 0; i < in.key.count(); ++i) {
    ASSERT_EQ(std::isnan(out.key.at(i)), i / 96 == 2) << i;
  }
  test::expect_same(out.values[3], expected.values[3]);
}

TEST_P(PlaceHeads, NothingChangesNothing) {
  const HeadsShape shape{2, 3, 1, 16, {}};
  const Heads in(dtype(), shape);
  expect_same(on_device(in, {0, 3, 1, 16, {}}, kChoices[0]), in);
  expect_same(on_device(in, shape, {.query = false, .key = false, .value = false, .places = true}),
              in);
}

INSTANTIATE_TEST_SUITE_P(DTypes, PlaceHeads, all_dtypes(), [](const auto& param) {
  return std::string(name_of(param.param));
});

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
