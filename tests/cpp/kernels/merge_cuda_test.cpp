// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_kernels.h"

#if HYBRIDGEN_HAS_CUDA
#include <cuda_runtime.h>
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

#if HYBRIDGEN_HAS_CUDA

TEST(MergeCuda, WithoutADeviceNamesTheDriversError) {
  if (cuda_device_count() > 0) GTEST_SKIP() << "a machine without a CUDA device would run it";
  try {
    softmax_values_cuda(nullptr, 1, 1, 1, DType::kFloat32, 1, nullptr);
    FAIL() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("cudaError"), std::string::npos) << error.what();
  }
}

/// Device memory with a copy of the given bytes.
class DeviceCopy {
 public:
  DeviceCopy(const void* data, std::size_t bytes) : bytes_(bytes) {
    if (bytes_ == 0) return;
    EXPECT_EQ(cudaMalloc(&data_, bytes_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, data, bytes_, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~DeviceCopy() { cudaFree(data_); }
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;

  void* get() const { return data_; }
  void copy_to(void* host) const {
    EXPECT_EQ(cudaMemcpy(host, data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

template <typename T>
DeviceCopy copy_of(const std::vector<T>& values) {
  return DeviceCopy(values.data(), values.size() * sizeof(T));
}

DeviceCopy copy_of(const Array& values) {
  return DeviceCopy(values.data(),
                    static_cast<std::size_t>(values.count()) * size_of(values.dtype()));
}

/// Whether the query rows of a segment share the host's tokens, as every Pre-QKT payload says by
/// sending no index.
enum class Choices : std::uint8_t { kOwn, kShared };

struct Counts {
  std::int64_t host;
  std::int64_t resident;
};

void expect_agreement(DType dtype,
                      std::int64_t head_dim,
                      std::int64_t num_queries,
                      Counts counts,
                      std::size_t masked_every,
                      Choices choices) {
  const std::int64_t total = counts.host + counts.resident;
  std::vector<float> host_logits = random_floats(num_queries * counts.host, 80);
  std::vector<float> resident_logits = random_floats(num_queries * counts.resident, 81);
  for (std::vector<float>* logits : {&host_logits, &resident_logits}) {
    for (std::size_t i = 0; i < logits->size(); ++i) {
      if (masked_every > 0 && i % masked_every == 0) {
        (*logits)[i] = -kInfinity;
      }
    }
  }
  const Array host_values = random_array(dtype, 2 * counts.host * head_dim, 82);
  const Array resident_values = random_array(dtype, counts.resident * (head_dim + 3), 83);
  std::vector<std::int32_t> index(static_cast<std::size_t>(num_queries * counts.host));
  for (std::size_t i = 0; i < index.size(); ++i) {
    index[i] = static_cast<std::int32_t>((i * 7) % static_cast<std::size_t>(2 * counts.host));
  }

  std::vector<float> weights(static_cast<std::size_t>(num_queries * total));
  concat_logits(host_logits.data(),
                counts.host,
                counts.host,
                resident_logits.data(),
                counts.resident,
                counts.resident,
                weights.data(),
                total,
                num_queries);
  const std::vector<float> logits = weights;
  const bool has_index = choices == Choices::kOwn;
  std::vector<float> lse(static_cast<std::size_t>(num_queries));
  Array out(dtype, num_queries * head_dim);
  cpu_kernels(Isa::kPortable)
      .softmax_values({.dtype = dtype,
                       .logits = weights.data(),
                       .logits_stride = total,
                       .num_queries = num_queries,
                       .head_dim = head_dim,
                       .host_count = counts.host,
                       .host_index = has_index ? index.data() : nullptr,
                       .host_values = host_values.data(),
                       .resident_count = counts.resident,
                       .resident_values = resident_values.data(),
                       .resident_stride = head_dim + 3,
                       .out = out.data(),
                       .out_stride = head_dim,
                       .lse = lse.data()});

  const DeviceCopy device_host_logits = copy_of(host_logits);
  const DeviceCopy device_resident_logits = copy_of(resident_logits);
  const DeviceCopy device_logits = copy_of(std::vector<float>(weights.size(), 5.0F));
  const DeviceCopy device_index = copy_of(index);
  const DeviceCopy device_host_values = copy_of(host_values);
  const DeviceCopy device_resident_values = copy_of(resident_values);
  const DeviceCopy device_out = copy_of(random_array(dtype, out.count(), 84));
  const DeviceCopy device_lse = copy_of(std::vector<float>(lse.size(), 5.0F));
  const std::vector<MergeSegment> segments = {
      {.host_logits = static_cast<const float*>(device_host_logits.get()),
       .host_count = counts.host,
       .resident_logits = static_cast<const float*>(device_resident_logits.get()),
       .resident_count = counts.resident,
       .logits = static_cast<float*>(device_logits.get()),
       .host_index = has_index ? static_cast<const std::int32_t*>(device_index.get()) : nullptr,
       .host_values = device_host_values.get(),
       .resident_values = device_resident_values.get(),
       .resident_stride = head_dim + 3,
       .out = device_out.get(),
       .lse = static_cast<float*>(device_lse.get())}};
  const DeviceCopy device_segments = copy_of(segments);
  const auto* segment = static_cast<const MergeSegment*>(device_segments.get());

  concat_logits_cuda(segment, 1, num_queries, total, nullptr);
  std::vector<float> device_weights(weights.size());
  device_logits.copy_to(device_weights.data());
  EXPECT_EQ(device_weights, logits);

  softmax_values_cuda(segment, 1, num_queries, head_dim, dtype, total, nullptr);
  device_logits.copy_to(device_weights.data());
  Array device_result(dtype, out.count());
  device_out.copy_to(device_result.data());
  std::vector<float> device_lse_values(lse.size());
  device_lse.copy_to(device_lse_values.data());
  const double error = 2.0 * sum_error(total + 40);
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (std::isinf(lse[i])) {
      ASSERT_EQ(device_lse_values[i], lse[i]);  // every logit is -inf
    } else {
      ASSERT_NEAR(device_lse_values[i], lse[i], error * (1.0 + std::abs(double{lse[i]})));
    }
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    ASSERT_NEAR(device_weights[i], weights[i], static_cast<double>(weights[i]) * error);
  }
  for (std::int64_t i = 0; i < out.count(); ++i) {
    // Weights sum to 1 and values stay below 6: so does the sum of the terms' sizes.
    ASSERT_NEAR(device_result.at(i),
                out.at(i),
                6.0 * error +
                    2.02 * std::abs(static_cast<double>(out.at(i))) * unit_roundoff(dtype) +
                    absolute_floor(dtype));
  }
}

TEST(MergeCuda, AgreesWithTheCpuTwin) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::int64_t head_dim : {5, 64, 128, 300}) {
      for (const Counts counts : {Counts{40, 700}, Counts{0, 33}, Counts{17, 0}}) {
        for (const Choices choices : {Choices::kOwn, Choices::kShared}) {
          expect_agreement(dtype, head_dim, 3, counts, 0, choices);
          expect_agreement(dtype, head_dim, 3, counts, 4, choices);
          expect_agreement(dtype, head_dim, 1, counts, 1, choices);
        }
      }
    }
  }
}

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
