// SPDX-License-Identifier: Apache-2.0
// What the benchmarks share: all cores, large data, and the machine's read ceiling measured by
// turns with the work, so that other load on the machine hits both.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "memory/host_buffer.h"
#include "runtime/cpus.h"
#include "runtime/worker_pool.h"

namespace hybridgen::benchmarks {

/// One pinned worker per core that this process may use.
class Workers {
 public:
  // The caller has no core of its own: were it to spin long, a worker would lose its time slice.
  Workers() : pool_({.cpus = cpus()}) {}

  int size() const { return pool_.size(); }
  WorkerPool& pool() { return pool_; }

  /// Calls task(i, worker) for i in [0, count) and returns the seconds until all are done.
  double run(std::int64_t count, const std::function<void(std::int64_t, int)>& task) {
    group_.assign(
        [](void* context, std::int64_t index, int worker) {
          (*static_cast<const std::function<void(std::int64_t, int)>*>(context))(index, worker);
        },
        const_cast<void*>(static_cast<const void*>(&task)),
        count);
    const auto begin = std::chrono::steady_clock::now();
    pool_.submit(group_);
    pool_.wait(group_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  static std::vector<int> cpus() {
    std::vector<int> all = available_cpus();
    all.resize(static_cast<std::size_t>(available_parallelism()));
    return all;
  }

  WorkerPool pool_;
  TaskGroup group_;
};

inline Workers& workers() {
  static Workers all;
  return all;
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Bytes per second that all workers read together: once over a quarter of a gibibyte, like the
/// work in tasks of half a mebibyte, so that the last ones end at about the same time.
inline double read_rate() {
  constexpr std::int64_t kBytes = std::int64_t{256} << 20;
  constexpr std::int64_t kTaskBytes = std::int64_t{512} << 10;
  static HostBuffer buffer = [] {
    HostBuffer made(kBytes);
    std::fill_n(made.data(), kBytes, std::byte{1});
    return made;
  }();
  const double seconds = workers().run(kBytes / kTaskBytes, [&](std::int64_t index, int) {
    benchmark::DoNotOptimize(kernels::read_all(buffer.data() + index * kTaskBytes, kTaskBytes));
  });
  return static_cast<double>(kBytes) / seconds;
}

/// Times `work` (which returns its own seconds) and a plain read by turns, and reports
///   share          rate of `bytes` per call over that of the read beside it, median
///   ceiling_GBps   the read's rate, median
inline void share_of_ceiling(benchmark::State& state,
                             std::int64_t bytes,
                             const std::function<double()>& work) {
  std::vector<double> shares;
  std::vector<double> ceilings;
  work();  // pages, caches and clocks
  for (auto _ : state) {
    ceilings.push_back(read_rate());
    const double seconds = work();
    shares.push_back(static_cast<double>(bytes) / seconds / ceilings.back());
    state.SetIterationTime(seconds);
  }
  state.counters["share"] = median(std::move(shares));
  state.counters["ceiling_GBps"] = median(std::move(ceilings)) / 1e9;
}

/// Times two things by turns; `ratio` is the median time of `baseline` over that of `work`.
inline void ratio_to(benchmark::State& state,
                     const std::function<double()>& baseline,
                     const std::function<double()>& work) {
  std::vector<double> base_seconds;
  std::vector<double> seconds;
  baseline();
  work();
  for (auto _ : state) {
    base_seconds.push_back(baseline());
    seconds.push_back(work());
    state.SetIterationTime(seconds.back());
  }
  const double base = median(std::move(base_seconds));
  state.counters["ratio"] = base / median(std::move(seconds));
  state.counters["baseline_us"] = base * 1e6;
}

}  // namespace hybridgen::benchmarks
