// SPDX-License-Identifier: Apache-2.0
// Causal attention of a whole prompt on a CPU device, by turns with a linear layer's matrix product
// of the same dtype and with LibTorch's flash attention:
//   share   its rate of useful operations over the product's
//   ratio   LibTorch's time over ours
#include <ATen/Parallel.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <c10/core/InferenceMode.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "benchmark_support.h"
#include "device/device_ops.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kProductRows = 1024;
constexpr std::int64_t kProductSize = 2048;  // of the weight, both ways

struct Prompt {
  DType dtype;
  std::int64_t head_dim;
  std::int64_t per_group;
  std::int64_t tokens;
};

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void prefill(benchmark::State& state, const Prompt& prompt) {
  const c10::InferenceMode no_autograd;
  at::set_num_threads(available_parallelism());
  const auto options =
      at::TensorOptions(prompt.dtype == DType::kFloat32 ? at::kFloat : at::kBFloat16);
  const std::int64_t groups = prompt.per_group == 3 ? 3 : 16 / prompt.per_group;
  const std::int64_t heads = groups * prompt.per_group;
  const at::Tensor query = at::randn({prompt.tokens, heads, prompt.head_dim}, options);
  const at::Tensor keys = at::randn({prompt.tokens, groups, prompt.head_dim}, options);
  const at::Tensor values = at::randn({prompt.tokens, groups, prompt.head_dim}, options);
  const at::Tensor x = at::randn({kProductRows, kProductSize}, options);
  const at::Tensor weight = at::randn({kProductSize, kProductSize}, options);
  at::Tensor y = at::empty({kProductRows, kProductSize}, options);
  const auto by_head = [](const at::Tensor& rows) { return rows.permute({1, 0, 2}); };
  const at::Tensor repeated_keys = by_head(keys).repeat_interleave(prompt.per_group, 0);
  const at::Tensor repeated_values = by_head(values).repeat_interleave(prompt.per_group, 0);
  const auto ops = make_cpu_ops("auto");
  const auto ours = [&] {
    benchmark::DoNotOptimize(
        ops->partial_attention(query, by_head(keys), by_head(values), /*causal=*/true));
  };
  const auto torch = [&] {
    benchmark::DoNotOptimize(
        at::_scaled_dot_product_flash_attention_for_cpu(by_head(query).unsqueeze(0),
                                                        repeated_keys.unsqueeze(0),
                                                        repeated_values.unsqueeze(0),
                                                        /*dropout_p=*/0.0,
                                                        /*is_causal=*/true));
  };
  const auto product = [&] { ops->linear(x, LinearWeight(weight), {}, y); };
  std::vector<double> ours_s;
  std::vector<double> torch_s;
  std::vector<double> product_s;
  product();
  for (auto _ : state) {
    product_s.push_back(seconds_of(product));
    ours_s.push_back(seconds_of(ours));
    torch_s.push_back(seconds_of(torch));
    state.SetIterationTime(ours_s.back());
  }
  const auto tokens = static_cast<double>(prompt.tokens);
  const double operations =
      2.0 * static_cast<double>(heads * prompt.head_dim) * tokens * (tokens + 1.0);
  const double product_operations =
      2.0 * static_cast<double>(kProductRows * kProductSize * kProductSize);
  const double seconds = median(std::move(ours_s));
  const double product_rate = product_operations / median(std::move(product_s));
  state.counters["share"] = operations / seconds / product_rate;
  state.counters["ratio"] = median(std::move(torch_s)) / seconds;
  state.counters["GFLOPs"] = operations / seconds / 1e9;
  state.counters["product_GFLOPs"] = product_rate / 1e9;
}

const bool kRegistered = [] {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t head_dim : {64, 128}) {
      for (const std::int64_t per_group : {3, 4, 8}) {
        for (const std::int64_t tokens : {512, 2048, 6000}) {
          const Prompt prompt = {dtype, head_dim, per_group, tokens};
          const std::string name = "prefill/" + std::string(name_of(dtype)) + "/d" +
                                   std::to_string(head_dim) + "/g" + std::to_string(per_group) +
                                   "/" + std::to_string(tokens);
          benchmark::RegisterBenchmark(
              name.c_str(), [prompt](benchmark::State& state) { prefill(state, prompt); })
              ->UseManualTime()
              ->Iterations(3)
              ->Unit(benchmark::kMillisecond);
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
