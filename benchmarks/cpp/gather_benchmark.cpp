// SPDX-License-Identifier: Apache-2.0
// Value rows of chosen tokens into staging: rows of 256 bytes out of 32,768, for many KV heads, so
// that none comes from a cache. "cpu" reads them at once, as attention on this machine does;
// "device" leaves them to a copy engine. `share` counts the bytes read once.
#include <cstdint>
#include <string>
#include <vector>

#include "benchmark_support.h"

namespace hybridgen::benchmarks {
namespace {

using kernels::RowReader;

constexpr std::int64_t kRowBytes = 256;
constexpr std::int64_t kTokens = 32768;
constexpr std::int64_t kHeads = 64;

/// `count` ascending positions: every one by itself, or blocks of 32 as block digests choose them.
std::vector<std::int32_t> choose(std::int64_t count, bool in_blocks) {
  std::vector<std::int32_t> positions;
  const std::int64_t run = in_blocks ? 32 : 1;
  const std::int64_t stride = kTokens / (count / run);
  std::uint32_t random = 1;
  for (std::int64_t at = 0; std::ssize(positions) < count; at += stride) {
    random = random * 1664525U + 1013904223U;
    const std::int64_t first = at + random % static_cast<std::uint32_t>(stride - run + 1);
    for (std::int64_t i = 0; i < run; ++i) {
      positions.push_back(static_cast<std::int32_t>(first + i));
    }
  }
  return positions;
}

void gather(benchmark::State& state, std::int64_t count, bool in_blocks, RowReader reader) {
  static HostBuffer values = [] {
    HostBuffer made(kHeads * kTokens * kRowBytes);
    std::fill_n(made.data(), made.size_bytes(), std::byte{1});
    return made;
  }();
  const std::vector<std::int32_t> positions = choose(count, in_blocks);
  const std::int64_t out_bytes = count * kRowBytes;
  HostBuffer staging(static_cast<std::size_t>(kHeads * out_bytes));
  share_of_ceiling(state, kHeads * out_bytes, [&] {
    return workers().run(kHeads, [&](std::int64_t head, int) {
      std::byte* out = staging.data() + head * out_bytes;
      const std::byte* rows = values.data() + head * kTokens * kRowBytes;
      kernels::gather_rows(rows, kRowBytes, positions.data(), count, out, reader);
      if (reader == RowReader::kCpu) benchmark::DoNotOptimize(kernels::read_all(out, out_bytes));
    });
  });
}

const bool kRegistered = [] {
  for (const std::int64_t count : {320, 1632, 8192}) {
    for (const bool in_blocks : {false, true}) {
      for (const RowReader reader : {RowReader::kCpu, RowReader::kDevice}) {
        const std::string name = "gather/" + std::to_string(count) +
                                 (in_blocks ? "/blocks" : "/rows") +
                                 (reader == RowReader::kCpu ? "/cpu" : "/device");
        benchmark::RegisterBenchmark(name.c_str(),
                                     [count, in_blocks, reader](benchmark::State& state) {
                                       gather(state, count, in_blocks, reader);
                                     })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace hybridgen::benchmarks
