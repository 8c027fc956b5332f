// SPDX-License-Identifier: Apache-2.0
// Keys that lie on a disk, brought back layer by layer as a step does it, a layer ahead: against
// the device's own rate, by plain threads that read blocks of the same size with as many calls at a
// time, by turns. HYBRIDGEN_DISK_FOLDER says where; else the folder for temporary files.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "hybridgen/core/error.h"
#include "kvcache/kv_disk.h"
#include "memory/host_buffer.h"

namespace hybridgen::benchmarks {
namespace {

constexpr std::int64_t kLayers = 8;
constexpr std::int64_t kHeads = 8;
constexpr std::int64_t kTokens = 8192;
constexpr std::int64_t kRowBytes = 128;  // 64 dimensions of 16 bits
constexpr std::int64_t kBlocks = kTokens / kTierBlockTokens;
constexpr std::int64_t kReadBytes = kHeads * kTierBlockTokens * kRowBytes;  // a layer of a block
constexpr std::int64_t kAllBytes = kLayers * kBlocks * kReadBytes;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::string folder() {
  const char* named = std::getenv("HYBRIDGEN_DISK_FOLDER");
  return named != nullptr ? named : std::filesystem::temp_directory_path().string();
}

/// The device, as anybody would read it.
class PlainFile {
 public:
  explicit PlainFile(const std::string& in)
      : file_(::open(in.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | O_DIRECT, 0600)) {
    if (file_ < 0) throw DeviceError("[benchmark] no unnamed file past the page cache in " + in);
    HostBuffer block(static_cast<std::size_t>(kReadBytes));
    std::fill_n(block.data(), kReadBytes, std::byte{0x3c});
    for (std::int64_t at = 0; at < kAllBytes; at += kReadBytes) {
      if (::pwrite(file_, block.data(), kReadBytes, at) != kReadBytes) {
        throw DeviceError("[benchmark] the file could not be written");
      }
    }
  }
  PlainFile(const PlainFile&) = delete;
  PlainFile& operator=(const PlainFile&) = delete;
  ~PlainFile() { ::close(file_); }

  double read_s() {
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> is_go{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < DiskQueue::kDefaultDepth; ++i) {
      threads.emplace_back([&, i] {
        std::byte* const to = memory_.data() + i * kReadBytes;
        is_go.wait(false);
        for (std::int64_t at = 0; (at = next.fetch_add(kReadBytes)) < kAllBytes;) {
          if (::pread(file_, to, kReadBytes, at) != kReadBytes) std::abort();
        }
      });
    }
    const Clock::time_point begin = Clock::now();
    is_go = true;
    is_go.notify_all();
    for (std::thread& thread : threads) thread.join();
    return seconds_since(begin);
  }

 private:
  int file_;
  HostBuffer memory_{static_cast<std::size_t>(DiskQueue::kDefaultDepth * kReadBytes)};
};

/// Keys of a request, all of them on the disk.
class KeysOnDisk {
 public:
  explicit KeysOnDisk(const std::string& in) : file_(in, kAllBytes) {
    keys_.grow(kTokens, "benchmark");
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      for (std::int64_t g = 0; g < kHeads; ++g) {
        std::fill_n(keys_.head(layer, g), kTokens * kRowBytes, std::byte{0x3c});
      }
    }
    for (std::int64_t block = 0; block < kBlocks; ++block) {
      disk_.write(KvSide::kKeys, block);
      disk_.leave(KvSide::kKeys, block);
    }
  }

  double read_s() {
    const Clock::time_point begin = Clock::now();
    disk_.expect(0, KvSide::kKeys);
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      if (layer + 1 < kLayers) disk_.expect(layer + 1, KvSide::kKeys);
      disk_.bring(layer, KvSide::kKeys);
      disk_.release(layer);
    }
    return seconds_since(begin);
  }

 private:
  static KvMemoryShape shape() {
    return {
        .num_kv_heads = kHeads, .num_layers = kLayers, .capacity = kTokens, .row_bytes = kRowBytes};
  }
  TraceRecorder trace_;
  DiskFile file_;
  DiskQueue queue_{file_, trace_};
  KvMemory keys_{shape()};
  KvMemory values_{shape()};
  KvDisk disk_{{.file = &file_, .queue = &queue_}, keys_, values_};
};

void read_keys(benchmark::State& state) {
  std::optional<PlainFile> plain;
  std::optional<KeysOnDisk> keys;
  try {
    plain.emplace(folder());
    keys.emplace(folder());
  } catch (const Error& error) {
    state.SkipWithError(error.what());
    return;
  }
  std::vector<double> plain_s;
  std::vector<double> keys_s;
  for (auto _ : state) {
    plain_s.push_back(plain->read_s());
    keys_s.push_back(keys->read_s());
    state.SetIterationTime(keys_s.back());
  }
  const auto median = [](std::vector<double> times) {
    std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
    return times[times.size() / 2];
  };
  state.counters["GB/s"] = static_cast<double>(kAllBytes) / median(keys_s) * 1e-9;
  state.counters["device_GBps"] = static_cast<double>(kAllBytes) / median(plain_s) * 1e-9;
  state.counters["share"] = median(plain_s) / median(keys_s);
}

BENCHMARK(read_keys)
    ->Name("disk/read_keys")
    ->UseManualTime()
    ->Iterations(15)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace hybridgen::benchmarks
