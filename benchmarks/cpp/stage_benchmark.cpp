// SPDX-License-Identifier: Apache-2.0
// The CPU stage of one layer (scan, selection, gather) by turns with the scan alone: `ratio` is
// scan over stage. Queries drift from step to step, layers alternate, so that no key is in cache.
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "benchmark_support.h"
#include "hybridgen/core/model_config.h"
#include "hybridgen/device/trace_recorder.h"
#include "hybridgen/kvcache/host_kv_store.h"
#include "hybridgen/pipeline/cpu_stage.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kLayers = 2;
constexpr std::int64_t kDim = 128;
constexpr std::int64_t kPerGroup = 4;
constexpr std::int64_t kChunk = 2048;

/// One request; any bits without infinities and NaN will do for K and V, if no two keys are equal.
class Request {
 public:
  Request(std::int64_t kv_heads, std::int64_t tokens, std::int64_t chosen)
      : kv_heads_(kv_heads),
        heads_(kv_heads * kPerGroup),
        tokens_(tokens),
        chosen_(chosen),
        union_rows_(std::min(tokens, kPerGroup * chosen)),
        store_({.num_layers = kLayers,
                .num_kv_heads = kv_heads,
                .head_dim = kDim,
                .dtype = DType::kFloat16,
                .capacity = tokens}),
        query_(static_cast<std::size_t>(heads_ * kDim)),
        logits_(static_cast<std::size_t>(heads_ * chosen)),
        positions_(logits_.size()),
        index_(logits_.size()),
        merged_(static_cast<std::size_t>(kv_heads * union_rows_)),
        union_sizes_(static_cast<std::size_t>(kv_heads)),
        values_(static_cast<std::size_t>(kv_heads * union_rows_ * kDim * 2)),
        scores_(static_cast<std::size_t>(heads_ * score_stride(tokens)) * sizeof(float)),
        selector_(make_top_k_selector({.num_layers = kLayers,
                                       .num_kv_heads = kv_heads,
                                       .query_heads_per_kv_head = kPerGroup})) {
    std::vector<std::uint16_t> rows(static_cast<std::size_t>(kv_heads * tokens * kDim));
    std::uint32_t random = 1;
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      for (std::uint16_t& bits : rows) {  // +-[0.5, 1)
        random = random * 1664525U + 1013904223U;
        bits =
            static_cast<std::uint16_t>(0x3800U | (random >> 31U) << 15U | (random >> 16U & 0x3ffU));
      }
      const KvRowsView view = {rows.data(), tokens * kDim, kDim};
      store_.write(layer, {0, tokens}, view, view);
    }
    drift();
  }

  /// The next step's query resembles this one.
  void drift() {
    for (std::uint16_t& bits : query_) {
      if (generator_() % 8 == 0) {
        const auto random = static_cast<std::uint32_t>(generator_());
        bits =
            static_cast<std::uint16_t>(0x3800U | (random & 1U) << 15U | (random >> 16U & 0x3ffU));
      }
    }
  }

  HostJob job() {
    HostJob job;
    job.store = &store_;
    job.rule = {HostQuery::kExact, PayloadKind::kLogitsAndValues, HostChoice::kSelector};
    job.query = query_.data();
    job.selector = selector_.get();
    job.num_offloaded = tokens_;
    job.num_chosen = chosen_;
    job.buffers = {.logits = logits_.data(),
                   .positions = positions_.data(),
                   .index = index_.data(),
                   .merged = merged_.data(),
                   .union_sizes = union_sizes_.data(),
                   .values = values_.data(),
                   .union_capacity = union_rows_,
                   .scores = reinterpret_cast<float*>(scores_.data())};
    return job;
  }

  const HostKvStore& store() const { return store_; }

 private:
  std::int64_t kv_heads_;
  std::int64_t heads_;
  std::int64_t tokens_;
  std::int64_t chosen_;
  std::int64_t union_rows_;
  HostKvStore store_;
  std::mt19937 generator_{3};
  std::vector<std::uint16_t> query_;
  std::vector<float> logits_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> index_;
  std::vector<std::int32_t> merged_;
  std::vector<std::int64_t> union_sizes_;
  HostBuffer values_;
  HostBuffer scores_;
  std::unique_ptr<TokenSelector> selector_;
};

void stage(benchmark::State& state,
           std::int64_t num_requests,
           std::int64_t kv_heads,
           std::int64_t tokens,
           std::int64_t chosen) {
  std::vector<std::unique_ptr<Request>> requests;
  requests.reserve(static_cast<std::size_t>(num_requests));
  for (std::int64_t i = 0; i < num_requests; ++i) {
    requests.push_back(std::make_unique<Request>(kv_heads, tokens, chosen));
  }
  ModelConfig config;
  config.num_layers = kLayers;
  config.num_heads = kv_heads * kPerGroup;
  config.num_kv_heads = kv_heads;
  config.head_dim = kDim;
  TraceRecorder trace;
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  CpuStage stage(workers().pool(), table, config, trace);
  stage.reserve(tokens);
  HostJobBatch batch;
  batch.layer = 0;
  const std::vector<float> query(static_cast<std::size_t>(kPerGroup * kDim), 0.01F);
  std::vector<std::vector<float>> logits(static_cast<std::size_t>(workers().size()));
  for (auto& one : logits) one.resize(static_cast<std::size_t>(kPerGroup * kChunk));
  const std::int64_t chunks = (tokens + kChunk - 1) / kChunk;
  ratio_to(
      state,
      [&] {
        batch.layer = 1 - batch.layer;
        return workers().run(num_requests * kv_heads * chunks, [&](std::int64_t i, int worker) {
          const std::int64_t begin = i % chunks * kChunk;
          kernels::BlockedLogitsArgs args;
          args.keys = requests[static_cast<std::size_t>(i / chunks / kv_heads)]->store().keys(
              batch.layer, i / chunks % kv_heads);
          args.queries = query.data();
          args.num_queries = kPerGroup;
          args.tokens = {begin, std::min(begin + kChunk, tokens)};
          args.logits = logits[static_cast<std::size_t>(worker)].data();
          args.logits_stride = kChunk;
          table.blocked_logits(args);
        });
      },
      [&] {
        batch.layer = 1 - batch.layer;
        batch.jobs.clear();
        for (auto& request : requests) {
          request->drift();
          batch.jobs.push_back(request->job());
        }
        const auto begin = std::chrono::steady_clock::now();
        stage.submit(batch);
        stage.wait(batch);
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      });
}

const bool kRegistered = [] {
  struct Case {
    const char* name;
    std::int64_t requests;
    std::int64_t kv_heads;
    std::int64_t tokens;
    std::int64_t chosen;
  };
  for (const Case& each :
       {Case{"stage/32768_tokens/8_kv_heads/1_percent", 1, 8, 32768, 327},
        Case{"stage/32768_tokens/8_kv_heads/5_percent", 1, 8, 32768, 1638},
        Case{"stage/131072_tokens/2_kv_heads/k128", 1, 2, 131072, 128},
        Case{"stage/64_requests_of_1000_tokens/4_kv_heads/k64", 64, 4, 1000, 64}}) {
    benchmark::RegisterBenchmark(
        each.name,
        [each](benchmark::State& state) {
          stage(state, each.requests, each.kv_heads, each.tokens, each.chosen);
        })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
