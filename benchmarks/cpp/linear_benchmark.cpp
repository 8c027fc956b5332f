// SPDX-License-Identifier: Apache-2.0
// Linear layers of a few rows: share of the read ceiling over the weights' bytes. The weights of
// many layers lie one behind the other, so that none comes from a cache.
#include <cstdint>
#include <string>

#include "benchmark_support.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kWeightBytes = std::int64_t{256} << 20;
constexpr std::int64_t kPieceBytes = std::int64_t{32} << 10;  // that a thread takes at a time

struct Shape {
  std::int64_t in;
  std::int64_t out;
};

/// As in the engine: the calling thread computes too, beside a worker for every other core.
class Team {
 public:
  Team() : pool_({.cpus = cpus()}) {}

  /// Calls piece(i) for i in [0, count) and returns the seconds until all are done.
  double run(std::int64_t count, const std::function<void(std::int64_t)>& piece) {
    const auto begin = std::chrono::steady_clock::now();
    pool_.for_each(count, piece);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  static std::vector<int> cpus() {
    std::vector<int> all = available_cpus();
    all.resize(static_cast<std::size_t>(available_parallelism()));
    pin_current_thread({all.front()});
    if (all.size() > 1) all.erase(all.begin());
    return all;
  }

  WorkerPool pool_;
};

Team& team() {
  static Team all;
  return all;
}

void linear(benchmark::State& state, DType dtype, Shape shape, std::int64_t rows) {
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t layer_bytes = shape.in * shape.out * element;
  const std::int64_t layers = std::max<std::int64_t>(1, kWeightBytes / layer_bytes);
  static HostBuffer weights(kWeightBytes);
  // Any bit pattern without infinities and NaN will do: 0x3c3c is a small number in all types.
  std::fill_n(weights.data(), kWeightBytes, std::byte{0x3c});
  // Aligned to cache lines, as the engine's tensors are.
  HostBuffer x(static_cast<std::size_t>(rows * shape.in * element));
  std::fill_n(x.data(), rows * shape.in * element, std::byte{0x3c});
  HostBuffer y(static_cast<std::size_t>(rows * shape.out * element));
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  const std::int64_t outputs = std::max<std::int64_t>(1, kPieceBytes / (shape.in * element));
  const std::int64_t pieces = (shape.out + outputs - 1) / outputs;
  share_of_ceiling(state, layers * layer_bytes, [&] {
    double seconds = 0.0;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      kernels::LinearArgs args;
      args.dtype = dtype;
      args.y_dtype = dtype;
      args.x = x.data();
      args.weight = weights.data() + layer * layer_bytes;
      args.y = y.data();
      args.rows = rows;
      args.in_features = shape.in;
      args.x_stride = shape.in;
      args.y_stride = shape.out;
      // A layer needs the one before: its hand-off between threads counts too.
      seconds += team().run(pieces, [&](std::int64_t piece) {
        table.linear(args, piece * outputs, std::min(shape.out, (piece + 1) * outputs));
      });
    }
    return seconds;
  });
}

const bool kRegistered = [] {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    for (const Shape shape : {Shape{576, 576},
                              Shape{576, 1536},
                              Shape{1536, 576},
                              Shape{2048, 2048},
                              Shape{2048, 8192},
                              Shape{8192, 2048},
                              Shape{576, 49152}}) {
      for (const std::int64_t rows : {1, 2, 3, 4, 8, 16}) {
        const std::string name = "linear/" + std::string(name_of(dtype)) + "/" +
                                 std::to_string(shape.in) + "x" + std::to_string(shape.out) + "/m" +
                                 std::to_string(rows);
        benchmark::RegisterBenchmark(
            name.c_str(), [=](benchmark::State& state) { linear(state, dtype, shape, rows); })
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
