// SPDX-License-Identifier: Apache-2.0
// Value types shared by every layer. No behaviour beyond names, sizes and comparisons.
//
// Shape letters used in all comments of the project:
//   B batch rows, T tokens, L layers, H query heads, G key/value heads, R = H / G query heads per
//   key/value head, D head dimension, M model (hidden) dimension, S selected tokens,
//   n tokens of a request, n_c of them offloaded to the host, n_g = n - n_c resident on the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hybridgen {

enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/// "float32", "float16" or "bfloat16".
std::string_view name_of(DType dtype);

/// Inverse of name_of. Throws ConfigError naming the allowed values.
DType dtype_from_name(std::string_view name);

/// Half-open range of token positions [begin, end).
struct TokenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  constexpr std::int64_t size() const { return end - begin; }
  constexpr bool empty() const { return end <= begin; }
  constexpr bool contains(std::int64_t position) const {
    return position >= begin && position < end;
  }
  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

/// When offloaded tokens are chosen (paper §4.3): after their logits are known, or before.
enum class SelectionStrategy : std::uint8_t { kPostQkt, kPreQkt };
std::string_view name_of(SelectionStrategy strategy);

/// Which query the host scores with. Exact: the layer's own query. Speculative: a query guessed
/// from the input of the layer before; its logits enter the softmax. Rescore: guessed for the
/// selection only; the device recomputes the logits of the chosen tokens from their shipped keys.
enum class QueryMode : std::uint8_t { kExact, kSpeculative, kRescore };
std::string_view name_of(QueryMode mode);

}  // namespace hybridgen
