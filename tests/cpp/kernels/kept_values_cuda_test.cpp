// SPDX-License-Identifier: Apache-2.0
// Sums of the values that sparse attention reads, of requests of all kinds in one launch, each
// against plain loops in float64.
#include <algorithm>
#include <deque>
#include <numeric>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_kernels.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "device_copy.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(KeptValuesCuda, WithoutCudaAreRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(sum_kept_cuda({.batch = 1}, {}, nullptr), DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

constexpr std::int64_t kLayer = 1;
constexpr std::int64_t kFirstSlot = 3;

struct Shape {
  DType dtype = DType::kFloat32;
  std::int64_t num_heads = 1;
  std::int64_t num_kv_heads = 1;
  std::int64_t head_dim = 1;
};

/// A request's tokens, and how many of the older ones each query head keeps.
struct Kind {
  std::int64_t offloaded = 0;
  std::int64_t resident = 1;
  std::int64_t most = 0;
  bool has_nan = false;  ///< in the weights: then nobody is kept
  bool has_failed = false;
};

class Request {
 public:
  Request(const Shape& shape, const Kind& kind, std::uint32_t seed)
      : shape_(shape),
        kind_(kind),
        slots_(kind.resident + 5),
        values_(random_array(shape.dtype, 2 * layer_size(), seed)),
        fetched_(random_array(
            shape.dtype, shape.num_kv_heads * (kind.offloaded + 2) * shape.head_dim, seed + 1)),
        weights_(random_floats(shape.num_heads * tokens(), seed + 2)) {
    std::mt19937 generator(seed + 3);
    std::vector<std::int32_t> others(static_cast<std::size_t>(tokens() - 1));
    std::iota(others.begin(), others.end(), 0);
    for (std::int64_t h = 0; h < shape.num_heads; ++h) {
      std::vector<std::int32_t> kept(static_cast<std::size_t>(kind.most),
                                     static_cast<std::int32_t>(tokens() - 1));
      if (kind.has_nan) {
        weights_[static_cast<std::size_t>((h + 1) * tokens() - 1)] =
            std::numeric_limits<float>::quiet_NaN();
      } else {
        std::ranges::sample(others, kept.begin(), kind.most, generator);
      }
      places_.insert(places_.end(), kept.begin(), kept.end());
      for (std::int64_t i = 0; i < fetched_places(); ++i) {
        // Of places that are not offloaded nobody reads it.
        const bool is_read = kept[static_cast<std::size_t>(i)] < kind.offloaded;
        index_.push_back(is_read ? static_cast<std::int32_t>((i * 7 + h) % (kind.offloaded + 1))
                                 : -1000000);
      }
    }
  }

  StepRow step_row() {
    StepRow row;
    row.num_resident = kind_.resident;
    row.first_slot = kFirstSlot;
    row.values = copy(values_);
    row.layer_stride = layer_size();
    row.head_stride = slots_ * shape_.head_dim;
    if (!kind_.has_failed) row.weights = static_cast<float*>(copy(weights_));
    row.parts = static_cast<float*>(copy(std::vector<float>(
        static_cast<std::size_t>(shape_.num_heads * part_count(kind_.most) * shape_.head_dim),
        5.0F)));
    row.finished = static_cast<unsigned*>(
        copy(std::vector<unsigned>(static_cast<std::size_t>(shape_.num_heads), 0U)));
    return row;
  }

  PlanRow plan_row() {
    PlanRow row;
    if (kind_.has_failed) return row;
    row.num_tokens = tokens() - 1;
    row.most = kind_.most;
    row.places = static_cast<std::int32_t*>(copy(places_));
    return row;
  }

  PayloadRow payload_row() {
    PayloadRow row;
    if (fetched_places() == 0 || kind_.has_failed) return row;
    row.count = row.room = fetched_places();
    row.index = static_cast<const std::int32_t*>(copy(index_));
    row.values = copy(fetched_);
    row.union_capacity = kind_.offloaded + 2;
    return row;
  }

  void expect_result(const Array& out, std::int64_t first) const {
    const std::int64_t dim = shape_.head_dim;
    for (std::int64_t h = 0; h < shape_.num_heads; ++h) {
      const std::int64_t g = h / (shape_.num_heads / shape_.num_kv_heads);
      for (std::int64_t d = 0; d < dim; ++d) {
        double value = 0.0;
        double size = 0.0;
        const auto add = [&](std::int64_t place, const Array& from, std::int64_t row) {
          const double product = double{weights_[static_cast<std::size_t>(h * tokens() + place)]} *
                                 double{from.at(row * dim + d)};
          value += product;
          size += std::abs(product);
        };
        const auto resident = [&](std::int64_t place) {
          add(place,
              values_,
              (kLayer * shape_.num_kv_heads + g) * slots_ + kFirstSlot + place - kind_.offloaded);
        };
        for (std::int64_t i = 0; i < (kind_.has_nan ? 0 : kind_.most); ++i) {
          const std::int64_t place = places_[static_cast<std::size_t>(h * kind_.most + i)];
          if (place >= kind_.offloaded) {
            resident(place);
          } else {
            add(place,
                fetched_,
                g * (kind_.offloaded + 2) +
                    index_[static_cast<std::size_t>(h * fetched_places() + i)]);
          }
        }
        resident(tokens() - 1);
        const float actual = out.at(first + h * dim + d);
        if (kind_.has_failed) {
          ASSERT_EQ(actual, 5.0F);  // as it was
        } else if (kind_.has_nan) {
          ASSERT_TRUE(std::isnan(actual));
        } else {
          ASSERT_NEAR(actual,
                      value,
                      size * sum_error(kind_.most + 1) +
                          1.01 * std::abs(value) * unit_roundoff(shape_.dtype) +
                          absolute_floor(shape_.dtype))
              << "head " << h << ", " << d;
        }
      }
    }
  }

 private:
  std::int64_t tokens() const { return kind_.offloaded + kind_.resident; }
  std::int64_t fetched_places() const { return std::min(kind_.most, kind_.offloaded); }
  std::int64_t layer_size() const { return shape_.num_kv_heads * slots_ * shape_.head_dim; }

  template <typename Values>
  void* copy(const Values& values) {
    return copies_.emplace_back(values).get();
  }

  Shape shape_;
  Kind kind_;
  std::int64_t slots_;
  Array values_, fetched_;
  std::vector<float> weights_;
  std::vector<std::int32_t> places_;
  std::vector<std::int32_t> index_;
  std::deque<DeviceCopy> copies_;
};

void expect_sums(const Shape& shape, const std::vector<Kind>& kinds) {
  const std::int64_t row = shape.num_heads * shape.head_dim;
  const std::int64_t stride = row + 8;  // other columns lie between
  const auto batch = static_cast<std::int64_t>(kinds.size());
  std::deque<Request> requests;
  std::vector<StepRow> rows;
  std::vector<PlanRow> plans;
  std::vector<PayloadRow> payloads;
  KeptTokens kept;
  for (const Kind& kind : kinds) {
    Request& request =
        requests.emplace_back(shape, kind, static_cast<std::uint32_t>(9 * requests.size()));
    rows.push_back(request.step_row());
    plans.push_back(request.plan_row());
    payloads.push_back(request.payload_row());
    kept.max_kept = std::max(kept.max_kept, kind.most);
  }
  Array out(shape.dtype, batch * stride);
  for (std::int64_t i = 0; i < out.count(); ++i) out.set(i, 5.0F);
  const DeviceCopy device_out(out);
  const DeviceCopy device_rows(rows);
  const DeviceCopy device_plans(plans);
  const DeviceCopy device_payloads(payloads);
  kept.rows = device_plans.get<PlanRow>();
  const auto has_payload = [](const Kind& kind) { return kind.offloaded > 0; };
  const DecodeAttention attention{.dtype = shape.dtype,
                                  .out = device_out.get(),
                                  .out_stride = stride,
                                  .batch = batch,
                                  .num_heads = shape.num_heads,
                                  .num_kv_heads = shape.num_kv_heads,
                                  .head_dim = shape.head_dim,
                                  .layer = kLayer,
                                  .rows = device_rows.get<StepRow>(),
                                  .payloads = std::ranges::any_of(kinds, has_payload)
                                                  ? device_payloads.get<PayloadRow>()
                                                  : nullptr};
  sum_kept_cuda(attention, kept, nullptr);
  sum_kept_cuda(attention, kept, nullptr);  // leaves behind what the next one needs
  device_out.copy_to(out.data());
  for (std::int64_t b = 0; b < batch; ++b) {
    SCOPED_TRACE("request " + std::to_string(b));
    requests[static_cast<std::size_t>(b)].expect_result(out, b * stride);
    if (testing::Test::HasFatalFailure()) return;
    for (std::int64_t i = row; i < stride; ++i) ASSERT_EQ(out.at(b * stride + i), 5.0F);
  }
}

class KeptValuesOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

TEST_P(KeptValuesOnDevice, AreSummedForAllRequestsInAnyOrder) {
  const std::vector<Kind> kinds = {{},
                                   {.offloaded = 20, .resident = 1, .most = 7},
                                   {.offloaded = 4, .resident = 40, .most = 30},
                                   {.offloaded = 500, .resident = 200, .most = 600},
                                   {.resident = 700, .most = 256},
                                   {.offloaded = 300, .resident = 30, .most = 257},
                                   {.offloaded = 9, .resident = 3},
                                   {.offloaded = 30, .resident = 2, .most = 9, .has_nan = true},
                                   {.offloaded = 30, .resident = 2, .most = 9, .has_failed = true}};
  for (const std::int64_t head_dim : {6, 64, 192}) {
    const Shape shape{GetParam(), 6, 2, head_dim};
    in_every_order([&] { expect_sums(shape, kinds); });
    if (HasFatalFailure()) return;
  }
}

TEST_P(KeptValuesOnDevice, NeedNoPayloads) {
  const Shape shape{GetParam(), 2, 1, 32};
  expect_sums(shape, {{.resident = 50, .most = 20}});
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         KeptValuesOnDevice,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
