// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstring>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

namespace {

// Chosen rows lie anywhere in memory, so the hardware cannot guess the next one.
constexpr std::int64_t kRowsAhead = 16;

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
                 void* out) {
  const std::byte* from = static_cast<const std::byte*>(rows);
  std::byte* to = static_cast<std::byte*>(out);
  for (std::int64_t j = 0; j < count; ++j) {
    if (j + kRowsAhead < count) {
      const std::byte* ahead = from + positions[j + kRowsAhead] * row_bytes;
      for (std::int64_t line = 0; line < row_bytes; line += 64) __builtin_prefetch(ahead + line);
    }
    std::memcpy(
        to + j * row_bytes, from + positions[j] * row_bytes, static_cast<std::size_t>(row_bytes));
  }
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
                             std::int32_t* index) {
  std::int64_t size = 0;
  for (std::int64_t l = 0; l < num_lists; ++l) {
    const std::int32_t* list = lists + l * count;
    std::int64_t missing = 0;
    for (std::int64_t j = 0, m = 0; j < count; ++j) {
      while (m < size && merged[m] < list[j]) ++m;
      missing += m == size || merged[m] != list[j];
    }
    // Merged from the back, so that nothing is overwritten before it has moved.
    std::int64_t from_merged = size - 1;
    std::int64_t from_list = count - 1;
    std::int64_t to = size + missing - 1;
    while (from_list >= 0 && to > from_merged) {
      if (from_merged >= 0 && merged[from_merged] >= list[from_list]) {
        from_list -= merged[from_merged] == list[from_list];
        merged[to--] = merged[from_merged--];
      } else {
        merged[to--] = list[from_list--];
      }
    }
    size += missing;
  }
  for (std::int64_t l = 0; l < num_lists; ++l) {
    std::int64_t m = 0;
    for (std::int64_t j = l * count; j < (l + 1) * count; ++j) {
      while (merged[m] != lists[j]) ++m;
      index[j] = static_cast<std::int32_t>(m);
    }
  }
  return size;
}

}  // namespace hybridgen::kernels
