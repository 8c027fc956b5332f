// SPDX-License-Identifier: Apache-2.0
// What a user decides when an engine is built. Plain values; validate() checks each by itself, the
// engine checks them against model and machine.
#pragma once

#include <cstdint>
#include <string>

#include "hybridgen/core/hybridgen_options.h"
#include "hybridgen/core/kv_views.h"
#include "hybridgen/core/option_value.h"
#include "hybridgen/core/tiers.h"
#include "hybridgen/core/token_counts.h"
#include "hybridgen/core/types.h"

namespace hybridgen {

/// Switches for tests and for debugging; none changes results.
struct TestSwitches {
  bool synchronous = false;          ///< wait for every host job right after submitting it
  std::int64_t random_delay_us = 0;  ///< both stages sleep up to this long at their seams
  bool oracle_proxy = false;         ///< guess from the layer's own input: must equal exact mode
  std::int64_t invented_nodes = 0;   ///< > 0: workers count as this many memory nodes', by turns
  int invented_cxl_node = -1;        ///< >= 0: this memory node is the CXL tier, whatever it is
  /// > 0: bytes of the CXL tier that all host jobs together read in a second at most.
  std::int64_t cxl_bytes_per_second = 0;
};

/// Whose dense operations: this library's kernels, or LibTorch's. Auto: kernels on the CPU.
enum class Math : std::uint8_t { kAuto, kKernels, kAten };

struct EngineOptions {
  std::string method = "hybridgen";
  OptionMap method_config;     ///< options of that method; absent: defaults
  HybridGenOptions hybridgen;  ///< of that method, too: method_config goes on top
  WindowSetting device_tokens;
  KvPrecision key_precision = KvPrecision::kFull;    ///< of offloaded rows
  KvPrecision value_precision = KvPrecision::kFull;  ///< of offloaded rows
  std::int64_t dram_bytes = 0;                       ///< 0: from the memory that is free
  LowerTierOptions tiers;
  std::int64_t device_bytes = 0;    ///< 0: from the memory that is free
  std::int64_t threads = 0;         ///< host workers; 0: chosen
  std::int64_t device_threads = 0;  ///< cores of a CPU device; 0: chosen
  int numa_node = -1;               ///< of workers and offloaded tokens; -1: of no one node
  bool divides_heads = true;        ///< over all memory nodes with workers, if numa_node is -1
  std::string isa = "auto";
  Math math = Math::kAuto;
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

/// What `options` say to hybridgen, method_config included if that is the method.
HybridGenOptions hybridgen_options(const EngineOptions& options);

}  // namespace hybridgen
