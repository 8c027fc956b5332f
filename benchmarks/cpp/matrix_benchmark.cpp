// SPDX-License-Identifier: Apache-2.0
// Our few-row kernels by turns with the matrix products of LibTorch and oneDNN over the same
// weights, from one row to hundreds: where the one takes over from the other. Counters are
// microseconds, medians.
#include <ATen/Parallel.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/softmax.h>
#include <c10/core/InferenceMode.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "benchmark_support.h"
#include "kernels/onednn_linear.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kWeightBytes = std::int64_t{96} << 20;  // more than the caches hold
constexpr std::int64_t kPieceBytes = std::int64_t{64} << 10;
constexpr std::int64_t kKvHeads = 8;
constexpr std::int64_t kTokens = 8192;
constexpr std::int64_t kChunkTokens = 1024;
constexpr std::int64_t kDim = 128;

struct Shape {
  std::int64_t in;
  std::int64_t out;
};

/// One way to do the work; `run` returns its seconds.
struct Contestant {
  std::string name;
  std::function<double()> run;
};

/// As in the engine: the calling thread computes too, beside a worker for every other core. It is
/// not pinned, or LibTorch's threads, which it makes, would share its core.
double run_beside_caller(std::int64_t count, const std::function<void(std::int64_t)>& piece) {
  static WorkerPool pool([] {
    std::vector<int> cpus = available_cpus();
    cpus.resize(static_cast<std::size_t>(available_parallelism()));
    if (cpus.size() > 1) cpus.erase(cpus.begin());
    return WorkerPool::Options{.cpus = std::move(cpus)};
  }());
  const auto begin = std::chrono::steady_clock::now();
  pool.for_each(count, piece);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

at::ScalarType scalar_type(DType dtype) {
  return dtype == DType::kFloat32 ? at::kFloat : at::kBFloat16;
}

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Each call of a contestant is `count` times what the counters state.
void by_turns(benchmark::State& state,
              std::int64_t count,
              const std::vector<Contestant>& contestants) {
  std::vector<std::vector<double>> seconds(contestants.size());
  for (const Contestant& one : contestants) one.run();
  for (auto _ : state) {
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      // An OpenMP team spins for a while after its last region; it would take the workers' cores.
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      seconds[i].push_back(contestants[i].run());
    }
    state.SetIterationTime(seconds.front().back());
  }
  for (std::size_t i = 0; i < contestants.size(); ++i) {
    state.counters[contestants[i].name] =
        median(std::move(seconds[i])) * 1e6 / static_cast<double>(count);
  }
}

void linear(benchmark::State& state, DType dtype, Shape shape, std::int64_t rows) {
  const c10::InferenceMode no_autograd;
  at::set_num_threads(available_parallelism());
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t layers =
      std::max<std::int64_t>(1, kWeightBytes / (shape.in * shape.out * element));
  const auto options = at::TensorOptions(scalar_type(dtype));
  std::vector<at::Tensor> weights;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    weights.push_back(at::full({shape.out, shape.in}, 0.01, options));
  }
  const at::Tensor x = at::full({rows, shape.in}, 0.5, options);
  at::Tensor y = at::empty({rows, shape.out}, options);
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  const std::int64_t outputs = std::max<std::int64_t>(1, kPieceBytes / (shape.in * element));
  const auto args_of = [&](const at::Tensor& weight) {
    kernels::LinearArgs args;
    args.dtype = dtype;
    args.y_dtype = dtype;
    args.x = x.data_ptr();
    args.weight = weight.data_ptr();
    args.y = y.data_ptr();
    args.rows = rows;
    args.in_features = shape.in;
    args.x_stride = shape.in;
    args.y_stride = shape.out;
    return args;
  };
  const auto ours = [&] {
    double seconds = 0.0;
    for (const at::Tensor& weight : weights) {
      const kernels::LinearArgs args = args_of(weight);
      seconds += run_beside_caller((shape.out + outputs - 1) / outputs, [&](std::int64_t i) {
        table.linear(args, i * outputs, std::min(shape.out, (i + 1) * outputs));
      });
    }
    return seconds;
  };
  const auto torch = [&] {
    return seconds_of([&] {
      for (const at::Tensor& weight : weights) at::mm_out(y, x, weight.t());
    });
  };
  std::vector<Contestant> contestants = {{"ours_us", ours}, {"torch_us", torch}};
  if (kernels::has_onednn()) {
    contestants.push_back({"onednn_us", [&] {
                             return seconds_of([&] {
                               for (const at::Tensor& weight : weights) {
                                 kernels::onednn_linear(args_of(weight), shape.out);
                               }
                             });
                           }});
  }
  by_turns(state, layers, contestants);
}

/// All query rows against the offloaded keys of every head, as of a chunk of a prompt or of beams.
void logits(benchmark::State& state, DType dtype, std::int64_t rows) {
  const c10::InferenceMode no_autograd;
  at::set_num_threads(available_parallelism());
  const auto options = at::TensorOptions(scalar_type(dtype));
  const at::Tensor keys = at::full({kKvHeads, kTokens, kDim}, 0.01, options);
  const at::Tensor queries = at::full({kKvHeads, rows, kDim}, 0.5, options);
  at::Tensor scores = at::empty({kKvHeads, rows, kTokens}, options);
  // As the engine makes them: of the model's type, times the scale.
  const std::vector<float> query(static_cast<std::size_t>(rows * kDim),
                                 0.5F * (1.0F / std::sqrt(static_cast<float>(kDim))));
  std::vector<float> out(static_cast<std::size_t>(kKvHeads * rows * kTokens));
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  constexpr std::int64_t kChunks = kTokens / kChunkTokens;
  const auto ours = [&] {
    return run_beside_caller(kKvHeads * kChunks, [&](std::int64_t index) {
      const std::int64_t head = index / kChunks;
      const std::int64_t begin = index % kChunks * kChunkTokens;
      kernels::BlockedLogitsArgs args;
      args.keys = {keys[head].data_ptr(), dtype, kDim, kTokens};
      args.queries = query.data();
      args.num_queries = rows;
      args.tokens = {begin, begin + kChunkTokens};
      args.logits = out.data() + head * rows * kTokens + begin;
      args.logits_stride = kTokens;
      table.blocked_logits(args);
    });
  };
  const auto torch = [&] {
    return seconds_of([&] { at::bmm_out(scores, queries, keys.transpose(1, 2)); });
  };
  by_turns(state, 1, {{"ours_us", ours}, {"torch_us", torch}});
}

/// Softmax over `rows` rows of logits, and the values weighted by it, for every head.
void values(benchmark::State& state, DType dtype, std::int64_t rows) {
  const c10::InferenceMode no_autograd;
  at::set_num_threads(available_parallelism());
  const auto options = at::TensorOptions(scalar_type(dtype));
  const at::Tensor value = at::full({kKvHeads, kTokens, kDim}, 0.01, options);
  const at::Tensor weights = at::full({kKvHeads, rows, kTokens}, 0.5, at::kFloat);
  at::Tensor in_place = weights.clone();
  at::Tensor out = at::empty({kKvHeads, rows, kDim}, options);
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  const auto ours = [&] {
    return run_beside_caller(kKvHeads, [&](std::int64_t head) {
      kernels::SoftmaxValuesArgs args;
      args.dtype = dtype;
      args.logits = in_place[head].data_ptr<float>();
      args.logits_stride = kTokens;
      args.num_queries = rows;
      args.head_dim = kDim;
      args.resident_count = kTokens;
      args.resident_values = value[head].data_ptr();
      args.resident_stride = kDim;
      args.out = out[head].data_ptr();
      args.out_stride = kDim;
      table.softmax_values(args);
    });
  };
  const auto torch = [&] {
    return seconds_of(
        [&] { at::bmm_out(out, at::softmax(weights, -1).to(scalar_type(dtype)), value); });
  };
  by_turns(state, 1, {{"ours_us", ours}, {"torch_us", torch}});
}

template <typename Function>
void add(const std::string& name, const Function& function) {
  benchmark::RegisterBenchmark(name.c_str(), function)
      ->UseManualTime()
      ->Iterations(9)
      ->Unit(benchmark::kMicrosecond);
}

const bool kRegistered = [] {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    const std::string type(name_of(dtype));
    for (const Shape shape :
         {Shape{576, 576}, Shape{576, 1536}, Shape{2048, 2048}, Shape{576, 49152}}) {
      for (const std::int64_t rows : {1, 4, 16, 64, 256}) {
        add("matrix_linear/" + type + "/" + std::to_string(shape.in) + "x" +
                std::to_string(shape.out) + "/m" + std::to_string(rows),
            [=](benchmark::State& state) { linear(state, dtype, shape, rows); });
      }
    }
    for (const std::int64_t rows : {16, 64, 256}) {
      add("matrix_logits/" + type + "/m" + std::to_string(rows),
          [=](benchmark::State& state) { logits(state, dtype, rows); });
    }
    for (const std::int64_t rows : {1, 4, 16}) {
      add("matrix_values/" + type + "/m" + std::to_string(rows),
          [=](benchmark::State& state) { values(state, dtype, rows); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
