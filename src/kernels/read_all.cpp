// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstddef>
#include <cstring>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

namespace {

template <int Locality>
std::uint64_t read_by(const void* data, std::int64_t bytes) {
  // Four cache lines a turn into independent sums: the loop waits for memory and nothing else.
  constexpr std::int64_t kStep = 256;
  constexpr std::int64_t kPrefetchBytes = 8192;
  using Line = std::array<std::uint64_t, 8>;
  std::array<Line, 4> sums{};
  const char* from = static_cast<const char*>(data);
  std::int64_t at = 0;
  for (; at + kStep <= bytes; at += kStep) {
    for (std::size_t line = 0; line < 4; ++line) {
      const char* address = from + at + line * 64;
      __builtin_prefetch(address + kPrefetchBytes, 0, Locality);
      Line words;
      std::memcpy(words.data(), address, sizeof(words));
      for (std::size_t i = 0; i < words.size(); ++i) sums[line][i] += words[i];
    }
  }
  std::uint64_t total = 0;
  for (; at < bytes; ++at) total += static_cast<unsigned char>(from[at]);
  for (const Line& line : sums) {
    for (const std::uint64_t sum : line) total += sum;
  }
  return total;
}

}  // namespace

std::uint64_t read_all(const void* data, std::int64_t bytes) {
  switch (scan_prefetch()) {
    case Prefetch::kL1:
      return read_by<3>(data, bytes);
    case Prefetch::kL2:
      return read_by<2>(data, bytes);
    case Prefetch::kL3:
      return read_by<1>(data, bytes);
  }
  return 0;
}

}  // namespace hybridgen::kernels
