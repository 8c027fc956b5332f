// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <numeric>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

namespace {

constexpr float kLargest = 127.0F;

/// Largest magnitude, NaN if any is infinite or NaN. Bits order as magnitudes do, and a maximum of
/// integers vectorises.
float peak_of(const float* query, const float* spreads, std::int64_t count) {
  std::int32_t peak = 0;
  for (std::int64_t d = 0; d < count; ++d) {
    peak = std::max(peak, std::bit_cast<std::int32_t>(query[d] * spreads[d]) & 0x7fffffff);
  }
  return peak < 0x7f800000 ? std::bit_cast<float>(peak) : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace

void prepare_shadow_queries(const ShadowKeyView& keys,
                            const float* queries,
                            std::int64_t num_queries,
                            std::int8_t* rounded,
                            float* scales) {
  for (std::int64_t r = 0; r < num_queries; ++r) {
    const float* query = queries + r * keys.head_dim;
    std::int8_t* out = rounded + r * keys.padded_dim;
    const float peak = peak_of(query, keys.spreads, keys.head_dim);
    scales[r] = peak / kLargest;
    // Below the smallest normal number the inverse would be infinite; such a query is as good as 0.
    const bool is_usable = scales[r] >= std::numeric_limits<float>::min();
    const float inverse = is_usable ? kLargest / peak : 0.0F;
    for (std::int64_t d = 0; d < keys.head_dim; ++d) {
      // Truncation rounds to nearest once the number is positive.
      const float folded = is_usable ? query[d] * keys.spreads[d] * inverse : 0.0F;
      out[d] = static_cast<std::int8_t>(static_cast<int>(folded + (kLargest + 1.5F)) -
                                        static_cast<int>(kLargest + 1.0F));
    }
    for (std::int64_t d = keys.head_dim; d < keys.padded_dim; ++d) out[d] = 0;
  }
}

void prepare_stored_queries(const ShadowKeyView& keys,
                            const float* queries,
                            std::int64_t num_queries,
                            float* folded,
                            float* starts,
                            float* constants) {
  const float middle = keys.precision == ShadowPrecision::kInt8 ? 127.5F : 7.5F;
  constexpr std::int64_t kChains = 8;  // padded_dim is a multiple of it
  for (std::int64_t r = 0; r < num_queries; ++r) {
    const float* query = queries + r * keys.head_dim;
    float* out = folded + r * keys.padded_dim;
    std::array<float, kChains> sums{};
    std::array<float, kChains> constant{};
    for (std::int64_t d = 0; d < keys.padded_dim; d += kChains) {
      for (std::int64_t i = 0; i < kChains; ++i) {
        const bool is_padding = d + i >= keys.head_dim;
        const float element = is_padding ? 0.0F : query[d + i];
        out[d + i] = is_padding ? 0.0F : element * keys.spreads[d + i];
        sums[static_cast<std::size_t>(i)] += out[d + i];
        constant[static_cast<std::size_t>(i)] += is_padding ? 0.0F : element * keys.centres[d + i];
      }
    }
    starts[r] = -middle * std::accumulate(sums.begin(), sums.end(), 0.0F);
    constants[r] = std::accumulate(constant.begin(), constant.end(), 0.0F);
  }
}

}  // namespace hybridgen::kernels
