// SPDX-License-Identifier: Apache-2.0
// Parts that decide something. The loop asks them; it knows no method. A request has at most one of
// each role; selectors (token_selector.h) and retention policies (retention_policy.h) are the
// others.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "hybridgen/kvcache/kv_part.h"

namespace hybridgen {

struct AttentionItem;
struct PlacedBytes;
struct PlanItem;
namespace kernels {
struct CpuKernels;
}

/// Keeps on the device what offloaded tokens are chosen by there, before the host's job starts.
class TokenPlanner : public KvPart {
 public:
  /// How DeviceOps::plan() chooses among slots [0, num_offloaded), in every layer of a step:
  /// `count` of them per KV head if that is given, else as many as it finds worth it. It plans for
  /// all requests at a time: whose row it is and where the results go is left to the loop.
  virtual PlanItem plan(std::int64_t num_offloaded, std::optional<std::int64_t> count) const = 0;
};

/// Scores offloaded tokens roughly and at less cost than their keys do: a selector's scan reads it,
/// and only what scores best gets exact logits. Called by host workers, for different heads at the
/// same time.
class KeyProxy : public KvPart {
 public:
  /// A worker's own memory: queries as the proxy reads them.
  struct Queries {
    std::vector<std::int8_t> codes;
    std::vector<float> scales;
  };

  /// Of the `available` tokens so many per query head get exact logits, so that `num_chosen` of
  /// them are chosen; `available`: nothing is to be gained.
  virtual std::int64_t num_candidates(std::int64_t num_chosen, std::int64_t available) const = 0;
  /// `queries` [R, D] of a KV head, scaled.
  virtual void prepare(std::int64_t layer,
                       std::int64_t kv_head,
                       std::span<const float> queries,
                       Queries& prepared) const = 0;
  /// Row r of the KV head's query heads at scores + r * stride. Returns the bytes that it read.
  virtual std::int64_t score(const kernels::CpuKernels& kernels,
                             std::int64_t layer,
                             std::int64_t kv_head,
                             const Queries& prepared,
                             TokenRange tokens,
                             float* scores,
                             std::int64_t stride) const = 0;
  /// Adds where the memory lies that it has on the host.
  virtual void report(PlacedBytes& /*bytes*/) const {}
};

/// Decides who makes room on the host once it holds as many tokens as it may.
class HostPlacement : public KvPart {
 public:
  /// The slot that a new token takes; its token is gone. Once per token for every (layer, KV head).
  virtual std::int64_t replace(std::int64_t layer, std::int64_t kv_head) = 0;
};

/// Scores a prompt's tokens, for a retention policy that chooses by them.
class PromptScores : public KvPart {
 public:
  /// Of tokens [0, num_tokens), summed over the prompt's rows and the query heads of the KV head.
  virtual std::span<const float> sums(std::int64_t layer,
                                      std::int64_t kv_head,
                                      std::int64_t num_tokens) const = 0;
  /// They are needed no more.
  virtual void forget() = 0;
};

/// Says how many values are read where the host sent keys alone (FetchKeys).
class KeptValues : public KvPart {
 public:
  /// Of `num_tokens` >= 1 tokens, the new one beside them: so many others, of each query head those
  /// with the largest softmax weights; DeviceOps::weigh() ranks them and sum_kept() adds up. Never
  /// fewer for more tokens.
  virtual std::int64_t num_kept(std::int64_t num_tokens) const = 0;
};

}  // namespace hybridgen
