// SPDX-License-Identifier: Apache-2.0
// Logits over offloaded keys: share of the read ceiling, by key type, head size and group size.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "benchmark_support.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kKeyBytes = std::int64_t{256} << 20;
constexpr std::int64_t kKvHeads = 8;
constexpr std::int64_t kChunkTokens = 2048;  // logits of a chunk stay in the second-level cache

void blocked_logits(benchmark::State& state, DType dtype, std::int64_t dim, std::int64_t queries) {
  const std::int64_t element = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t tokens = kKeyBytes / (kKvHeads * dim * element) / kChunkTokens * kChunkTokens;
  static HostBuffer keys(kKeyBytes);
  // Any bit pattern without infinities and NaN will do: 0x3c3c is a small number in all types.
  std::fill_n(keys.data(), kKeyBytes, std::byte{0x3c});
  // As the engine makes them: of the model's type, times the scale.
  const std::vector<float> query(static_cast<std::size_t>(queries * dim),
                                 0.5F * (1.0F / std::sqrt(static_cast<float>(dim))));
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  std::vector<std::vector<float>> logits(static_cast<std::size_t>(workers().size()));
  for (auto& one : logits) one.resize(static_cast<std::size_t>(queries * kChunkTokens));
  const std::int64_t chunks = tokens / kChunkTokens;
  share_of_ceiling(state, kKvHeads * tokens * dim * element, [&] {
    return workers().run(kKvHeads * chunks, [&](std::int64_t index, int worker) {
      const std::int64_t head = index / chunks;
      const std::int64_t begin = index % chunks * kChunkTokens;
      kernels::BlockedLogitsArgs args;
      args.keys = {keys.data() + head * tokens * dim * element, dtype, dim, tokens};
      args.queries = query.data();
      args.num_queries = queries;
      args.tokens = {begin, begin + kChunkTokens};
      args.logits = logits[static_cast<std::size_t>(worker)].data();
      args.logits_stride = kChunkTokens;
      table.blocked_logits(args);
    });
  });
}

const bool kRegistered = [] {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    for (const std::int64_t dim : {32, 64, 80, 96, 128, 256}) {
      for (const std::int64_t queries : {1, 2, 3, 4, 8, 16}) {
        const std::string name = "logits/" + std::string(name_of(dtype)) + "/d" +
                                 std::to_string(dim) + "/g" + std::to_string(queries);
        benchmark::RegisterBenchmark(
            name.c_str(),
            [=](benchmark::State& state) { blocked_logits(state, dtype, dim, queries); })
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
