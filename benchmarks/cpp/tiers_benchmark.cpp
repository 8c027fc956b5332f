// SPDX-License-Identifier: Apache-2.0
// Memory of the host tiers: a scan of keys in tier blocks by turns with one of a plain buffer, what
// a token costs that leaves the device, and how fast blocks move between memory nodes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "benchmark_support.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/kv_tiers.h"
#include "kvcache/store_memory.h"
#include "memory/numa.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kTokens = 32768;
constexpr std::int64_t kChunkTokens = 2048;
constexpr std::int64_t kMiB = std::int64_t{1} << 20;

HostKvShape shape_of(std::int64_t layers, const TierPlaces& places) {
  HostKvShape shape{.num_layers = layers,
                    .num_kv_heads = 8,
                    .head_dim = 64,
                    .dtype = DType::kBFloat16,
                    .capacity = kTokens};
  shape.place = places.dram;
  return shape;
}

// The only node twice: every step of the way but the other node's own speed.
TierPlaces one_node() {
  const std::vector<int> first{numa_nodes().front().id};
  return {.dram = {.nodes = first, .tier = TierKind::kDram, .setting = "dram"},
          .cxl = {.nodes = first, .tier = TierKind::kCxl, .setting = "cxl"},
          .both = {}};
}

/// A request in tiers, and everything that it refers to.
struct Tiered {
  Tiered(std::int64_t layers, std::int64_t dram_bytes)
      : store(shape_of(layers, one_node())), memory(store) {
    budgets.add(TierKind::kDram, dram_bytes, "dram");
    budgets.add(TierKind::kCxl, 4096 * kMiB, "cxl");
    tiers.emplace(KvPlacement::kSemantic, one_node(), budgets, trace, statistics);
    const BytesToPlace placed = bytes_to_place(store.shape());
    holding = tiers->hold(0, 0, placed.all + slack_bytes(budgets, placed.largest_block));
    holding.set_memory(memory, /*is_rewritten=*/false);
  }
  void grow(std::int64_t tokens) {
    holding.grow(tokens);
    store.grow(tokens);
  }

  Budgets budgets;
  TraceRecorder trace;
  TierStatistics statistics;
  HostKvStore store;
  StoreMemory memory;
  std::optional<KvTiers> tiers;
  KvHolding holding;
};

// Seconds that all workers take to read the keys of all heads and layers.
template <typename Keys>
double scan(std::int64_t layers, std::vector<std::vector<float>>& logits, const Keys& keys_of) {
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  const std::vector<float> query(64, 0.01F);
  constexpr std::int64_t kChunks = kTokens / kChunkTokens;
  return workers().run(layers * 8 * kChunks, [&](std::int64_t index, int worker) {
    const std::int64_t head = index / kChunks;
    const std::int64_t begin = index % kChunks * kChunkTokens;
    kernels::BlockedLogitsArgs args;
    args.keys = keys_of(head / 8, head % 8);
    args.queries = query.data();
    args.num_queries = 1;
    args.tokens = {begin, begin + kChunkTokens};
    args.logits = logits[static_cast<std::size_t>(worker)].data();
    args.logits_stride = kChunkTokens;
    table.blocked_logits(args);
  });
}

void scan_of_tier_memory(benchmark::State& state) {
  constexpr std::int64_t kLayers = 8;
  Tiered tiered(kLayers, 4096 * kMiB);
  tiered.grow(kTokens);
  const std::int64_t head_bytes = kTokens * 64 * 2;
  HostBuffer plain(static_cast<std::size_t>(kLayers * 8 * head_bytes));
  std::fill_n(plain.data(), plain.size_bytes(), std::byte{0x3c});
  for (std::int64_t l = 0; l < kLayers; ++l) {
    for (std::int64_t g = 0; g < 8; ++g) {
      auto* keys = static_cast<std::byte*>(const_cast<void*>(tiered.store.keys(l, g).data));
      std::fill_n(keys, head_bytes, std::byte{0x3c});
    }
  }
  std::vector<std::vector<float>> logits(static_cast<std::size_t>(workers().size()));
  for (auto& one : logits) one.resize(kChunkTokens);
  ratio_to(
      state,
      [&] {
        return scan(kLayers, logits, [&](std::int64_t l, std::int64_t g) {
          return BlockedKeyView{
              plain.data() + (l * 8 + g) * head_bytes, DType::kBFloat16, 64, kTokens};
        });
      },
      [&] {
        return scan(kLayers, logits, [&](std::int64_t l, std::int64_t g) {
          return tiered.store.keys(l, g);
        });
      });
}

void evict_a_token(benchmark::State& state, bool moves) {
  constexpr std::int64_t kLayers = 16;
  const std::vector<std::uint16_t> row(8 * 64, 0x3c00);
  std::unique_ptr<Tiered> tiered;
  std::int64_t token = kTokens;
  double seconds = 0.0;
  std::int64_t count = 0;
  for (auto _ : state) {
    if (token == kTokens) {
      tiered.reset();
      tiered = std::make_unique<Tiered>(kLayers, moves ? 512 * kMiB : 4096 * kMiB);
      token = 0;
    }
    const auto begin = std::chrono::steady_clock::now();
    tiered->grow(token + 1);
    for (std::int64_t l = 0; l < kLayers; ++l) {
      tiered->store.write(l, {token, token + 1}, {row.data(), 64, 64}, {row.data(), 64, 64});
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    ++token;
    seconds += took.count();
    ++count;
    state.SetIterationTime(took.count());
  }
  state.counters["us"] = 1e6 * seconds / static_cast<double>(count);
}

void move_between_nodes(benchmark::State& state) {
  std::vector<int> nodes;
  for (const NumaNode& node : numa_nodes()) {
    if (node.free_bytes > 1024 * kMiB) nodes.push_back(node.id);
  }
  if (nodes.size() < 2) {
    state.SkipWithError("this machine has no second memory node with 1 GiB free");
    return;
  }
  PagePlace from{.nodes = {nodes[0]}, .setting = "dram"};
  PagePlace to{.nodes = {nodes[1]}, .tier = TierKind::kCxl, .setting = "cxl"};
  HostKvShape shape = shape_of(8, {});
  shape.place = from;
  HostKvStore store(shape);
  store.grow(kTokens);
  KvMemory& values = store.memory(KvSide::kValues);
  double rate = 0.0;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    const PageMove moved = values.move({0, values.num_blocks()}, to);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    rate = std::max(rate, static_cast<double>(moved.moved_bytes) * 1e-9 / took.count());
    state.SetIterationTime(took.count());
    std::swap(from, to);
  }
  state.counters["GB/s"] = rate;
}

// As of pinned blocks, but within what memory there is: how far the nodes are apart is not in it.
void move_by_copy(benchmark::State& state) {
  HostKvStore store(shape_of(8, {}));
  store.grow(kTokens);
  KvMemory& values = store.memory(KvSide::kValues);
  const BlockRange all{0, values.num_blocks()};
  double copying = 0.0;
  double switching = 0.0;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    values.bring_copies(all, {}, /*contents=*/true);
    const auto copied = std::chrono::steady_clock::now();
    static_cast<void>(values.switch_to_copies(all, {}, /*contents=*/true));
    const auto end = std::chrono::steady_clock::now();
    copying += std::chrono::duration<double>(copied - begin).count();
    switching += std::chrono::duration<double>(end - copied).count();
    state.SetIterationTime(std::chrono::duration<double>(end - begin).count());
  }
  const auto rounds = static_cast<double>(state.iterations());
  state.counters["GB/s"] = 1e-9 * rounds * static_cast<double>(values.bytes_of(all)) / copying;
  state.counters["switch_us"] = 1e6 * switching / (rounds * static_cast<double>(all.end));
}

BENCHMARK(scan_of_tier_memory)
    ->Name("tiers/scan_of_keys")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(evict_a_token, in_dram, false)
    ->Name("tiers/token_to_the_host")
    ->UseManualTime()
    ->Iterations(4000);
BENCHMARK_CAPTURE(evict_a_token, with_moves, true)
    ->Name("tiers/token_to_the_host_with_moves")
    ->UseManualTime()
    ->Iterations(16000);
BENCHMARK(move_by_copy)->Name("tiers/move_by_copy")->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(move_between_nodes)
    ->Name("tiers/move_between_nodes")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace hybridgen::benchmarks
