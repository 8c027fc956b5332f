// SPDX-License-Identifier: Apache-2.0
// How many blocks and threads row-wise kernels are launched with. Plain numbers, so that tests hold
// every shape against a device's limits without launching it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hybridgen::kernels {

inline constexpr std::int64_t kMostBlocksX = 2147483647;
inline constexpr std::int64_t kMostBlocksY = 65535;

struct LaunchShape {
  std::int64_t blocks_x = 1;
  std::int64_t blocks_y = 1;
  std::int64_t threads = 32;
};

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a - 1) / b + 1; }

/// Whole warps for `packs` of work, at most `most` threads.
constexpr std::int64_t threads_for(std::int64_t packs, std::int64_t most) {
  return std::min(divide_up(packs, 32) * 32, most);
}

/// A block per row of so many packs, which its threads share.
inline constexpr std::int64_t kMostNormThreads = 512;
constexpr LaunchShape norm_shape(std::int64_t rows, std::int64_t packs) {
  return {.blocks_x = std::min(rows, kMostBlocksX),
          .threads = threads_for(packs, kMostNormThreads)};
}

/// A thread per pack: rows along y, what does not fit is looped over.
constexpr LaunchShape elementwise_shape(std::int64_t rows, std::int64_t packs) {
  const std::int64_t threads = threads_for(packs, 128);
  return {.blocks_x = std::min(divide_up(packs, threads), kMostBlocksX),
          .blocks_y = std::min(rows, kMostBlocksY),
          .threads = threads};
}

/// Lanes of a warp that share a head: a power of two, enough for `packs`, at most a warp.
constexpr std::int64_t lanes_of_head(std::int64_t packs) {
  std::int64_t lanes = 1;
  while (lanes < packs && lanes < 32) lanes *= 2;
  return lanes;
}
constexpr LaunchShape heads_shape(std::int64_t heads, std::int64_t lanes) {
  constexpr std::int64_t kThreads = 128;
  return {.blocks_x = std::min(divide_up(heads, kThreads / lanes), kMostBlocksX),
          .threads = kThreads};
}

}  // namespace hybridgen::kernels
