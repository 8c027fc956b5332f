// SPDX-License-Identifier: Apache-2.0
// Top-k of a row of logits on one thread, as a ratio to std::nth_element on (value, index) pairs;
// and of as many as have a softmax mass, as a ratio to top-k of that number: `k` is how many.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "benchmark_support.h"

namespace hybridgen::benchmarks {
namespace {

using Pair = std::pair<float, std::int32_t>;

/// Not left to the time of the quicker side: the other takes a hundred times as long.
constexpr int kRounds = 101;

std::vector<float> normal_scores(std::int64_t n, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> scores(static_cast<std::size_t>(n));
  for (float& score : scores) score = normal(generator);
  return scores;
}

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// `is_warm`: as in a decode step, with the k-th value of a row that resembles this one.
void selection(benchmark::State& state, std::int64_t n, std::int64_t k, bool is_warm) {
  const std::vector<float> scores = normal_scores(n, 1);
  const auto count = static_cast<std::size_t>(k);
  std::vector<std::int32_t> positions(count);
  std::vector<float> values(count);
  std::vector<float> scratch;
  std::vector<Pair> pairs(scores.size());
  float before = 0.0F;
  if (is_warm) {
    const std::vector<float> last = normal_scores(n, 2);
    kernels::top_k(last.data(), n, k, positions.data(), values.data(), scratch, &before);
  }
  ratio_to(
      state,
      [&] {
        return seconds_of([&] {
          for (std::size_t i = 0; i < pairs.size(); ++i) {
            pairs[i] = {scores[i], static_cast<std::int32_t>(i)};
          }
          std::nth_element(
              pairs.begin(), pairs.begin() + k - 1, pairs.end(), [](const Pair& a, const Pair& b) {
                return a.first != b.first ? a.first > b.first : a.second < b.second;
              });
          benchmark::DoNotOptimize(pairs.data());
        });
      },
      [&] {
        return seconds_of([&] {
          float kth = before;
          kernels::top_k(scores.data(),
                         n,
                         k,
                         positions.data(),
                         values.data(),
                         scratch,
                         is_warm ? &kth : nullptr);
          benchmark::DoNotOptimize(positions.data());
        });
      });
}

/// `spread`: standard deviation of the logits.
void selection_by_mass(benchmark::State& state, std::int64_t n, float spread, double mass) {
  std::vector<float> scores = normal_scores(n, 1);
  for (float& score : scores) score *= spread;
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  std::vector<float> scratch;
  std::vector<float> weights(scores.size());
  const auto count = [&] {
    table.softmax_weights(scores.data(), n, table.log_sum_exp(scores.data(), n), weights.data());
    return kernels::count_mass(weights.data(), n, mass, n, scratch);
  };
  const std::int64_t k = count();
  std::vector<std::int32_t> positions(static_cast<std::size_t>(n));
  std::vector<float> values(static_cast<std::size_t>(n));
  const auto select = [&](std::int64_t wanted) {
    kernels::top_k(scores.data(), n, wanted, positions.data(), values.data(), scratch);
    benchmark::DoNotOptimize(positions.data());
  };
  ratio_to(
      state,
      [&] { return seconds_of([&] { select(k); }); },
      [&] { return seconds_of([&] { select(count()); }); });
  state.counters["k"] = static_cast<double>(k);
}

const bool kRegistered = [] {
  for (const std::int64_t n : {4096, 32768, 131072}) {
    for (const auto& [spread, mass] : {std::pair{0.5F, 0.9},
                                       std::pair{2.0F, 0.9},
                                       std::pair{4.0F, 0.9},
                                       std::pair{4.0F, 0.99}}) {
      const std::string name = "selection_by_mass/" + std::to_string(n) + "/spread" +
                               std::to_string(spread).substr(0, 3) + "/mass" +
                               std::to_string(mass).substr(0, 4);
      benchmark::RegisterBenchmark(name.c_str(),
                                   [n, spread = spread, mass = mass](benchmark::State& state) {
                                     selection_by_mass(state, n, spread, mass);
                                   })
          ->Iterations(kRounds)
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
  for (const std::int64_t n : {4096, 32768, 131072, 1048576}) {
    for (const std::int64_t k : {std::int64_t{128}, n / 100, n / 20, n / 5}) {
      for (const bool is_warm : {false, true}) {
        const std::string name = "selection/" + std::to_string(n) + "/k" + std::to_string(k) +
                                 (is_warm ? "/warm" : "/cold");
        benchmark::RegisterBenchmark(
            name.c_str(), [=](benchmark::State& state) { selection(state, n, k, is_warm); })
            ->Iterations(kRounds)
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
