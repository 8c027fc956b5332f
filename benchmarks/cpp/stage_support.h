// SPDX-License-Identifier: Apache-2.0
// Requests with offloaded tokens and the CPU stage over them, as a decode step drives it: queries
// drift from step to step, layers alternate, so that no key is in cache.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "benchmark_support.h"
#include "hybridgen/core/model_config.h"
#include "hybridgen/core/types.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "hybridgen/selection/token_selector.h"
#include "kvcache/host_kv_store.h"
#include "pipeline/cpu_stage.h"

namespace hybridgen::benchmarks {

/// What a stage works on.
struct StageShape {
  DType dtype = DType::kFloat16;
  std::int64_t requests = 1;
  std::int64_t kv_heads = 1;
  std::int64_t tokens = 1;
  std::int64_t chosen = 1;

  static constexpr std::int64_t kLayers = 2;
  static constexpr std::int64_t kDim = 128;
  static constexpr std::int64_t kPerGroup = 4;

  std::int64_t heads() const { return kv_heads * kPerGroup; }
};

/// Writes element `index` of `to`: +-[0.5, 1) by the bits of `random`.
inline void write_element(DType dtype, std::byte* to, std::int64_t index, std::uint32_t random) {
  const std::uint32_t sign = random >> 31U;
  if (dtype == DType::kFloat32) {
    const std::uint32_t bits = 0x3f00'0000U | sign << 31U | (random >> 8U & 0x7f'ffffU);
    std::memcpy(to + index * 4, &bits, 4);
    return;
  }
  const std::uint32_t magnitude = dtype == DType::kFloat16 ? 0x3800U | (random >> 16U & 0x3ffU)
                                                           : 0x3f00U | (random >> 16U & 0x7fU);
  const auto bits = static_cast<std::uint16_t>(sign << 15U | magnitude);
  std::memcpy(to + index * 2, &bits, 2);
}

/// Keys, and also values, of a layer: rows [kv_heads, tokens, kDim].
inline void write_rows(const StageShape& shape, std::int64_t layer, std::byte* to) {
  auto random = static_cast<std::uint32_t>(layer + 1);
  const std::int64_t count = shape.kv_heads * shape.tokens * StageShape::kDim;
  for (std::int64_t i = 0; i < count; ++i) {
    random = random * 1664525U + 1013904223U;
    write_element(shape.dtype, to, i, random);
  }
}

class StageRequest {
 public:
  explicit StageRequest(const StageShape& shape)
      : shape_(shape),
        union_rows_(std::min(shape.tokens, StageShape::kPerGroup * shape.chosen)),
        store_({.num_layers = StageShape::kLayers,
                .num_kv_heads = shape.kv_heads,
                .head_dim = StageShape::kDim,
                .dtype = shape.dtype,
                .capacity = shape.tokens}),
        query_(static_cast<std::size_t>(shape.heads() * StageShape::kDim) * size_of(shape.dtype)),
        logits_(static_cast<std::size_t>(shape.heads() * shape.chosen)),
        positions_(logits_.size()),
        index_(logits_.size()),
        merged_(static_cast<std::size_t>(shape.kv_heads * union_rows_)),
        union_sizes_(static_cast<std::size_t>(shape.kv_heads)),
        values_(static_cast<std::size_t>(shape.kv_heads * union_rows_ * StageShape::kDim) *
                size_of(shape.dtype)),
        scores_(static_cast<std::size_t>(shape.heads() * score_stride(shape.tokens)) *
                sizeof(float)),
        unchosen_(static_cast<std::size_t>(shape.heads())),
        selector_(make_top_k_selector({.num_layers = StageShape::kLayers,
                                       .num_kv_heads = shape.kv_heads,
                                       .query_heads_per_kv_head = StageShape::kPerGroup})) {
    const std::int64_t head_elements = shape.tokens * StageShape::kDim;
    HostBuffer rows(static_cast<std::size_t>(shape.kv_heads * head_elements) *
                    size_of(shape.dtype));
    store_.grow(shape.tokens);
    for (std::int64_t layer = 0; layer < StageShape::kLayers; ++layer) {
      write_rows(shape, layer, rows.data());
      const KvRowsView view = {rows.data(), head_elements, StageShape::kDim};
      store_.write(layer, {0, shape.tokens}, view, view);
    }
    for (std::int64_t i = 0; i < shape.heads() * StageShape::kDim; ++i) {
      write_element(shape.dtype, query_.data(), i, static_cast<std::uint32_t>(generator_()));
    }
  }

  /// The next step's query resembles this one.
  void drift() {
    for (std::int64_t i = 0; i < shape_.heads() * StageShape::kDim; ++i) {
      if (generator_() % 8 == 0) {
        write_element(shape_.dtype, query_.data(), i, static_cast<std::uint32_t>(generator_()));
      }
    }
  }

  /// `measures`: what is not chosen, too, as a decode step does.
  HostJob job(bool measures) {
    HostJob job;
    job.store = &store_;
    job.payload = Payload::kLogitsAndValues;
    job.chooser = SelectedHere{.selector = selector_.get()};
    job.query = query_.data();
    job.num_offloaded = shape_.tokens;
    job.num_chosen = shape_.chosen;
    job.buffers = {.logits = logits_.data(),
                   .positions = positions_.data(),
                   .index = index_.data(),
                   .merged = merged_.data(),
                   .union_sizes = union_sizes_.data(),
                   .values = values_.data(),
                   .union_capacity = union_rows_,
                   .scores = reinterpret_cast<float*>(scores_.data()),
                   .unchosen = measures ? unchosen_.data() : nullptr};
    return job;
  }

  const HostKvStore& store() const { return store_; }
  /// [H, kDim] in the shape's dtype.
  std::byte* query() { return query_.data(); }
  /// [H, chosen], ascending: what the last step chose.
  const std::vector<std::int32_t>& positions() const { return positions_; }

 private:
  StageShape shape_;
  std::int64_t union_rows_;
  HostKvStore store_;
  std::mt19937 generator_{3};
  std::vector<std::byte> query_;
  std::vector<float> logits_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> index_;
  std::vector<std::int32_t> merged_;
  std::vector<std::int64_t> union_sizes_;
  HostBuffer values_;
  HostBuffer scores_;
  std::vector<float> unchosen_;
  std::unique_ptr<TokenSelector> selector_;
};

/// The stage on all workers, with its requests.
class StageRunner {
 public:
  explicit StageRunner(const StageShape& shape)
      : stage_(workers().pool(), table_, config_of(shape), trace_) {
    for (std::int64_t i = 0; i < shape.requests; ++i) {
      requests_.push_back(std::make_unique<StageRequest>(shape));
    }
    stage_.reserve(shape.tokens);
  }

  /// Runs the stage of `layer` with the next queries; returns its seconds.
  double step(std::int64_t layer, bool measures = true) {
    batch_.layer = layer;
    batch_.jobs.clear();
    for (auto& request : requests_) {
      request->drift();
      batch_.jobs.push_back(request->job(measures));
    }
    const auto begin = std::chrono::steady_clock::now();
    stage_.submit(batch_);
    stage_.wait(batch_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  StageRequest& request(std::int64_t index) { return *requests_[static_cast<std::size_t>(index)]; }
  const kernels::CpuKernels& table() const { return table_; }

 private:
  static ModelConfig config_of(const StageShape& shape) {
    ModelConfig config;
    config.num_layers = StageShape::kLayers;
    config.num_heads = shape.heads();
    config.num_kv_heads = shape.kv_heads;
    config.head_dim = StageShape::kDim;
    return config;
  }

  const kernels::CpuKernels& table_ = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  TraceRecorder trace_;
  CpuStage stage_;
  HostJobBatch batch_;
  std::vector<std::unique_ptr<StageRequest>> requests_;
};

}  // namespace hybridgen::benchmarks
