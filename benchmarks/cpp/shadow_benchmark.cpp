// SPDX-License-Identifier: Apache-2.0
// The scan over a scoring shadow: against the logits of the same tokens over float16 keys, and as a
// share of the read ceiling; what it costs to fill, and to rescore the tokens that it finds.
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "benchmark_support.h"
#include "hybridgen/core/error.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/scoring_shadow.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kDim = 128;
constexpr std::int64_t kKvHeads = 8;
constexpr std::int64_t kChunkTokens = 2048;  // scores of a chunk stay in the second-level cache
constexpr std::int64_t kTokens = 32768;
constexpr std::int64_t kLayers = 8;  // read one after the other: none stays in a cache
constexpr std::int64_t kPasses =
    4;  // so that a run is long beside what starting and ending it takes

constexpr std::int64_t kKeyBytes = kLayers * kKvHeads * kTokens * kDim * 2;

const kernels::CpuKernels& table() { return kernels::cpu_kernels(kernels::resolve_isa("auto")); }

/// float16 keys of all layers; what they are does not matter.
HostBuffer& keys() {
  static HostBuffer buffer = [] {
    HostBuffer made(kKeyBytes);
    std::fill_n(made.data(), kKeyBytes, std::byte{0x3c});
    return made;
  }();
  return buffer;
}

const std::byte* keys_of(std::int64_t head) { return keys().data() + head * kTokens * kDim * 2; }

ScoringShadow filled_shadow(ShadowPrecision precision) {
  ScoringShadow shadow({.num_layers = kLayers,
                        .num_kv_heads = kKvHeads,
                        .head_dim = kDim,
                        .dtype = DType::kFloat32,
                        .capacity = kTokens,
                        .precision = precision});
  shadow.grow(shadow.shape().capacity);
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> rows(kDim * 1024);
  for (float& value : rows) value = normal(generator);
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    for (std::int64_t t = 0; t < kTokens; t += 1024) {
      shadow.write(layer, {t, t + 1024}, {rows.data(), 0, kDim});
    }
  }
  return shadow;
}

const ScoringShadow& shadow_of(ShadowPrecision precision) {
  static const ScoringShadow kInt8 = filled_shadow(ShadowPrecision::kInt8);
  static const ScoringShadow kInt4 = filled_shadow(ShadowPrecision::kInt4);
  return precision == ShadowPrecision::kInt8 ? kInt8 : kInt4;
}

/// Per worker: queries in both forms and room for the scores of a chunk.
struct Room {
  explicit Room(std::int64_t queries)
      : query(static_cast<std::size_t>(queries * kDim), 0.01F),
        rounded(query.size()),
        scales(static_cast<std::size_t>(queries)),
        scores(static_cast<std::size_t>(queries * kChunkTokens)) {}

  std::vector<float> query;
  std::vector<std::int8_t> rounded;
  std::vector<float> scales;
  std::vector<float> scores;
};

/// Calls task(head, chunk's tokens, room) for every chunk of every head of every layer.
template <typename Task>
double for_each_chunk(std::int64_t queries, const Task& task) {
  std::vector<Room> rooms(static_cast<std::size_t>(workers().size()), Room(queries));
  constexpr std::int64_t kChunks = kTokens / kChunkTokens;
  return workers().run(kPasses * kLayers * kKvHeads * kChunks, [&](std::int64_t index, int worker) {
    const std::int64_t begin = index % kChunks * kChunkTokens;
    task(index / kChunks % (kLayers * kKvHeads),
         TokenRange{begin, begin + kChunkTokens},
         rooms[static_cast<std::size_t>(worker)]);
  });
}

double scan_keys(std::int64_t queries) {
  return for_each_chunk(queries, [&](std::int64_t head, TokenRange tokens, Room& room) {
    table().blocked_logits({.keys = {keys_of(head), DType::kFloat16, kDim, kTokens},
                            .queries = room.query.data(),
                            .num_queries = queries,
                            .tokens = tokens,
                            .logits = room.scores.data(),
                            .logits_stride = kChunkTokens});
  });
}

double scan_shadow(ShadowPrecision precision, std::int64_t queries) {
  const ScoringShadow& shadow = shadow_of(precision);
  return for_each_chunk(queries, [&](std::int64_t head, TokenRange tokens, Room& room) {
    const ShadowKeyView view = shadow.keys(head / kKvHeads, head % kKvHeads);
    kernels::prepare_shadow_queries(
        view, room.query.data(), queries, room.rounded.data(), room.scales.data());
    table().shadow_logits({.keys = view,
                           .queries = room.rounded.data(),
                           .scales = room.scales.data(),
                           .num_queries = queries,
                           .tokens = tokens,
                           .scores = room.scores.data(),
                           .scores_stride = kChunkTokens});
  });
}

/// Exact logits of `count` tokens of every head that lie anywhere: from blocks, or from rows.
double rescore(std::int64_t queries, std::int64_t count, KeyLayout layout) {
  std::vector<std::int32_t> all(kTokens);
  std::iota(all.begin(), all.end(), 0);
  std::vector<std::int32_t> chosen;
  std::ranges::sample(all, std::back_inserter(chosen), count, std::mt19937(7));
  const std::vector<float> query(static_cast<std::size_t>(queries * kDim), 0.01F);
  std::vector<std::vector<float>> logits(
      static_cast<std::size_t>(workers().size()),
      std::vector<float>(static_cast<std::size_t>(queries * count)));
  return workers().run(kPasses * kLayers * kKvHeads, [&](std::int64_t index, int worker) {
    const std::int64_t head = index % (kLayers * kKvHeads);
    float* out = logits[static_cast<std::size_t>(worker)].data();
    if (layout == KeyLayout::kBlocked) {
      table().chosen_logits({.keys = {keys_of(head), DType::kFloat16, kDim, kTokens},
                             .queries = query.data(),
                             .num_queries = queries,
                             .positions = chosen.data(),
                             .count = count,
                             .logits = out,
                             .logits_stride = count});
    } else {
      kernels::chosen_row_logits(table(),
                                 {.dtype = DType::kFloat16,
                                  .keys = keys_of(head),
                                  .key_stride = kDim,
                                  .head_dim = kDim,
                                  .queries = query.data(),
                                  .num_queries = queries,
                                  .logits = out,
                                  .logits_stride = count},
                                 chosen.data(),
                                 count);
    }
  });
}

void fill(benchmark::State& state, ShadowPrecision precision) {
  constexpr std::int64_t kRows = 4096;
  ScoringShadow shadow({.num_layers = 1,
                        .num_kv_heads = kKvHeads,
                        .head_dim = kDim,
                        .dtype = DType::kFloat16,
                        .capacity = kRows,
                        .precision = precision});
  shadow.grow(shadow.shape().capacity);
  HostKvStore store({.num_layers = 1,
                     .num_kv_heads = kKvHeads,
                     .head_dim = kDim,
                     .dtype = DType::kFloat16,
                     .capacity = kRows});
  store.grow(store.shape().capacity);
  const KvRowsView rows{keys().data(), kRows * kDim, kDim};
  shadow.calibrate(0, 1, rows);
  ratio_to(
      state,
      [&] { return workers().run(1, [&](auto, int) { store.write(0, {0, kRows}, rows, rows); }); },
      [&] { return workers().run(1, [&](auto, int) { shadow.write(0, {0, kRows}, rows); }); });
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& body) {
  benchmark::RegisterBenchmark(name.c_str(), body)->UseManualTime()->Unit(benchmark::kMillisecond);
}

const bool kRegistered = [] {
  for (const ShadowPrecision precision : {ShadowPrecision::kInt8, ShadowPrecision::kInt4}) {
    const std::string name = precision == ShadowPrecision::kInt8 ? "shadow/int8" : "shadow/int4";
    add(message(name, "/fill_to_store"), [=](benchmark::State& state) { fill(state, precision); });
    for (const std::int64_t queries : {1, 4, 8}) {
      const std::string group = message("/g", queries);
      add(message(name, "/to_float16", group), [=](benchmark::State& state) {
        ratio_to(
            state,
            [=] { return scan_keys(queries); },
            [=] { return scan_shadow(precision, queries); });
      });
      add(message(name, "/share", group), [=](benchmark::State& state) {
        const std::int64_t block = shadow_of(precision).keys(0, 0).block_bytes;
        share_of_ceiling(state,
                         kPasses * kLayers * kKvHeads * kTokens / kKeyBlockTokens * block,
                         [=] { return scan_shadow(precision, queries); });
      });
    }
  }
  // Twice the tokens that are wanted: 1 % and 5 % of all, or their union over four heads at most.
  for (const std::int64_t count : {656, 2624, 3277, 13107}) {
    const std::string tokens = message("/", count);
    add("shadow/rescore/int8_scan_to_blocks" + tokens, [=](benchmark::State& state) {
      ratio_to(
          state,
          [=] { return scan_shadow(ShadowPrecision::kInt8, 4); },
          [=] { return rescore(4, count, KeyLayout::kBlocked); });
    });
    add("shadow/rescore/int8_scan_to_rows" + tokens, [=](benchmark::State& state) {
      ratio_to(
          state,
          [=] { return scan_shadow(ShadowPrecision::kInt8, 4); },
          [=] { return rescore(4, count, KeyLayout::kRows); });
    });
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
