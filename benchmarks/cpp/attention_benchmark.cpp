// SPDX-License-Identifier: Apache-2.0
// Attention of a decode step over tokens that lie in rows, as on a CPU device: share of the read
// ceiling over the bytes of keys and values, which come from memory. A call walks as many layers as
// fill half a gibibyte; one layer's parts are shared by all threads, then merged.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "benchmark_support.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kBytes = std::int64_t{256} << 20;  // of keys, and of values

struct Shape {
  DType dtype;
  std::int64_t dim;
  std::int64_t group;
  std::int64_t heads;
  std::int64_t tokens;

  std::int64_t row_bytes() const { return dim * static_cast<std::int64_t>(size_of(dtype)); }
  std::int64_t layer_bytes() const { return heads * tokens * row_bytes(); }
};

class Layers {
 public:
  explicit Layers(const Shape& shape)
      : shape_(shape),
        parts_(kernels::part_count(shape.tokens)),
        query_(static_cast<std::size_t>(shape.group * shape.dim),
               0.5F / std::sqrt(static_cast<float>(shape.dim))),
        results_(static_cast<std::size_t>(shape.heads * parts_ * part_floats())),
        scratch_(static_cast<std::size_t>(workers().size())) {
    for (auto& one : scratch_) {
      one.resize(static_cast<std::size_t>(kernels::attend_scratch(shape.group, shape.dim)));
    }
  }

  std::int64_t count() const { return std::max<std::int64_t>(1, kBytes / shape_.layer_bytes()); }

  double attend(const std::byte* keys, const std::byte* values) {
    return workers().run(shape_.heads * parts_, [&](std::int64_t index, int worker) {
      const std::int64_t first = index % parts_ * kernels::kPartTokens;
      const std::int64_t row = index / parts_ * shape_.tokens + first;
      kernels::AttendArgs args;
      args.dtype = shape_.dtype;
      args.queries = query_.data();
      args.num_queries = shape_.group;
      args.head_dim = shape_.dim;
      args.keys = keys + row * shape_.row_bytes();
      args.key_stride = shape_.dim;
      args.values = values + row * shape_.row_bytes();
      args.value_stride = shape_.dim;
      args.count = std::min(kernels::kPartTokens, shape_.tokens - first);
      args.part = part(index);
      args.scratch = scratch_[static_cast<std::size_t>(worker)].data();
      table_.attend(args);
    }) + workers().run(shape_.heads, [&](std::int64_t head, int) { merge(head); });
  }

 private:
  std::int64_t part_floats() const { return shape_.group * (shape_.dim + 2); }

  kernels::AttentionPart part(std::int64_t index) {
    float* out = results_.data() + index * part_floats();
    float* peaks = out + shape_.group * shape_.dim;
    return {out, peaks, peaks + shape_.group};
  }

  void merge(std::int64_t head) {
    thread_local std::vector<kernels::AttentionPart> parts;
    thread_local std::vector<float> floats;
    parts.clear();
    for (std::int64_t i = 0; i < parts_; ++i) parts.push_back(part(head * parts_ + i));
    floats.resize(static_cast<std::size_t>(parts_ + shape_.group * shape_.dim));
    table_.merge_parts({.dtype = DType::kFloat32,
                        .rows = shape_.group,
                        .head_dim = shape_.dim,
                        .parts = parts.data(),
                        .num_parts = parts_,
                        .shares = floats.data(),
                        .out = floats.data() + parts_,
                        .out_stride = shape_.dim});
  }

  const kernels::CpuKernels& table_ = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  Shape shape_;
  std::int64_t parts_;
  std::vector<float> query_;
  std::vector<float> results_;
  std::vector<std::vector<float>> scratch_;
};

void attention(benchmark::State& state, const Shape& shape) {
  static HostBuffer keys(kBytes);
  static HostBuffer values(kBytes);
  // Any bit pattern without infinities and NaN will do: 0x3c3c is a small number in all types.
  std::fill_n(keys.data(), kBytes, std::byte{0x3c});
  std::fill_n(values.data(), kBytes, std::byte{0x3c});
  Layers layers(shape);
  share_of_ceiling(state, 2 * layers.count() * shape.layer_bytes(), [&] {
    double seconds = 0.0;
    for (std::int64_t layer = 0; layer < layers.count(); ++layer) {
      const std::int64_t offset = layer * shape.layer_bytes();
      seconds += layers.attend(keys.data() + offset, values.data() + offset);
    }
    return seconds;
  });
}

const bool kRegistered = [] {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    for (const std::int64_t dim : {64, 128}) {
      for (const std::int64_t group : {1, 3, 4, 8}) {
        for (const std::int64_t heads : {1, 3, 8}) {
          for (const std::int64_t tokens : {1000, 6000, 32768}) {
            const Shape shape{dtype, dim, group, heads, tokens};
            const std::string name = "attention/" + std::string(name_of(dtype)) + "/d" +
                                     std::to_string(dim) + "/g" + std::to_string(group) + "/h" +
                                     std::to_string(heads) + "/" + std::to_string(tokens);
            benchmark::RegisterBenchmark(name.c_str(),
                                         [=](benchmark::State& state) { attention(state, shape); })
                ->UseManualTime()
                ->Unit(benchmark::kMillisecond);
          }
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
