// SPDX-License-Identifier: Apache-2.0
// Linear layers of a few rows: share of the read ceiling over the weights' bytes. The weights of
// many layers lie one behind the other, so that none comes from a cache.
#include <cstdint>
#include <string>

#include "benchmark_support.h"
#include "kernels/coded_linear.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kWeightBytes = std::int64_t{256} << 20;
constexpr std::int64_t kPieceBytes = std::int64_t{32} << 10;  // that a thread takes at a time

struct Shape {
  std::int64_t in;
  std::int64_t out;
};

/// Of SmolLM2 and of Llama-3.2-1B.
constexpr Shape kShapes[] = {
    {576, 576}, {576, 1536}, {1536, 576}, {2048, 2048}, {2048, 8192}, {8192, 2048}, {576, 49152}};

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

/// A linear layer whose weights are codes: int8 with a scale per output, int4 with one per 64
/// inputs. Bytes are those of codes and scales; x is prepared in the time.
void coded_linear(benchmark::State& state, int bits, Shape shape, std::int64_t rows) {
  const std::int64_t group = bits == 8 ? shape.in : 64;
  const DType scale_dtype = bits == 8 ? DType::kFloat32 : DType::kFloat16;
  const std::int64_t row_bytes = kernels::coded_row_bytes(bits, shape.in);
  const std::int64_t row_scale_bytes =
      kernels::coded_groups(shape.in, group) * static_cast<std::int64_t>(size_of(scale_dtype));
  const std::int64_t layer_bytes = shape.out * (row_bytes + row_scale_bytes);
  const std::int64_t layers = std::max<std::int64_t>(1, kWeightBytes / layer_bytes);
  static HostBuffer weights(kWeightBytes);
  // 0x3c3c is a number in both types of scales.
  std::fill_n(weights.data(), kWeightBytes, std::byte{0x3c});
  HostBuffer x(static_cast<std::size_t>(rows * shape.in) * 2);
  std::fill_n(x.data(), rows * shape.in * 2, std::byte{0x3c});
  HostBuffer y(static_cast<std::size_t>(rows * shape.out) * 2);
  const kernels::CodedKernels& table = kernels::coded_kernels(kernels::resolve_isa("auto"));
  kernels::CodedLinearArgs args;
  args.weight = {.bits = bits, .group = group, .inputs = shape.in, .scale_dtype = scale_dtype};
  args.dtype = DType::kBFloat16;
  args.y_dtype = DType::kBFloat16;
  args.x = x.data();
  args.y = y.data();
  args.rows = rows;
  args.x_stride = shape.in;
  args.y_stride = shape.out;
  HostBuffer prepared(static_cast<std::size_t>(table.rows_bytes(args)));
  const std::int64_t outputs = std::max<std::int64_t>(4, kPieceBytes / row_bytes / 4 * 4);
  const std::int64_t pieces = (shape.out + outputs - 1) / outputs;
  share_of_ceiling(state, layers * layer_bytes, [&] {
    double seconds = 0.0;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const std::byte* const codes = weights.data() + layer * layer_bytes;
      args.weight.codes = reinterpret_cast<const std::uint8_t*>(codes);
      args.weight.scales = codes + shape.out * row_bytes;
      const auto begin = std::chrono::steady_clock::now();
      table.prepare_rows(args, 0, rows, prepared.data());
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      seconds += team().run(pieces, [&](std::int64_t piece) {
        table.multiply(
            args, prepared.data(), piece * outputs, std::min(shape.out, (piece + 1) * outputs));
      });
    }
    return seconds;
  });
}

const bool kCodedRegistered = [] {
  for (const int bits : {8, 4}) {
    for (const Shape shape : kShapes) {
      for (const std::int64_t rows : {1, 2, 4, 8, 16}) {
        const std::string name = "linear/int" + std::to_string(bits) + "/" +
                                 std::to_string(shape.in) + "x" + std::to_string(shape.out) + "/m" +
                                 std::to_string(rows);
        benchmark::RegisterBenchmark(
            name.c_str(), [=](benchmark::State& state) { coded_linear(state, bits, shape, rows); })
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  return true;
}();

const bool kRegistered = [] {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    for (const Shape shape : kShapes) {
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
