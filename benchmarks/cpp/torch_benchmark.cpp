// SPDX-License-Identifier: Apache-2.0
// The CPU stage of one layer by turns with what LibTorch makes of it, on the same keys, values,
// queries and threads: logits by matmul in the keys' dtype, topk, the chosen rows of V by
// index_select. `ratio` is LibTorch over ours; `agreement` the share of our tokens that it chose.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "stage_support.h"

namespace hybridgen::benchmarks {
namespace {

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return at::kFloat;
    case DType::kFloat16:
      return at::kHalf;
    case DType::kBFloat16:
      break;
  }
  return at::kBFloat16;
}

class TorchStage {
 public:
  explicit TorchStage(const StageShape& shape) : shape_(shape) {
    at::set_num_threads(workers().size());
    for (std::int64_t layer = 0; layer < StageShape::kLayers; ++layer) {
      keys_.push_back(at::empty({shape.kv_heads, shape.tokens, StageShape::kDim},
                                at::TensorOptions(scalar_type(shape.dtype))));
      write_rows(shape, layer, static_cast<std::byte*>(keys_.back().data_ptr()));
      values_.push_back(keys_.back().view({-1, StageShape::kDim}).clone());
    }
    first_rows_ = at::arange(shape.kv_heads, at::kLong).view({-1, 1, 1}) * shape.tokens;
  }

  /// Of several ways to say the same, the quickest for this dtype is what counts.
  void choose_way(std::byte* query) {
    double best = std::numeric_limits<double>::infinity();
    Way best_way;
    for (const Way way : {Way{true, true}, Way{true, false}, Way{false, true}, Way{false, false}}) {
      way_ = way;
      step(0, query);
      std::array<double, 3> seconds{};
      for (std::size_t i = 0; i < seconds.size(); ++i) {
        seconds[i] = step(static_cast<std::int64_t>(i) % StageShape::kLayers, query);
      }
      const double quickest = *std::min_element(seconds.begin(), seconds.end());
      if (quickest < best) {
        best = quickest;
        best_way = way;
      }
    }
    way_ = best_way;
  }

  std::string way() const {
    return std::string(way_.is_batched ? "batched" : "by head") +
           (way_.selects_float32 ? ", topk in float32" : ", topk in the keys' dtype");
  }

  /// Returns its seconds.
  double step(std::int64_t layer, std::byte* query) {
    const auto begin = std::chrono::steady_clock::now();
    const at::Tensor scaled = at::from_blob(query,
                                            {shape_.kv_heads, StageShape::kPerGroup, kDim},
                                            at::TensorOptions(scalar_type(shape_.dtype))) *
                              (1.0 / std::sqrt(static_cast<double>(kDim)));
    const at::Tensor& keys = keys_[static_cast<std::size_t>(layer)];
    at::Tensor logits;
    if (way_.is_batched) {
      logits = at::matmul(scaled, keys.transpose(1, 2));
    } else {
      logits = at::empty({shape_.kv_heads, StageShape::kPerGroup, shape_.tokens}, keys.options());
      for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
        at::Tensor to = logits[head];
        at::matmul_out(to, scaled[head], keys[head].t());
      }
    }
    if (way_.selects_float32) logits = logits.to(at::kFloat);
    chosen_ =
        std::get<1>(logits.topk(shape_.chosen, /*dim=*/-1, /*largest=*/true, /*sorted=*/false));
    const at::Tensor rows =
        values_[static_cast<std::size_t>(layer)].index_select(0, (chosen_ + first_rows_).flatten());
    benchmark::DoNotOptimize(rows.data_ptr());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  /// Share of `positions` [H, chosen], ascending, that the last step chose too.
  double agreement(const std::vector<std::int32_t>& positions) const {
    const at::Tensor ours = at::tensor(positions, at::kInt).view({-1, shape_.chosen});
    const at::Tensor theirs =
        std::get<0>(chosen_.view({-1, shape_.chosen}).to(at::kInt).sort(-1)).contiguous();
    const at::Tensor place = at::searchsorted(theirs, ours).clamp_max(shape_.chosen - 1);
    return theirs.gather(-1, place).eq(ours).to(at::kDouble).mean().item<double>();
  }

 private:
  static constexpr std::int64_t kDim = StageShape::kDim;
  struct Way {
    bool is_batched = true;
    bool selects_float32 = false;
  };

  StageShape shape_;
  Way way_;
  std::vector<at::Tensor> keys_;
  std::vector<at::Tensor> values_;  ///< [kv_heads * tokens, kDim]
  at::Tensor first_rows_;           ///< of `values_`, by KV head
  at::Tensor chosen_;
};

void stage_to_torch(benchmark::State& state, const StageShape& shape) {
  const c10::InferenceMode no_autograd;
  StageRunner ours(shape);
  TorchStage torch(shape);
  torch.choose_way(ours.request(0).query());
  std::int64_t layer = 0;
  ratio_to(
      state,
      [&] {
        layer = 1 - layer;
        return torch.step(layer, ours.request(0).query());
      },
      [&] {
        layer = 1 - layer;
        // An OpenMP team spins for a while after its last region; it would take the workers' cores.
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        return ours.step(layer);
      });
  torch.step(layer, ours.request(0).query());
  state.counters["agreement"] = torch.agreement(ours.request(0).positions());
  state.SetLabel(torch.way());
}

const bool kRegistered = [] {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    const StageShape shape = {dtype, 1, 8, 32768, 327};
    benchmark::RegisterBenchmark(
        ("stage_to_torch/" + std::string(name_of(dtype)) + "/32768_tokens/8_kv_heads/1_percent")
            .c_str(),
        [shape](benchmark::State& state) { stage_to_torch(state, shape); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
