// SPDX-License-Identifier: Apache-2.0
// Sums of the values that sparse attention reads: a block takes a part of 256 of a query head's
// tokens, a thread a dimension; the last of a head's blocks adds the parts in their order.
#include "kernels/cpu_kernels.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_math.h"

namespace hybridgen::kernels {

namespace {

constexpr int kThreads = 128;
constexpr int kPart = static_cast<int>(kPartTokens);

/// One where nothing is kept, too: the newest token's values are added there.
__host__ __device__ constexpr std::int64_t kept_parts(std::int64_t tokens) {
  return tokens <= kPart ? 1 : (tokens + kPart - 1) / kPart;
}

/// Where the values of a query head's tokens lie.
template <typename T>
struct Values {
  std::int64_t newest;     ///< place of the newest token
  std::int64_t offloaded;  ///< tokens before the resident ones
  std::int64_t head_dim;
  const T* resident;  ///< of the first resident token
  const T* fetched = nullptr;
  const std::int32_t* index = nullptr;  ///< rows of `fetched`, by the order of the head's places

  __device__ Values(const DecodeAttention& a,
                    const StepRow& row,
                    const PlanRow& plan,
                    std::int64_t request,
                    std::int64_t head)
      : newest(plan.num_tokens),
        offloaded(plan.num_tokens + 1 - row.num_resident),
        head_dim(a.head_dim) {
    const std::int64_t kv_head = head / (a.num_heads / a.num_kv_heads);
    resident = static_cast<const T*>(row.values) + a.layer * row.layer_stride +
               kv_head * row.head_stride + row.first_slot * a.head_dim;
    if (a.payloads == nullptr) return;
    const PayloadRow& payload = a.payloads[request];
    if (payload.index == nullptr) return;
    fetched = static_cast<const T*>(payload.values) + kv_head * payload.union_capacity * a.head_dim;
    index = payload.index + head * payload.count;
  }

  /// Null where a row lacks some, which is one whose request failed, or of whose weights one is
  /// NaN: then the newest token's is, too.
  __device__ const T* row(std::int64_t i, std::int64_t place) const {
    if (place >= newest) return nullptr;
    if (place >= offloaded) return resident + (place - offloaded) * head_dim;
    return index == nullptr ? nullptr : fetched + index[i] * head_dim;
  }
  __device__ const T* newest_row() const { return resident + (newest - offloaded) * head_dim; }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_kept_kernel(DecodeAttention a, const PlanRow* kept) {
  DEVICE_SHARED(const T*, rows, kPart);
  DEVICE_SHARED(float, shared_weights, kPart);
  DEVICE_SHARED(int, is_last, 1);
  const std::int64_t request = blockIdx.z;
  const std::int64_t head = blockIdx.y;
  const std::int64_t part = blockIdx.x;
  const StepRow& row = a.rows[request];
  const PlanRow& plan = kept[request];
  const std::int64_t parts = kept_parts(plan.most);
  if (row.weights == nullptr || part >= parts) return;
  const Values<T> values(a, row, plan, request, head);
  const float* weights = row.weights + head * (values.newest + 1);
  const std::int32_t* places = plan.places + head * plan.most;
  const std::int64_t first = part * kPart;
  const int count = static_cast<int>(min(plan.most - first, std::int64_t{kPart}));
  const int thread = static_cast<int>(threadIdx.x);
  for (int t = thread; t < count; t += kThreads) {
    const std::int64_t place = places[first + t];
    rows[t] = values.row(first + t, place);
    shared_weights[t] = rows[t] == nullptr ? 0.0F : weights[place];
  }
  __syncthreads();

  T* out = static_cast<T*>(a.out) + request * a.out_stride + head * a.head_dim;
  float* sums = row.parts + head * parts * a.head_dim;
  const auto finish = [&](std::int64_t d, float sum) {
    store(out + d, fmaf(weights[values.newest], to_float(values.newest_row()[d]), sum));
  };
  for (std::int64_t d = thread; d < a.head_dim; d += kThreads) {
    float sum = 0.0F;
    for (int t = 0; t < count; ++t) {
      if (rows[t] != nullptr) sum = fmaf(shared_weights[t], to_float(rows[t][d]), sum);
    }
    if (parts == 1) {
      finish(d, sum);
    } else {
      sums[part * a.head_dim + d] = sum;
    }
  }
  if (parts == 1) return;
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    // It is 0 again for the next launch once the last one has come.
    unsigned* finished = row.finished + head;
    is_last[0] = atomicAdd(finished, 1U) + 1 == static_cast<unsigned>(parts) ? 1 : 0;
    if (is_last[0] != 0) *finished = 0;
  }
  __syncthreads();
  if (is_last[0] == 0) return;
  __threadfence();
  for (std::int64_t d = thread; d < a.head_dim; d += kThreads) {
    float sum = 0.0F;
    // From the cache that all blocks share: others have just written them.
    for (std::int64_t p = 0; p < parts; ++p) sum += __ldcg(sums + p * a.head_dim + d);
    finish(d, sum);
  }
}

}  // namespace

void sum_kept_cuda(const DecodeAttention& a, const KeptTokens& kept, void* stream) {
  if (a.batch <= 0) return;
  const dim3 grid(static_cast<unsigned>(kept_parts(kept.max_kept)),
                  static_cast<unsigned>(a.num_heads),
                  static_cast<unsigned>(a.batch));
  with_type_of(a.dtype, [&]<typename T>(T* /*type*/) {
    launch(sum_kept_kernel<T>, grid, kThreads, 0, static_cast<cudaStream_t>(stream), a, kept.rows);
  });
  check_launch("sum_kept_cuda");
}

}  // namespace hybridgen::kernels
