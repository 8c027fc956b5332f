// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_kernels.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "device_copy.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(MergeCuda, WithoutCudaIsRefusedAndNoDeviceIsCounted) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_EQ(cuda_device_count(), 0);
  EXPECT_THROW(concat_logits_cuda(nullptr, 1, 1, 1, nullptr), DeviceError);
  EXPECT_THROW(softmax_values_cuda(nullptr, 1, 1, 1, DType::kFloat32, 1, nullptr), DeviceError);
}

TEST(MergeCuda, CountsDevicesWithoutThrowing) { EXPECT_GE(cuda_device_count(), 0); }

TEST(MergeCuda, SaysWhatADeviceCanWithoutThrowing) {
  EXPECT_EQ(cuda_compute_capability(1000), 0);
  EXPECT_EQ(cuda_compute_capability(0) > 0, cuda_device_count() > 0);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

TEST(MergeCuda, WithoutADeviceNamesTheDriversError) {
  if (cuda_device_count() > 0) GTEST_SKIP() << "a machine without a CUDA device would run it";
  try {
    softmax_values_cuda(nullptr, 1, 1, 1, DType::kFloat32, 1, nullptr);
    FAIL() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("cudaError"), std::string::npos) << error.what();
  }
}

/// Whether the query rows of a segment share the host's tokens, as every Pre-QKT payload says by
/// sending no index.
enum class Choices : std::uint8_t { kOwn, kShared };

struct Counts {
  std::int64_t host;
  std::int64_t resident;
};

/// What all segments of a launch share.
struct Shape {
  DType dtype;
  std::int64_t head_dim;
  std::int64_t num_queries;
};

/// One (request, KV head): inputs, what the CPU twin makes of them, and copies on the device.
class Segment {
 public:
  /// Every `masked_every`-th logit is -inf; none for 0. `logit_scale` spreads them.
  Segment(const Shape& shape,
          Counts counts,
          std::size_t masked_every,
          Choices choices,
          float logit_scale = 1.0F)
      : shape_(shape),
        counts_(counts),
        has_index_(choices == Choices::kOwn),
        host_logits_(random_floats(shape.num_queries * counts.host, 80)),
        resident_logits_(random_floats(shape.num_queries * counts.resident, 81)),
        host_values_(random_array(shape.dtype, 2 * counts.host * shape.head_dim, 82)),
        resident_values_(random_array(shape.dtype, counts.resident * stride(), 83)),
        index_(host_logits_.size()),
        weights_(host_logits_.size() + resident_logits_.size()),
        out_(shape.dtype, shape.num_queries * shape.head_dim),
        lse_(static_cast<std::size_t>(shape.num_queries)) {
    for (std::vector<float>* logits : {&host_logits_, &resident_logits_}) {
      for (std::size_t i = 0; i < logits->size(); ++i) {
        (*logits)[i] *= logit_scale;
        if (masked_every > 0 && i % masked_every == 0) (*logits)[i] = -kInfinity;
      }
    }
    for (std::size_t i = 0; i < index_.size(); ++i) {
      index_[i] = static_cast<std::int32_t>((i * 7) % static_cast<std::size_t>(2 * counts.host));
    }
    run_cpu_twin();
  }

  /// Copies the inputs to the device, and rubbish to where results go.
  MergeSegment on_device() {
    copies_.clear();
    const auto copy = [&](const auto& values) {
      copies_.push_back(std::make_unique<DeviceCopy>(values));
      return copies_.back()->get();
    };
    const std::vector<float> rubbish(weights_.size(), 5.0F);
    return {.host_logits = static_cast<const float*>(copy(host_logits_)),
            .host_count = counts_.host,
            .resident_logits = static_cast<const float*>(copy(resident_logits_)),
            .resident_count = counts_.resident,
            .logits = static_cast<float*>(copy(rubbish)),
            .host_index = has_index_ ? static_cast<const std::int32_t*>(copy(index_)) : nullptr,
            .host_values = copy(host_values_),
            .resident_values = copy(resident_values_),
            .resident_stride = stride(),
            .out = copy(random_array(shape_.dtype, out_.count(), 84)),
            .lse = static_cast<float*>(copy(std::vector<float>(lse_.size(), 5.0F)))};
  }

  void expect_logits(const MergeSegment& segment) const {
    EXPECT_EQ(floats(segment.logits, logits_.size()), logits_);
  }

  void expect_results(const MergeSegment& segment) const {
    const double error = 2.0 * sum_error(counts_.host + counts_.resident + 40);
    const std::vector<float> lse = floats(segment.lse, lse_.size());
    for (std::size_t i = 0; i < lse.size(); ++i) {
      if (std::isinf(lse_[i])) {
        ASSERT_EQ(lse[i], lse_[i]);  // every logit is -inf, or there is none
      } else {
        ASSERT_NEAR(lse[i], lse_[i], error * (1.0 + std::abs(double{lse_[i]})));
      }
    }
    const std::vector<float> weights = floats(segment.logits, weights_.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      // The CPU's exponential is 0 where the result would be subnormal.
      ASSERT_NEAR(weights[i],
                  weights_[i],
                  static_cast<double>(weights_[i]) * error + std::numeric_limits<float>::min());
    }
    Array out(shape_.dtype, out_.count());
    EXPECT_EQ(cudaMemcpy(out.data(),
                         segment.out,
                         static_cast<std::size_t>(out.count()) * size_of(shape_.dtype),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    for (std::int64_t i = 0; i < out.count(); ++i) {
      // Weights sum to 1 and values stay below 6: so does the sum of the terms' sizes.
      ASSERT_NEAR(
          out.at(i),
          out_.at(i),
          6.0 * error +
              2.02 * std::abs(static_cast<double>(out_.at(i))) * unit_roundoff(shape_.dtype) +
              absolute_floor(shape_.dtype));
    }
  }

 private:
  std::int64_t stride() const { return shape_.head_dim + 3; }

  static std::vector<float> floats(const float* on_device, std::size_t count) {
    std::vector<float> values(count);
    if (count == 0) return values;
    EXPECT_EQ(cudaMemcpy(values.data(), on_device, count * sizeof(float), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

  void run_cpu_twin() {
    const std::int64_t total = counts_.host + counts_.resident;
    concat_logits(host_logits_.data(),
                  counts_.host,
                  counts_.host,
                  resident_logits_.data(),
                  counts_.resident,
                  counts_.resident,
                  weights_.data(),
                  total,
                  shape_.num_queries);
    logits_ = weights_;
    cpu_kernels(Isa::kPortable)
        .softmax_values({.dtype = shape_.dtype,
                         .logits = weights_.data(),
                         .logits_stride = total,
                         .num_queries = shape_.num_queries,
                         .head_dim = shape_.head_dim,
                         .host_count = counts_.host,
                         .host_index = has_index_ ? index_.data() : nullptr,
                         .host_values = host_values_.data(),
                         .resident_count = counts_.resident,
                         .resident_values = resident_values_.data(),
                         .resident_stride = stride(),
                         .out = out_.data(),
                         .out_stride = shape_.head_dim,
                         .lse = lse_.data()});
  }

  Shape shape_;
  Counts counts_;
  bool has_index_;
  std::vector<float> host_logits_;
  std::vector<float> resident_logits_;
  Array host_values_;
  Array resident_values_;
  std::vector<std::int32_t> index_;
  std::vector<float> logits_;
  std::vector<float> weights_;
  Array out_;
  std::vector<float> lse_;
  std::vector<std::unique_ptr<DeviceCopy>> copies_;
};

/// Runs both kernels over all segments at once and compares each with its CPU twin.
void expect_agreement(const Shape& shape, std::vector<Segment>& segments) {
  std::vector<MergeSegment> merged;
  std::int64_t max_tokens = 0;
  for (Segment& segment : segments) {
    merged.push_back(segment.on_device());
    max_tokens = std::max(max_tokens, merged.back().host_count + merged.back().resident_count);
  }
  const DeviceCopy device_segments(merged);
  const auto count = static_cast<std::int64_t>(merged.size());
  concat_logits_cuda(
      device_segments.get<MergeSegment>(), count, shape.num_queries, max_tokens, nullptr);
  for (std::size_t i = 0; i < merged.size(); ++i) segments[i].expect_logits(merged[i]);
  softmax_values_cuda(device_segments.get<MergeSegment>(),
                      count,
                      shape.num_queries,
                      shape.head_dim,
                      shape.dtype,
                      max_tokens,
                      nullptr);
  for (std::size_t i = 0; i < merged.size(); ++i) segments[i].expect_results(merged[i]);
}

class MergeOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

TEST_P(MergeOnDevice, AgreesWithTheCpuTwin) {
  for (const std::int64_t head_dim : {5, 64, 128, 300}) {
    for (const Counts counts : {Counts{40, 700}, Counts{0, 33}, Counts{17, 0}}) {
      for (const Choices choices : {Choices::kOwn, Choices::kShared}) {
        const Shape three{GetParam(), head_dim, 3};
        std::vector<Segment> segments;
        segments.emplace_back(three, counts, 0, choices);
        segments.emplace_back(three, counts, 4, choices);
        expect_agreement(three, segments);
        const Shape one{GetParam(), head_dim, 1};
        std::vector<Segment> masked;
        masked.emplace_back(one, counts, 1, choices);
        expect_agreement(one, masked);
      }
    }
  }
}

// Segments of one launch that differ as much as they can: none and one token, counts around the
// block's size, logits that are far apart or all -inf, rows narrower and wider than a block.
TEST_P(MergeOnDevice, SegmentsOfAllKindsShareALaunchInAnyOrder) {
  for (const std::int64_t head_dim : {1, 33, 257}) {
    const Shape shape{GetParam(), head_dim, 2};
    std::vector<Segment> segments;
    segments.emplace_back(shape, Counts{0, 0}, 0, Choices::kShared);
    segments.emplace_back(shape, Counts{1, 0}, 0, Choices::kOwn);
    segments.emplace_back(shape, Counts{0, 1}, 0, Choices::kShared);
    segments.emplace_back(shape, Counts{128, 128}, 3, Choices::kOwn);
    segments.emplace_back(shape, Counts{1, 254}, 1, Choices::kShared);
    segments.emplace_back(shape, Counts{200, 57}, 0, Choices::kShared, 1e30F);
    segments.emplace_back(shape, Counts{31, 33}, 0, Choices::kOwn, 80.0F);
    in_every_order([&] { expect_agreement(shape, segments); });
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         MergeOnDevice,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
