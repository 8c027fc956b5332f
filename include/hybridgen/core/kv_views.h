// SPDX-License-Identifier: Apache-2.0
// How the host's keys and values lie in memory, as kernels see them: views of what a store owns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hybridgen/core/types.h"

namespace hybridgen {

inline constexpr std::int64_t kKeyBlockTokens = 32;

enum class KeyLayout : std::uint8_t { kBlocked, kRows };

/// How keys, or values, lie in host memory: as the model computes them, or in 8 or 4 bits.
enum class KvPrecision : std::uint8_t { kFull, kInt8, kInt4 };

/// Keys of one (layer, KV head): element (position t, dimension d) lies at
/// data + ((t / 32) * D + d) * 32 + t % 32 elements, with t counted from `first_token`. Non-owning.
struct BlockedKeyView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t head_dim = 0;
  std::int64_t capacity = 0;     ///< tokens, a multiple of 32
  std::int64_t first_token = 0;  ///< of the first block; 0 for kernels
};

/// Rows [capacity, D] of one (layer, KV head), contiguous. Non-owning.
struct RowView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t head_dim = 0;
  std::int64_t capacity = 0;
};

/// Source rows: element (g, t, d) at data + g * head_stride + t * token_stride + d, in elements.
struct KvRowsView {
  const void* data = nullptr;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
};

enum class ShadowPrecision : std::uint8_t { kInt8, kInt4 };

/// Sums over more dimensions could not be held by a float32 exactly.
inline constexpr std::int64_t kMaxShadowHeadDim = 512;

/// Shadow of the keys of one (layer, KV head), in blocks of 32 tokens. Non-owning. In a block lie
///   kInt8  [padded_dim / 4][32 tokens][4 dimensions] bytes
///   kInt4  [padded_dim / 8][32 tokens][4] bytes: dimension i in the low, i + 4 in the high half
/// and then the bfloat16 steps of the 32 tokens. Code u stands for the value 2 u - (2^bits - 1).
struct ShadowKeyView {
  const std::byte* blocks = nullptr;
  const float* centres = nullptr;  ///< [head_dim]
  const float* spreads = nullptr;  ///< [head_dim], each > 0
  ShadowPrecision precision = ShadowPrecision::kInt8;
  std::int64_t head_dim = 0;
  std::int64_t padded_dim = 0;   ///< head_dim rounded up to a multiple of 8
  std::int64_t block_bytes = 0;  ///< a multiple of 64
  std::int64_t capacity = 0;     ///< tokens, a multiple of 32
  std::int64_t first_token = 0;  ///< of the first block, a multiple of 32
};

/// Keys in 8 or 4 bits have centres and spreads of their own in every so many tokens: rotary
/// embeddings move the centres with the position.
inline constexpr std::int64_t kKeySegmentTokens = 1024;

/// Tokens that lie as the model computes them in every precision. A text's first ones take a large
/// part of the attention, and their rows are unlike all others.
inline constexpr std::int64_t kExactTokens = 4;

/// Dimensions of a row that share a minimum and a scale; the last group of a row may have fewer.
inline constexpr std::int64_t kQuantisedGroup = 64;

/// Bytes of the codes of a group of `dims` dimensions, and of a row of `head_dim`, in a precision
/// that is not kFull.
constexpr std::int64_t code_bytes(KvPrecision precision, std::int64_t dims) {
  return precision == KvPrecision::kInt8 ? dims : (dims + 1) / 2;
}
constexpr std::int64_t quantised_row_bytes(KvPrecision precision, std::int64_t head_dim) {
  const std::int64_t groups = (head_dim + kQuantisedGroup - 1) / kQuantisedGroup;
  const std::int64_t whole = head_dim / kQuantisedGroup;
  return whole * code_bytes(precision, kQuantisedGroup) +
         code_bytes(precision, head_dim % kQuantisedGroup) + groups * 4;
}

/// Rows of one (layer, KV head), each for itself: element d of a group is minimum + scale * code.
/// In a row lie the codes of its groups, then minimum and scale of each as bfloat16. Of a group of
/// n dimensions lie
///   kInt8  n bytes
///   kInt4  ceil(n / 2) bytes: dimension i in the low, i + ceil(n / 2) in the high half
/// Non-owning.
struct QuantisedRowView {
  const std::byte* rows = nullptr;
  KvPrecision precision = KvPrecision::kInt8;
  DType dtype = DType::kFloat32;  ///< of what was written
  std::int64_t head_dim = 0;
  std::int64_t row_bytes = 0;
  std::int64_t capacity = 0;
  const void* exact = nullptr;  ///< rows [num_exact, D] of tokens 0 to num_exact, read instead
  std::int64_t num_exact = 0;
};

}  // namespace hybridgen
