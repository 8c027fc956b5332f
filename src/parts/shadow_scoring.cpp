// SPDX-License-Identifier: Apache-2.0
// Chooses by a low-precision copy of the keys. The copy is calibrated by all offloaded keys once
// the prompt is read, and again whenever there are twice as many as calibrated it: what the keys
// look like moves with the position, and all of them together serve best.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "device/resident_cache.h"
#include "hybridgen/parts/part_roles.h"
#include "kernels/cpu_kernels.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/scoring_shadow.h"
#include "kvcache/stored_head.h"
#include "parts/parts.h"

namespace hybridgen {
namespace {

ShadowShape shape_of(const PartContext& context, ShadowPrecision precision) {
  return {
      .num_layers = context.config.num_layers,
      .num_kv_heads = context.config.num_kv_heads,
      .head_dim = context.config.head_dim,
      .dtype = context.dtype,
      .capacity = context.max_offloaded,
      .precision = precision,
      .numa_node = context.numa_node,
      .numa_parts = context.numa_parts == nullptr ? std::vector<NumaPart>{} : *context.numa_parts};
}

class ShadowScoring final : public KeyProxy {
 public:
  ShadowScoring(const ShadowShape& shape, double candidates_per_k)
      : shadow_(shape), candidates_per_k_(candidates_per_k) {}

  /// How many keys calibrated it; the copy itself follows from that and the keys.
  PartState state() const override { return {.from_keys = true, .saved = true}; }

  void before_step(std::int64_t num_offloaded, const HostKvStore* host) override {
    constexpr std::int64_t kFewest = 256;  // more often is not worth it
    if (calibrated_by_ >= 0 && num_offloaded < std::max(2 * calibrated_by_, kFewest)) {
      return;
    }
    calibrated_by_ = num_offloaded;
    if (num_offloaded == 0) {
      return;
    }
    shadow_.grow(num_offloaded);
    if (host->disk() != nullptr && host->disk()->num_blocks(KvSide::kKeys) > 0) {
      copy_from_disk(num_offloaded, *host);
      return;
    }
    at::parallel_for(0, shadow_.shape().num_layers, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t layer = begin; layer < end; ++layer) {
        const KvRowsView keys = host->key_rows_from(layer, 0);
        shadow_.calibrate(layer, num_offloaded, keys);
        shadow_.write(layer, {0, num_offloaded}, keys);
      }
    });
  }

  void on_offload(const OffloadedRows& rows) override {
    if (calibrated_by_ < 0) {
      return;  // all at once when the prompt is read
    }
    shadow_.grow(rows.tokens.end);
    if (!shadow_.is_calibrated(rows.layer)) {
      // The prompt left nothing: what is still on the device resembles what comes more than one
      // key.
      const at::Tensor resident = rows.resident.resident_keys(rows.layer).cpu();
      shadow_.calibrate(rows.layer,
                        resident.size(1),
                        {resident.const_data_ptr(), resident.stride(0), resident.stride(1)});
    }
    shadow_.write(rows.layer, rows.tokens, rows.host.key_rows_from(rows.layer, rows.tokens.begin));
  }

  void on_replace(const ReplacedRow& row) override {
    if (calibrated_by_ >= 0) {
      shadow_.write_row(row.layer, row.kv_head, row.slot, row.host_key);
    }
  }

  std::int64_t num_candidates(std::int64_t num_chosen, std::int64_t available) const override {
    const double wanted = std::ceil(candidates_per_k_ * static_cast<double>(num_chosen));
    return wanted < static_cast<double>(available) ? static_cast<std::int64_t>(wanted) : available;
  }

  void prepare(std::int64_t layer,
               std::int64_t kv_head,
               std::span<const float> queries,
               Queries& prepared) const override {
    const ShadowKeyView keys = shadow_.keys(layer, kv_head);
    const std::size_t count = queries.size() / static_cast<std::size_t>(keys.head_dim);
    prepared.codes.resize(count * static_cast<std::size_t>(keys.padded_dim));
    prepared.scales.resize(count);
    kernels::prepare_shadow_queries(keys,
                                    queries.data(),
                                    static_cast<std::int64_t>(count),
                                    prepared.codes.data(),
                                    prepared.scales.data());
  }

  std::int64_t score(const kernels::CpuKernels& kernels,
                     std::int64_t layer,
                     std::int64_t kv_head,
                     const Queries& prepared,
                     TokenRange tokens,
                     float* scores,
                     std::int64_t stride) const override {
    kernels::ShadowLogitsArgs args;
    args.keys = shadow_.keys(layer, kv_head);
    args.queries = prepared.codes.data();
    args.scales = prepared.scales.data();
    args.num_queries = static_cast<std::int64_t>(prepared.scales.size());
    args.tokens = tokens;
    args.scores = scores;
    args.scores_stride = stride;
    kernels.shadow_logits(args);
    return tokens.size() * args.keys.block_bytes / kKeyBlockTokens;
  }

  void report(PlacedBytes& bytes) const override { shadow_.report(bytes); }

 private:
  // One KV head after the other: there is memory for two layers of what is on the disk, and no
  // more.
  void copy_from_disk(std::int64_t num_offloaded, const HostKvStore& host) {
    const HostKvShape& shape = host.shape();
    const kernels::CpuKernels& kernels = kernels::cpu_kernels(kernels::resolve_isa("auto"));
    std::vector<std::byte> keys(static_cast<std::size_t>(num_offloaded * shape.head_dim) *
                                size_of(shape.dtype));
    for (std::int64_t layer = 0; layer < shape.num_layers; ++layer) {
      for (std::int64_t g = 0; g < shape.num_kv_heads; ++g) {
        StoredHead(kernels, host, layer, g)
            .keys(TokenRange{0, num_offloaded}, keys.data(), kernels::RowReader::kCpu);
        shadow_.calibrate(layer, g, num_offloaded, keys.data());
        shadow_.write(layer, g, {0, num_offloaded}, keys.data());
      }
      host.disk()->release(layer);
    }
  }

  ScoringShadow shadow_;
  double candidates_per_k_;
  std::int64_t calibrated_by_ = -1;  ///< -1: the prompt is not read yet
};

}  // namespace

PartFactory shadow_scoring_part(ShadowPrecision precision, double candidates_per_k) {
  return {
      .role = PartRole::kKeyProxy,
      .make =
          [=](const PartContext& context) {
            return std::make_unique<ShadowScoring>(shape_of(context, precision), candidates_per_k);
          },
      .required_bytes =
          [=](const PartContext& context) {
            return PartBytes{.host = ScoringShadow::required_bytes(shape_of(context, precision))};
          }};
}

}  // namespace hybridgen
