// SPDX-License-Identifier: Apache-2.0
// What an engine holds of a tier and has to have of DRAM, and waiting until it has used its disk.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/engine/engine.h"
#include "support/tiny_model.h"

namespace hybridgen::testing {

inline std::int64_t used_of(const Engine& engine, const std::string& tier) {
  for (const TierUsage& usage : engine.memory()) {
    if (usage.tier == tier) return usage.used_bytes;
  }
  return 0;
}

/// What is on its way to the disk is read from memory: on a busy machine, where little goes there,
/// all of it to the end. So who wants the disk read waits once in a while.
inline void wait_for_a_write(const Engine& engine,
                             std::chrono::milliseconds most = std::chrono::seconds(2)) {
  const auto deadline = std::chrono::steady_clock::now() + most;
  while (used_of(engine, "disk") > 0 && engine.run_statistics().disk.written_bytes == 0 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

/// Whether a request has so many tokens.
inline bool is_any_at(const std::vector<Generated>& outputs, std::size_t tokens) {
  return std::ranges::any_of(outputs,
                             [&](const Generated& each) { return each.tokens.size() == tokens; });
}

/// DRAM that a prompt has to have beside the other tiers of `options`, as the refusal of less says.
inline std::int64_t least_dram(const std::shared_ptr<DecoderModel>& model,
                               EngineOptions options,
                               const std::vector<std::int64_t>& prompt,
                               int new_tokens) {
  options.dram_bytes = 1;
  Engine engine(model, options);
  SamplingOptions sampling;
  sampling.max_tokens = new_tokens;
  try {
    engine.add(prompt, sampling);
  } catch (const OutOfMemoryError& error) {
    const std::string setting = "KVConfig(dram=";
    const std::string text = error.what();
    return std::stoll(text.substr(text.find(setting) + setting.size()));
  }
  return options.dram_bytes;
}

}  // namespace hybridgen::testing
