// SPDX-License-Identifier: Apache-2.0
// What a user decides when an engine is built. Plain values; validate() checks each by itself, the
// engine checks them against model and machine.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>

#include "hybridgen/core/scheduler_options.h"
#include "hybridgen/core/types.h"

namespace hybridgen {

/// How many offloaded tokens take part: a count, a share of the offloaded tokens, the larger of
/// both, or all.
class TokenCount {
 public:
  static TokenCount all() { return {}; }
  static TokenCount count(std::int64_t tokens);                    ///< ConfigError unless >= 1
  static TokenCount share(double share);                           ///< ConfigError unless in (0, 1)
  static TokenCount larger_of(std::int64_t tokens, double share);  ///< the same errors
  /// The larger of 256 tokens and an eighth: what keeps close to full attention's answers.
  static TokenCount usual() { return larger_of(256, 0.125); }

  /// Tokens out of `available`: at least 1, at most `available`; 0 if nothing is available.
  std::int64_t resolve(std::int64_t available) const;
  std::string text() const;  ///< "all", "128", "0.05" or "max(256, 0.125)"
  bool is_all() const { return !count_ && !share_; }
  std::optional<std::int64_t> as_count() const { return count_; }
  std::optional<double> as_share() const { return share_; }
  friend bool operator==(const TokenCount&, const TokenCount&) = default;

 private:
  std::optional<std::int64_t> count_;
  std::optional<double> share_;
};

/// Tokens of a request that stay on the device: a count, a share of the prompt, or as many as fit.
struct WindowSetting {
  /// A share above 0 means no fewer tokens: a tenth of a short prompt is too little to answer by.
  static constexpr std::int64_t kFewestOfAShare = 256;

  std::optional<std::int64_t> count;  ///< >= 0; the newest token is always resident
  std::optional<double> share;        ///< in [0, 1]

  /// Tokens for a prompt of `prompt_tokens`, maybe more than it has; none: as many as fit.
  std::optional<std::int64_t> resolve(std::int64_t prompt_tokens) const;
  friend bool operator==(const WindowSetting&, const WindowSetting&) = default;
};

/// Switches for tests and for debugging; none changes results.
struct TestSwitches {
  bool synchronous = false;          ///< wait for every host job right after submitting it
  std::int64_t random_delay_us = 0;  ///< both stages sleep up to this long at their seams
  bool oracle_proxy = false;         ///< guess from the layer's own input: must equal exact mode
  std::int64_t invented_nodes = 0;   ///< > 0: workers count as this many memory nodes', by turns
};

/// A value of a method's own option.
using MethodValue = std::variant<bool, std::int64_t, double, std::string>;

struct EngineOptions {
  std::string method = "hybridgen";
  std::map<std::string, MethodValue> method_config;  ///< options of that method; absent: defaults
  QueryMode query = QueryMode::kRescore;
  std::string selector = "topk";
  std::string pre_selector = "partial_keys";
  SelectionStrategy strategy = SelectionStrategy::kPostQkt;
  TokenCount k = TokenCount::usual();
  std::optional<SchedulerOptions> scheduler;  ///< steers K and the strategy; k is not used then
  std::string scoring = "full";   ///< keys that a Post-QKT scan reads: "full", "int8" or "int4"
  double candidates_per_k = 0.0;  ///< exact logits per chosen token, >= 1; 0: 2 (int8), 4 (int4)
  WindowSetting device_tokens;
  std::int64_t spec_first_layer = 2;  ///< first layer whose query is guessed, >= 1
  std::string guess_norm = "next";    ///< norm before guessing: "next" or "current" layer's
  std::string guess_source =
      "next_weights";               ///< or "previous_query": the query of the layer before
  std::int64_t dram_bytes = 0;      ///< 0: from the memory that is free
  std::int64_t device_bytes = 0;    ///< 0: from the memory that is free
  std::int64_t threads = 0;         ///< host workers; 0: chosen
  std::int64_t device_threads = 0;  ///< cores of a CPU device; 0: chosen
  int numa_node = -1;               ///< of workers and offloaded tokens; -1: of no one node
  bool divides_heads = true;        ///< over all memory nodes with workers, if numa_node is -1
  std::string isa = "auto";
  std::string math = "auto";  ///< "kernels", "aten"; auto: kernels on the CPU
  /// Prompt and new tokens of a request at most, the last one, which is never fed back, included;
  /// 0: the model's positions. More only with a method that gives tokens other positions than those
  /// in the text (PositionMode).
  std::int64_t max_model_len = 0;
  std::int64_t prefill_chunk = 1024;  ///< prompt tokens per pass, >= 1
  std::int64_t micro_batch = 16;      ///< decode rows that pass through a layer together, >= 1
  std::int64_t max_batch = 64;        ///< requests that run at the same time, >= 1
  TestSwitches test;

  /// Throws ConfigError naming the first bad value.
  void validate() const;
};

}  // namespace hybridgen
