// SPDX-License-Identifier: Apache-2.0
// The CPU stage of one layer (scan, selection, gather) by turns with the scan alone: `ratio` is
// scan over stage. And what it takes to measure the lost mass: `ratio` is the stage without over
// the stage with it.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "stage_support.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kChunk = 2048;

void stage(benchmark::State& state, const StageShape& shape) {
  StageRunner runner(shape);
  std::int64_t layer = 0;
  constexpr std::int64_t kPerGroup = StageShape::kPerGroup;
  const std::vector<float> query(static_cast<std::size_t>(kPerGroup * StageShape::kDim), 0.01F);
  std::vector<std::vector<float>> logits(static_cast<std::size_t>(workers().size()));
  for (auto& one : logits) one.resize(static_cast<std::size_t>(kPerGroup * kChunk));
  const std::int64_t chunks = (shape.tokens + kChunk - 1) / kChunk;
  ratio_to(
      state,
      [&] {
        layer = 1 - layer;
        const std::int64_t count = shape.requests * shape.kv_heads * chunks;
        return workers().run(count, [&](std::int64_t i, int worker) {
          const std::int64_t begin = i % chunks * kChunk;
          kernels::BlockedLogitsArgs args;
          args.keys = runner.request(i / chunks / shape.kv_heads)
                          .store()
                          .keys(layer, i / chunks % shape.kv_heads);
          args.queries = query.data();
          args.num_queries = kPerGroup;
          args.tokens = {begin, std::min(begin + kChunk, shape.tokens)};
          args.logits = logits[static_cast<std::size_t>(worker)].data();
          args.logits_stride = kChunk;
          runner.table().blocked_logits(args);
        });
      },
      [&] {
        layer = 1 - layer;
        return runner.step(layer);
      });
}

void lost_mass(benchmark::State& state, const StageShape& shape) {
  StageRunner runner(shape);
  std::int64_t layer = 0;
  const auto step = [&](bool measures) {
    layer = 1 - layer;
    return runner.step(layer, measures);
  };
  ratio_to(state, [&] { return step(false); }, [&] { return step(true); });
}

const bool kRegistered = [] {
  struct Case {
    const char* name;
    StageShape shape;
  };
  constexpr DType kHalf = DType::kFloat16;
  for (const Case& each :
       {Case{"stage/32768_tokens/8_kv_heads/1_percent", {kHalf, 1, 8, 32768, 327}},
        Case{"stage/32768_tokens/8_kv_heads/5_percent", {kHalf, 1, 8, 32768, 1638}},
        Case{"stage/131072_tokens/2_kv_heads/k128", {kHalf, 1, 2, 131072, 128}},
        Case{"stage/64_requests_of_1000_tokens/4_kv_heads/k64", {kHalf, 64, 4, 1000, 64}}}) {
    benchmark::RegisterBenchmark(each.name,
                                 [each](benchmark::State& state) { stage(state, each.shape); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
    benchmark::RegisterBenchmark((std::string("lost_mass/") + each.name).c_str(),
                                 [each](benchmark::State& state) { lost_mass(state, each.shape); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
