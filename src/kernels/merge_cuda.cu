// SPDX-License-Identifier: Apache-2.0
// Token Concatenator and softmax-weighted values on the device (paper §4.2.3): one block per
// (segment, query row). The logits of a row are in memory anyway, since the caller may want the
// weights, so maximum, sum and weighting are separate sweeps over them.
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_math.h"

namespace hybridgen::kernels {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxGridY = 65535;

__global__ void concat_kernel(const MergeSegment* segments, std::int64_t num_queries) {
  const MergeSegment segment = segments[blockIdx.x / num_queries];
  const std::int64_t query = blockIdx.x % num_queries;
  const std::int64_t total = segment.host_count + segment.resident_count;
  const float* host = segment.host_logits + query * segment.host_count;
  const float* resident = segment.resident_logits + query * segment.resident_count;
  float* out = segment.logits + query * total;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.y) * kThreads;
  for (std::int64_t i = blockIdx.y * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < total;
       i += step) {
    out[i] = i < segment.host_count ? host[i] : resident[i - segment.host_count];
  }
}

template <typename T>
__global__ void softmax_values_kernel(const MergeSegment* segments,
                                      std::int64_t num_queries,
                                      int head_dim) {
  DEVICE_SHARED(float, shared, kThreads);
  const MergeSegment segment = segments[blockIdx.x / num_queries];
  const std::int64_t query = blockIdx.x % num_queries;
  const std::int64_t total = segment.host_count + segment.resident_count;
  float* logits = segment.logits + query * total;
  const int thread = static_cast<int>(threadIdx.x);

  float peak = -INFINITY;
  for (std::int64_t i = thread; i < total; i += kThreads) peak = fmaxf(peak, logits[i]);
  peak = combine_block(peak, shared, Larger{});
  // With every logit at -inf, -inf - 0 keeps the weights at 0 where -inf - -inf would give NaN.
  if (peak == -INFINITY) peak = 0.0F;

  float sum = 0.0F;
  for (std::int64_t i = thread; i < total; i += kThreads) {
    const float e = expf(logits[i] - peak);
    logits[i] = e;
    sum += e;
  }
  sum = combine_block(sum, shared, Sum{});
  if (segment.lse != nullptr && thread == 0) {
    segment.lse[query] = sum == 0.0F ? -INFINITY : peak + logf(sum);
  }
  const float inverse = sum == 0.0F ? 0.0F : 1.0F / sum;
  for (std::int64_t i = thread; i < total; i += kThreads) logits[i] *= inverse;
  __syncthreads();

  // Threads side by side take dimensions, so that a warp reads whole rows; what threads are left
  // take further tokens and are added up at the end.
  int columns = kWarp;
  while (columns < head_dim && columns < kThreads) columns *= 2;
  const int groups = kThreads / columns;
  const int group = thread / columns;
  const std::int32_t* index = segment.host_index == nullptr
                                  ? nullptr  // one choice for all query rows
                                  : segment.host_index + query * segment.host_count;
  const T* host = static_cast<const T*>(segment.host_values);
  const T* resident = static_cast<const T*>(segment.resident_values);
  T* out = static_cast<T*>(segment.out) + query * head_dim;
  for (int first = 0; first < head_dim; first += columns) {
    const int d = first + thread % columns;
    float value = 0.0F;
    if (d < head_dim) {
      for (std::int64_t j = group; j < segment.host_count; j += groups) {
        const std::int64_t row = index == nullptr ? j : index[j];
        value = fmaf(logits[j], to_float(host[row * head_dim + d]), value);
      }
      for (std::int64_t t = group; t < segment.resident_count; t += groups) {
        value = fmaf(logits[segment.host_count + t],
                     to_float(resident[t * segment.resident_stride + d]),
                     value);
      }
    }
    shared[thread] = value;
    __syncthreads();
    if (group == 0 && d < head_dim) {
      for (int g = 1; g < groups; ++g) value += shared[thread + g * columns];
      store(out + d, value);
    }
    __syncthreads();
  }
}

}  // namespace

bool has_cuda_kernels() { return true; }

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    // Reading the error clears it: "no device" must not surface at a later, unrelated check.
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return count;
}

int cuda_compute_capability(int device) {
  int major = 0;
  int minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return 10 * major + minor;
}

void concat_logits_cuda(const MergeSegment* segments,
                        std::int64_t num_segments,
                        std::int64_t num_queries,
                        std::int64_t max_tokens,
                        void* stream) {
  if (num_segments <= 0 || num_queries <= 0 || max_tokens <= 0) return;
  const std::int64_t blocks = (max_tokens + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(num_segments * num_queries),
                  static_cast<unsigned>(blocks < kMaxGridY ? blocks : kMaxGridY));
  launch(
      concat_kernel, grid, kThreads, 0, static_cast<cudaStream_t>(stream), segments, num_queries);
  check_launch("concat_logits_cuda");
}

void softmax_values_cuda(const MergeSegment* segments,
                         std::int64_t num_segments,
                         std::int64_t num_queries,
                         std::int64_t head_dim,
                         DType dtype,
                         std::int64_t /*max_tokens*/,
                         void* stream) {
  if (num_segments <= 0 || num_queries <= 0 || head_dim <= 0) return;
  const auto grid = static_cast<unsigned>(num_segments * num_queries);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int dim = static_cast<int>(head_dim);
  with_type_of(dtype, [&]<typename T>(T* /*type*/) {
    launch(softmax_values_kernel<T>, grid, kThreads, 0, cuda_stream, segments, num_queries, dim);
  });
  check_launch("softmax_values_cuda");
}

}  // namespace hybridgen::kernels
