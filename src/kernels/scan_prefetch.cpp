// SPDX-License-Identifier: Apache-2.0
// Which cache a scan should fetch ahead into, measured: one thread scans the same keys from memory
// with each choice by turns.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "memory/host_buffer.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace hybridgen::kernels {

namespace {

constexpr std::array kChoices = {Prefetch::kL1, Prefetch::kL2, Prefetch::kL3};

#if defined(__x86_64__)

constexpr std::int64_t kHeadDim = 128;
constexpr std::int64_t kTokens = 2048;
constexpr std::int64_t kQueries = 4;
constexpr int kRounds = 9;
/// Another choice than the first has to be faster by so much: beside other programs no two
/// measurements are the same, and where the choices are alike it should not change from run to run.
constexpr double kClearly = 1.1;

/// Takes the keys out of all caches, whatever their sizes.
void flush(const std::byte* keys, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += 64) _mm_clflush(keys + at);
  _mm_mfence();
}

Prefetch measure() {
  const CpuKernels& kernels = cpu_kernels(supported_isas().back());
  // Larger than they need, for a huge page, such as offloaded keys lie on.
  constexpr std::int64_t kBytes = kTokens * kHeadDim * 2;
  HostBuffer keys(std::size_t{2} << 20);
  std::fill_n(keys.data(), kBytes, std::byte{0x3c});
  const std::vector<float> queries(static_cast<std::size_t>(kQueries * kHeadDim), 1.0F);
  std::vector<float> logits(static_cast<std::size_t>(kQueries * kTokens));
  const auto seconds = [&](Prefetch choice) {
    flush(keys.data(), kBytes);
    const auto begin = std::chrono::steady_clock::now();
    // The choice is named here: by default it is what is being measured.
    kernels.blocked_logits({.keys = {keys.data(), DType::kFloat16, kHeadDim, kTokens},
                            .queries = queries.data(),
                            .num_queries = kQueries,
                            .tokens = {0, kTokens},
                            .logits = logits.data(),
                            .logits_stride = kTokens,
                            .prefetch = choice});
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  std::array<std::array<double, kRounds>, kChoices.size()> gains{};
  for (int round = -1; round < kRounds; ++round) {  // the first one only warms up
    std::array<double, kChoices.size()> taken{};
    for (std::size_t i = 0; i < kChoices.size(); ++i) taken[i] = seconds(kChoices[i]);
    for (std::size_t i = 0; round >= 0 && i < kChoices.size(); ++i) {
      gains[i][static_cast<std::size_t>(round)] = taken[0] / taken[i];
    }
  }
  std::size_t best = 0;
  double best_gain = kClearly;
  for (std::size_t i = 1; i < kChoices.size(); ++i) {
    std::nth_element(gains[i].begin(), gains[i].begin() + kRounds / 2, gains[i].end());
    if (gains[i][kRounds / 2] > best_gain) {
      best = i;
      best_gain = gains[i][kRounds / 2];
    }
  }
  return kChoices[best];
}

#else

Prefetch measure() { return Prefetch::kL1; }

#endif

}  // namespace

std::string_view name_of(Prefetch prefetch) {
  switch (prefetch) {
    case Prefetch::kL1:
      return "l1";
    case Prefetch::kL2:
      return "l2";
    case Prefetch::kL3:
      return "l3";
  }
  throw std::logic_error("internal check failed: not an enumerator of Prefetch");
}

Prefetch resolve_prefetch(std::string_view name) {
  std::string_view wanted = name;
  std::string_view origin = "the call";
  if (name == "auto") {
    const char* forced = std::getenv("HYBRIDGEN_PREFETCH");
    if (forced == nullptr || *forced == '\0' || std::string_view(forced) == "auto") {
      static const Prefetch fastest = measure();
      return fastest;
    }
    wanted = forced;
    origin = "the environment's HYBRIDGEN_PREFETCH";
  }
  for (const Prefetch choice : kChoices) {
    if (wanted == name_of(choice)) return choice;
  }
  throw ConfigError(message("[resolve_prefetch] prefetch is \"",
                            wanted,
                            "\" (from ",
                            origin,
                            "); allowed: \"auto\", \"l1\", \"l2\", \"l3\"; choose one of these"));
}

Prefetch scan_prefetch() {
  static const Prefetch choice = resolve_prefetch("auto");
  return choice;
}

}  // namespace hybridgen::kernels
