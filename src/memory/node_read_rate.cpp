// SPDX-License-Identifier: Apache-2.0
#include "memory/node_read_rate.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <system_error>
#include <thread>

#include "hybridgen/core/error.h"
#include "memory/host_buffer.h"
#include "memory/numa.h"
#include "runtime/cpus.h"
#include "runtime/process.h"

#if defined(HYBRIDGEN_HAS_NUMA)
#include <numaif.h>
#endif

namespace hybridgen {

namespace {

// More than what caches keep of a buffer that is read from end to end, and no more of the node
// than a quarter of what is free there.
constexpr std::int64_t kMostBytes = std::int64_t{256} << 20;
constexpr std::int64_t kFewestBytes = std::int64_t{16} << 20;
constexpr std::size_t kMostThreads = 8;
constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kSampledPages = 64;
constexpr int kPasses = 4;

/// Whether all of some pages, spread over touched memory, lie on the node.
bool lies_on(std::span<std::byte> memory, int node) {
#if defined(HYBRIDGEN_HAS_NUMA)
  std::array<void*, kSampledPages> pages{};
  std::array<int, kSampledPages> nodes{};
  const std::size_t step = memory.size() / kSampledPages / kPageBytes * kPageBytes;
  for (std::size_t i = 0; i < kSampledPages; ++i) pages[i] = memory.data() + i * step;
  return ::move_pages(0, kSampledPages, pages.data(), nullptr, nodes.data(), 0) == 0 &&
         std::ranges::count(nodes, node) == static_cast<std::ptrdiff_t>(kSampledPages);
#else
  static_cast<void>(memory);
  static_cast<void>(node);
  return false;
#endif
}

std::uint64_t sum_of(std::span<const std::byte> memory) {
  constexpr std::size_t kLanes = 8;  // independent sums, so that additions do not wait
  std::array<std::uint64_t, kLanes> sums{};
  for (std::size_t at = 0; at + sizeof(sums) <= memory.size(); at += sizeof(sums)) {
    std::array<std::uint64_t, kLanes> line{};
    std::memcpy(line.data(), memory.data() + at, sizeof(line));
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += line[lane];
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t lane : sums) sum += lane;
  return sum;
}

/// Runs `work` on one equal part of the memory per thread. Whether each had its CPU.
bool in_parts(std::span<std::byte> memory,
              const std::vector<int>& cpus,
              const std::function<void(std::span<std::byte>)>& work) {
  const std::size_t threads = std::min(kMostThreads, cpus.size());
  const std::size_t part = memory.size() / threads / kPageBytes * kPageBytes;
  std::atomic<bool> all_pinned = true;
  std::vector<std::jthread> running;
  running.reserve(threads);
  for (std::size_t i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      try {
        pin_current_thread({cpus[i]});
      } catch (const DeviceError&) {
        all_pinned = false;
      }
      work(memory.subspan(i * part, part));
    });
  }
  running.clear();  // joins them
  return all_pinned;
}

}  // namespace

double node_read_rate(int node, const std::vector<int>& cpus) {
  if (!has_numa() || cpus.empty()) return 0.0;
  const std::int64_t bytes =
      std::min({kMostBytes, find_numa_node(node).free_bytes / 4, available_node_bytes(-1) / 4});
  if (bytes < kFewestBytes) return 0.0;
  try {
    check_threads_can_start(static_cast<std::int64_t>(kMostThreads), "node_read_rate");
    HostBuffer buffer(static_cast<std::size_t>(bytes));
    const std::span<std::byte> memory(buffer.data(), buffer.size_bytes());
    prefer_node(buffer.data(), buffer.size_bytes(), node);
    const bool all_pinned = in_parts(
        memory, cpus, [](std::span<std::byte> part) { std::memset(part.data(), 1, part.size()); });
    if (!all_pinned || !lies_on(memory, node)) return 0.0;

    std::array<double, kPasses> seconds{};
    for (double& pass : seconds) {
      const auto begin = std::chrono::steady_clock::now();
      static_cast<void>(in_parts(memory, cpus, [](std::span<std::byte> part) {
        [[maybe_unused]] volatile std::uint64_t read = sum_of(part);  // not to be left out
      }));
      pass = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    std::ranges::sort(seconds.begin() + 1, seconds.end());
    return static_cast<double>(bytes) / seconds[1 + (kPasses - 1) / 2];
  } catch (const Error&) {
    return 0.0;
  } catch (const std::system_error&) {
    return 0.0;
  }
}

}  // namespace hybridgen
