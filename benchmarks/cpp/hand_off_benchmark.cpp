// SPDX-License-Identifier: Apache-2.0
// One empty task per worker, handed to the pool and waited for, after the pool has been idle for a
// while: median and 99th percentile. "normal" spins as long as an engine's workers do in decode
// steps and then sleeps, "sharing" as long as where others need its cores; "sleeping" never spins,
// "spinning" always does.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "benchmark_support.h"

namespace hybridgen::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

void hand_off(benchmark::State& state, microseconds spin, microseconds gap) {
  std::vector<int> cpus = available_cpus();
  cpus.resize(static_cast<std::size_t>(available_parallelism()));
  // As in an engine: the thread that hands over has a core of its own, if there are two.
  if (cpus.size() > 1) cpus.erase(cpus.begin());
  WorkerPool pool({.cpus = cpus, .spin = spin});
  TaskGroup group;
  group.assign([](void*, std::int64_t, int) {}, nullptr, pool.size());
  std::vector<double> seconds;
  for (auto _ : state) {
    const auto idle_until = Clock::now() + gap;
    while (Clock::now() < idle_until) {
    }
    const auto begin = Clock::now();
    pool.submit(group);
    pool.wait(group);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    state.SetIterationTime(seconds.back());
  }
  std::sort(seconds.begin(), seconds.end());
  state.counters["median_us"] = seconds[seconds.size() / 2] * 1e6;
  state.counters["p99_us"] = seconds[seconds.size() * 99 / 100] * 1e6;
}

const bool kRegistered = [] {
  const std::vector<std::pair<std::string, microseconds>> pools = {
      {"normal", WorkerPool::kDecodeSpin},
      {"sharing", WorkerPool::Options{}.spin},
      {"spinning", microseconds(1'000'000)},
      {"sleeping", microseconds(0)}};
  for (const auto& [name, spin] : pools) {
    for (const int gap : {0, 20, 100, 500, 2000}) {
      benchmark::RegisterBenchmark(
          ("hand_off/" + name + "/gap" + std::to_string(gap) + "us").c_str(),
          [spin = spin, gap](benchmark::State& state) { hand_off(state, spin, microseconds(gap)); })
          ->UseManualTime()
          ->Iterations(1000)
          ->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
