// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu_kernels.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace hybridgen::kernels {

namespace {

// Chosen rows lie anywhere in memory, so the hardware cannot guess the next one.
constexpr std::int64_t kRowsAhead = 16;

/// Whole vectors at aligned places pass by the cache; anything else is copied as usual.
void copy_past_the_cache(std::byte* to, const std::byte* from, std::int64_t bytes) {
#if defined(__x86_64__)
  constexpr std::int64_t kVector = 16;
  if (bytes % kVector == 0 && std::bit_cast<std::uintptr_t>(to) % kVector == 0) {
    for (std::int64_t at = 0; at < bytes; at += kVector) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
    }
    return;
  }
#endif
  std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

/// Stores that passed by the cache are not ordered by the release that publishes a result.
void finish_copies([[maybe_unused]] RowReader reader) {
#if defined(__x86_64__)
  if (reader == RowReader::kDevice) _mm_sfence();
#endif
}

void copy_to(RowReader reader, std::byte* to, const std::byte* from, std::int64_t bytes) {
  if (reader == RowReader::kDevice) {
    copy_past_the_cache(to, from, bytes);
  } else {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
}

template <typename T>
void gather_keys_of(const BlockedKeyView& keys,
                    const std::int32_t* positions,
                    std::int64_t count,
                    void* out) {
  const T* data = static_cast<const T*>(keys.data);
  T* row = static_cast<T*>(out);
  for (std::int64_t j = 0; j < count; ++j, row += keys.head_dim) {
    const std::int64_t position = positions[j];
    const T* column = data + position / kKeyBlockTokens * keys.head_dim * kKeyBlockTokens +
                      position % kKeyBlockTokens;
    for (std::int64_t d = 0; d < keys.head_dim; ++d) row[d] = column[d * kKeyBlockTokens];
  }
}

}  // namespace

void chosen_row_logits(const CpuKernels& kernels,
                       const RowLogitsArgs& args,
                       const std::int32_t* positions,
                       std::int64_t count) {
  RowLogitsArgs chosen = args;
  chosen.positions = positions;
  chosen.count = count;
  kernels.row_logits(chosen);
}

void gather_rows(const void* rows,
                 std::int64_t row_bytes,
                 const std::int32_t* positions,
                 std::int64_t count,
                 void* out,
                 RowReader reader) {
  const std::byte* from = static_cast<const std::byte*>(rows);
  std::byte* to = static_cast<std::byte*>(out);
  std::int64_t fetched = 0;  // rows before it are in the cache or on their way
  for (std::int64_t j = 0; j < count;) {
    std::int64_t run = 1;
    while (j + run < count && positions[j + run] == positions[j] + run) ++run;
    for (; fetched < std::min(j + run + kRowsAhead, count); ++fetched) {
      if (fetched < j + run) continue;  // copied now; the hardware knows how to follow a run
      const std::byte* ahead = from + positions[fetched] * row_bytes;
      for (std::int64_t line = 0; line < row_bytes; line += 64) __builtin_prefetch(ahead + line);
    }
    copy_to(reader, to + j * row_bytes, from + positions[j] * row_bytes, run * row_bytes);
    j += run;
  }
  finish_copies(reader);
}

void copy_rows(const void* rows, std::int64_t bytes, void* out, RowReader reader) {
  copy_to(reader, static_cast<std::byte*>(out), static_cast<const std::byte*>(rows), bytes);
  finish_copies(reader);
}

void gather_blocked_keys(const BlockedKeyView& keys,
                         const std::int32_t* positions,
                         std::int64_t count,
                         void* out) {
  if (size_of(keys.dtype) == 4) {
    gather_keys_of<std::uint32_t>(keys, positions, count, out);
  } else {
    gather_keys_of<std::uint16_t>(keys, positions, count, out);
  }
}

std::int64_t merge_positions(const std::int32_t* lists,
                             std::int64_t num_lists,
                             std::int64_t count,
                             std::int32_t* merged,
                             std::int32_t* index,
                             std::vector<std::uint64_t>& scratch) {
  if (num_lists == 0 || count == 0) return 0;
  std::int32_t least = lists[0];
  std::int32_t most = lists[count - 1];
  for (std::int64_t l = 1; l < num_lists; ++l) {
    least = std::min(least, lists[l * count]);
    most = std::max(most, lists[(l + 1) * count - 1]);
  }
  // One bit per position; a merge of sorted lists would mispredict at every second element.
  constexpr std::int32_t kBits = 64;
  const std::int32_t base = least / kBits;
  const std::int32_t last = most / kBits;
  const auto num_words = static_cast<std::size_t>(last - base) + 1;
  if (scratch.size() < 2 * num_words) scratch.resize(2 * num_words);
  std::uint64_t* const words = scratch.data();
  std::uint64_t* const ranks = words + num_words;  ///< bits set before each word
  std::fill_n(words, num_words, 0U);
  const std::int64_t total = num_lists * count;
  for (std::int64_t i = 0; i < total; ++i) {
    words[lists[i] / kBits - base] |= std::uint64_t{1} << (lists[i] % kBits);
  }
  std::int64_t size = 0;
  for (std::size_t w = 0; w < num_words; ++w) {
    ranks[w] = static_cast<std::uint64_t>(size);
    for (std::uint64_t bits = words[w]; bits != 0; bits &= bits - 1) {
      merged[size++] = (base + static_cast<std::int32_t>(w)) * kBits +
                       static_cast<std::int32_t>(std::countr_zero(bits));
    }
  }
  for (std::int64_t i = 0; i < total; ++i) {
    const std::int32_t w = lists[i] / kBits - base;
    const std::uint64_t before = (std::uint64_t{1} << (lists[i] % kBits)) - 1;
    index[i] = static_cast<std::int32_t>(ranks[w]) + std::popcount(words[w] & before);
  }
  return size;
}

std::int64_t union_of(std::span<const std::int32_t> positions,
                      std::int64_t num_tokens,
                      std::int32_t* merged,
                      std::vector<std::uint64_t>& scratch) {
  constexpr std::int32_t kBits = 64;
  scratch.assign(static_cast<std::size_t>(num_tokens / kBits + 1), 0);
  for (const std::int32_t position : positions) {
    scratch[static_cast<std::size_t>(position / kBits)] |= std::uint64_t{1} << (position % kBits);
  }
  std::int64_t count = 0;
  for (std::size_t word = 0; word < scratch.size(); ++word) {
    for (std::uint64_t left = scratch[word]; left != 0; left &= left - 1) {
      merged[count++] = static_cast<std::int32_t>(word) * kBits + std::countr_zero(left);
    }
  }
  return count;
}

}  // namespace hybridgen::kernels
