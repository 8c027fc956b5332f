// SPDX-License-Identifier: Apache-2.0
#include "kvcache/key_blocks.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu_kernels.h"

namespace hybridgen {
namespace {

/// rows[t][d] = block[d][place + t], rows contiguous. Elements are moved as bits.
template <std::size_t kBytes>
void read_key_block(const std::byte* block,
                    std::int64_t place,
                    std::byte* rows,
                    std::int64_t num_rows,
                    std::int64_t head_dim) {
  constexpr std::int64_t kElement = kBytes;
  for (std::int64_t t = 0; t < num_rows; ++t) {
    const std::byte* from = block + (place + t) * kElement;
    std::byte* to = rows + t * head_dim * kElement;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      std::memcpy(to + d * kElement, from + d * kKeyBlockTokens * kElement, kBytes);
    }
  }
}

}  // namespace

void read_blocked_keys(const BlockedKeyView& keys, TokenRange tokens, void* out) {
  const auto element = static_cast<std::int64_t>(size_of(keys.dtype));
  const std::int64_t row_bytes = keys.head_dim * element;
  auto* const read_block = element == 4 ? &read_key_block<4> : &read_key_block<2>;
  auto* to = static_cast<std::byte*>(out);
  for (std::int64_t t = tokens.begin; t < tokens.end;) {
    const std::int64_t place = t % kKeyBlockTokens;
    const std::int64_t rows = std::min(kKeyBlockTokens - place, tokens.end - t);
    read_block(static_cast<const std::byte*>(keys.data) + (t - place) * row_bytes,
               place,
               to,
               rows,
               keys.head_dim);
    to += rows * row_bytes;
    t += rows;
  }
}

BlockedKeyView restore_blocks(const HostKvStore& store,
                              std::int64_t layer,
                              std::int64_t kv_head,
                              TokenRange tokens,
                              std::vector<float>& memory) {
  const std::int64_t dim = store.shape().head_dim;
  const std::int64_t first = tokens.begin / kKeyBlockTokens * kKeyBlockTokens;
  const std::int64_t end = (tokens.end + kKeyBlockTokens - 1) / kKeyBlockTokens * kKeyBlockTokens;
  std::vector<float> rows(static_cast<std::size_t>(tokens.size() * dim));
  const kernels::CpuKernels& kernels = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  for (std::int64_t begin = tokens.begin; begin < tokens.end;) {
    const ShadowKeyView keys = store.key_codes(layer, kv_head, begin);
    const std::int64_t last = std::min(keys.first_token + keys.capacity, tokens.end);
    kernels.stored_key_rows({.keys = keys,
                             .dtype = DType::kFloat32,
                             .first = begin,
                             .count = last - begin,
                             .out = rows.data() + (begin - tokens.begin) * dim});
    begin = last;
  }
  if (const std::int64_t num_exact = std::min(tokens.end, kExactTokens) - tokens.begin;
      num_exact > 0) {
    const RowView exact = store.exact_keys(layer, kv_head);
    const auto row_bytes = dim * static_cast<std::int64_t>(size_of(exact.dtype));
    kernels.scale_to_float(exact.dtype,
                           static_cast<const std::byte*>(exact.data) + tokens.begin * row_bytes,
                           1.0F,
                           rows.data(),
                           num_exact * dim);
  }
  memory.assign(static_cast<std::size_t>((end - first) * dim), 0.0F);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const float* row = rows.data() + (t - tokens.begin) * dim;
    float* column =
        memory.data() + (t - first) / kKeyBlockTokens * dim * kKeyBlockTokens + t % kKeyBlockTokens;
    for (std::int64_t d = 0; d < dim; ++d) column[d * kKeyBlockTokens] = row[d];
  }
  return {memory.data(), DType::kFloat32, dim, end, first};
}

}  // namespace hybridgen
