// SPDX-License-Identifier: Apache-2.0
// What this machine's CPU does with our own kernels and worker pool, for `hybridgen profile`: each
// function runs some passes and returns what each of them took.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "memory/host_buffer.h"
#include "runtime/cpus.h"
#include "runtime/worker_pool.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::vector<double>;

constexpr std::int64_t kHeadDim = 128;
constexpr std::int64_t kChunkTokens = 2048;  // logits of a chunk stay in the second-level cache
constexpr std::int64_t kMiB = std::int64_t{1} << 20;

/// The same numbers in every run: what is measured is the machine.
class Numbers {
 public:
  std::uint32_t operator()() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::uint32_t>(state_ >> 33U);  // 31 bits
  }

 private:
  std::uint64_t state_ = 1;
};

void check_range(const char* operation,
                 const char* name,
                 std::int64_t value,
                 std::int64_t low,
                 std::int64_t high) {
  if (value >= low && value <= high) return;
  throw ConfigError(message("[",
                            operation,
                            "] ",
                            name,
                            " is ",
                            value,
                            "; allowed: an integer in [",
                            low,
                            ", ",
                            high,
                            "]"));
}

double seconds_of(const std::function<void()>& work) {
  const auto begin = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// One pinned worker for each of `threads` cores.
WorkerPool::Options workers_on(int threads, std::chrono::microseconds spin) {
  std::vector<int> cpus = available_cpus();
  check_range("measure", "threads", threads, 1, std::ssize(cpus));
  cpus.resize(static_cast<std::size_t>(threads));
  return {.cpus = std::move(cpus), .spin = spin};
}

/// Times `passes` of task(i, worker) for i in [0, count) on all workers, after one that is not
/// counted: pages, caches and clocks.
Seconds passes_of(WorkerPool& pool,
                  int passes,
                  std::int64_t count,
                  const std::function<void(std::int64_t, int)>& task) {
  check_range("measure", "passes", passes, 1, 1000);
  TaskGroup group;
  group.assign(
      [](void* context, std::int64_t index, int worker) {
        (*static_cast<const std::function<void(std::int64_t, int)>*>(context))(index, worker);
      },
      const_cast<void*>(static_cast<const void*>(&task)),
      count);
  Seconds seconds;
  for (int pass = -1; pass < passes; ++pass) {
    const double taken = seconds_of([&] {
      pool.submit(group);
      pool.wait(group);
    });
    if (pass >= 0) seconds.push_back(taken);
  }
  return seconds;
}

HostBuffer filled(std::int64_t bytes) {
  HostBuffer buffer(static_cast<std::size_t>(bytes));
  // Any bit pattern without infinities and NaN will do: 0x3c3c is a small number in all types.
  std::memset(buffer.data(), 0x3c, buffer.size_bytes());
  return buffer;
}

/// Logits of `queries` bfloat16 queries over `mebibytes` of blocked bfloat16 keys.
Seconds scan_keys(
    int threads, std::int64_t mebibytes, std::int64_t queries, const std::string& isa, int passes) {
  check_range("scan_keys", "mebibytes", mebibytes, 1, 1 << 16);
  check_range("scan_keys", "queries", queries, 1, 256);
  const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa(isa));
  WorkerPool pool(workers_on(threads, WorkerPool::Options{}.spin));
  const HostBuffer keys = filled(mebibytes * kMiB);
  const std::int64_t tokens = mebibytes * kMiB / (kHeadDim * 2);
  const std::vector<float> query(static_cast<std::size_t>(queries * kHeadDim), 0.0625F);
  std::vector<std::vector<float>> logits(static_cast<std::size_t>(threads + 1));
  for (auto& own : logits) own.resize(static_cast<std::size_t>(queries * kChunkTokens));
  return passes_of(pool, passes, tokens / kChunkTokens, [&](std::int64_t chunk, int worker) {
    kernels::BlockedLogitsArgs args;
    args.keys = {keys.data(), DType::kBFloat16, kHeadDim, tokens};
    args.queries = query.data();
    args.num_queries = queries;
    args.tokens = {chunk * kChunkTokens, (chunk + 1) * kChunkTokens};
    args.logits = logits[static_cast<std::size_t>(worker)].data();
    args.logits_stride = kChunkTokens;
    table.blocked_logits(args);
  });
}

/// Every twentieth row on average, ascending, out of `mebibytes` of rows, as a device gets them.
/// Returns the bytes of a pass and the seconds of each.
std::pair<std::int64_t, Seconds> gather(int threads,
                                        std::int64_t mebibytes,
                                        std::int64_t row_bytes,
                                        int passes) {
  check_range("gather", "mebibytes", mebibytes, 16, 1 << 16);
  check_range("gather", "row_bytes", row_bytes, 16, 1 << 16);
  constexpr std::int64_t kStride = 20;
  constexpr std::int64_t kSegmentBytes = 4 * kMiB;  // of one task
  WorkerPool pool(workers_on(threads, WorkerPool::Options{}.spin));
  const HostBuffer rows = filled(mebibytes * kMiB);
  const std::int64_t of_segment = kSegmentBytes / row_bytes;
  std::vector<std::int32_t> positions;
  Numbers random;
  for (std::int64_t at = 0; at + kStride <= of_segment; at += kStride) {
    positions.push_back(static_cast<std::int32_t>(at + random() % kStride));
  }
  const std::int64_t out_bytes = std::ssize(positions) * row_bytes;
  const std::int64_t segments = mebibytes * kMiB / kSegmentBytes;
  HostBuffer out = filled(segments * out_bytes);
  Seconds seconds = passes_of(pool, passes, segments, [&](std::int64_t segment, int) {
    kernels::gather_rows(rows.data() + segment * kSegmentBytes,
                         row_bytes,
                         positions.data(),
                         std::ssize(positions),
                         out.data() + segment * out_bytes,
                         kernels::RowReader::kDevice);
  });
  return {segments * out_bytes, std::move(seconds)};
}

/// The k largest of `count` scores, on one thread, as in a decode step: with the k-th value
/// of a row before.
Seconds select(std::int64_t count, std::int64_t k, int passes) {
  check_range("select", "count", count, 1, 1 << 26);
  check_range("select", "k", k, 1, count);
  Numbers random;
  std::vector<float> scores(static_cast<std::size_t>(count));
  for (float& score : scores) score = static_cast<float>(random()) * 0x1p-31F;
  std::vector<std::int32_t> positions(static_cast<std::size_t>(k));
  std::vector<float> values(positions.size());
  std::vector<float> scratch;
  float threshold = std::numeric_limits<float>::quiet_NaN();
  WorkerPool pool(workers_on(1, WorkerPool::Options{}.spin));
  return passes_of(pool, passes, 1, [&](std::int64_t, int) {
    kernels::top_k(scores.data(), count, k, positions.data(), values.data(), scratch, &threshold);
  });
}

/// One empty task per worker, handed over after an idle time and waited for. Workers that do not
/// spin sleep by then.
Seconds hand_off(int threads, bool workers_sleep, int passes) {
  check_range("hand_off", "passes", passes, 1, 1'000'000);
  const auto spin = workers_sleep ? std::chrono::microseconds(0) : WorkerPool::kDecodeSpin;
  WorkerPool pool(workers_on(threads, spin));
  TaskGroup group;
  group.assign([](void*, std::int64_t, int) {}, nullptr, pool.size());
  Seconds seconds;
  for (int pass = 0; pass < passes; ++pass) {
    const auto idle_until = Clock::now() + std::chrono::microseconds(workers_sleep ? 200 : 20);
    while (Clock::now() < idle_until) {
    }
    seconds.push_back(seconds_of([&] {
      pool.submit(group);
      pool.wait(group);
    }));
  }
  return seconds;
}

/// Seconds per step of a walk through `mebibytes`, in which each line says where the next one is.
Seconds walk_lines(std::int64_t mebibytes, int passes) {
  check_range("walk_lines", "mebibytes", mebibytes, 1, 1 << 16);
  check_range("walk_lines", "passes", passes, 1, 1000);
  constexpr std::size_t kLineBytes = 64;
  constexpr int kSteps = 50'000;
  HostBuffer buffer(static_cast<std::size_t>(mebibytes * kMiB));
  const std::size_t lines = buffer.size_bytes() / kLineBytes;
  // One cycle through all lines (Sattolo): no walk is short.
  std::vector<std::uint32_t> order(lines);
  for (std::size_t i = 0; i < lines; ++i) order[i] = static_cast<std::uint32_t>(i);
  Numbers random;
  for (std::size_t i = lines - 1; i > 0; --i) std::swap(order[i], order[random() % i]);
  for (std::size_t i = 0; i < lines; ++i) {
    std::memcpy(buffer.data() + i * kLineBytes, &order[i], sizeof(order[i]));
  }
  std::uint32_t at = 0;
  Seconds seconds;
  for (int pass = 0; pass < passes; ++pass) {
    seconds.push_back(seconds_of([&] {
                        for (int step = 0; step < kSteps; ++step) {
                          std::memcpy(&at, buffer.data() + at * kLineBytes, sizeof(at));
                        }
                      }) /
                      kSteps);
  }
  // `at` is read, or the walk would be left out.
  if (at >= lines) throw std::logic_error("the walk left its memory");
  return seconds;
}

}  // namespace

void register_measurements(py::module_& module) {
  using release = py::call_guard<py::gil_scoped_release>;
  module.def("measure_scan_keys",
             &scan_keys,
             py::arg("threads"),
             py::arg("mebibytes"),
             py::arg("queries"),
             py::arg("isa"),
             py::arg("passes"),
             release(),
             "Seconds of each pass of the logits kernel over bfloat16 keys of head_dim 128.");
  module.def("measure_gather",
             &gather,
             py::arg("threads"),
             py::arg("mebibytes"),
             py::arg("row_bytes"),
             py::arg("passes"),
             release(),
             "Bytes of a pass that gathers a twentieth of all rows, and the seconds of each pass.");
  module.def("measure_select",
             &select,
             py::arg("count"),
             py::arg("k"),
             py::arg("passes"),
             release(),
             "Seconds of each choice of the k largest of `count` scores, on one thread.");
  module.def("measure_hand_off",
             &hand_off,
             py::arg("threads"),
             py::arg("workers_sleep"),
             py::arg("passes"),
             release(),
             "Seconds of each hand-over of an empty task to every worker.");
  module.def("measure_walk_lines",
             &walk_lines,
             py::arg("mebibytes"),
             py::arg("passes"),
             release(),
             "Seconds per line of each walk through lines of memory in random order.");
}

}  // namespace hybridgen::bindings
