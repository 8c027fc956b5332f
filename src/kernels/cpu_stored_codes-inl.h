// SPDX-License-Identifier: Apache-2.0
// Keys and values that lie in 8 or 4 bits: exact logits of what the codes hold, weighted sums of
// values, and rows as the model computes them. A code becomes a float32 in a register and its scale
// meets the query or the weight, so that a code costs a conversion and one multiply-add per query.
// Every logit and every sum is one chain of multiply-adds in a fixed order.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kStoredAhead = 4096;  ///< bytes that a scan fetches ahead
constexpr std::int64_t kStoredRowsAhead = 8;

// ---- Codes as numbers --------------------------------------------------------------------------

// `Codes`: one 32-bit lane per float32 lane.
#if HYBRIDGEN_ISA_LEVEL == 2

using Codes = __m512i;

HYBRIDGEN_INLINE Codes load_codes(const void* p) { return _mm512_loadu_si512(p); }
/// One byte for each lane.
HYBRIDGEN_INLINE Codes load_bytes(const std::uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <int Shift, int Mask>
HYBRIDGEN_INLINE Vector field(Codes codes) {
  return _mm512_cvtepi32_ps(
      _mm512_and_si512(_mm512_srli_epi32(codes, Shift), _mm512_set1_epi32(Mask)));
}

#elif HYBRIDGEN_ISA_LEVEL == 1

using Codes = __m256i;

HYBRIDGEN_INLINE Codes load_codes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
HYBRIDGEN_INLINE Codes load_bytes(const std::uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
template <int Shift, int Mask>
HYBRIDGEN_INLINE Vector field(Codes codes) {
  return _mm256_cvtepi32_ps(
      _mm256_and_si256(_mm256_srli_epi32(codes, Shift), _mm256_set1_epi32(Mask)));
}

#else

struct Codes {
  std::uint32_t lanes[kLanes];
};

inline Codes load_codes(const void* p) { return read_as<Codes>(p); }
inline Codes load_bytes(const std::uint8_t* p) {
  Codes codes;
  for (std::int64_t i = 0; i < kLanes; ++i) codes.lanes[i] = p[i];
  return codes;
}
template <int Shift, int Mask>
Vector field(Codes codes) {
  float lanes[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) {
    lanes[i] = static_cast<float>((codes.lanes[i] >> Shift) & Mask);
  }
  return load(lanes);
}

#endif

// ---- Keys: lanes are tokens ---------------------------------------------------------------------

constexpr std::int64_t kStoredGroup = 4;  ///< dimensions of a token that lie together
constexpr std::int64_t kStoredGroupBytes = kStoredGroup * kKeyBlockTokens;
constexpr int kStoredQueries = kAccumulators >= 24 ? 8 : 4;  ///< that share a load of codes

/// What one pass over a block needs, for some of the queries.
struct StoredPass {
  const std::uint8_t* block = nullptr;
  const BFloat16* steps = nullptr;  ///< [32]
  std::int64_t padded_dim = 0;
  const float* queries = nullptr;    ///< [Queries, padded_dim]
  const float* starts = nullptr;     ///< [Queries] -(2^bits - 1) / 2 times the queries' sums
  const float* constants = nullptr;  ///< [Queries]
  float* logits = nullptr;           ///< 32 per query
  std::int64_t logits_stride = 0;
  bool is_scan = false;  ///< the block after it is read next
};

template <int Queries, int Vectors>
HYBRIDGEN_INLINE void add_dimension(const StoredPass& pass,
                                    std::int64_t d,
                                    const Vector* codes,
                                    Vector (&acc)[extent(Queries)][extent(Vectors)]) {
#pragma GCC unroll 8
  for (int q = 0; q < Queries; ++q) {
    const Vector query = splat(pass.queries[q * pass.padded_dim + d]);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) acc[q][v] = fma(query, codes[v], acc[q][v]);
  }
}

template <int Queries, int Vectors, int Shift, int Mask>
HYBRIDGEN_INLINE void add_field(const StoredPass& pass,
                                std::int64_t d,
                                const Codes* codes,
                                Vector (&acc)[extent(Queries)][extent(Vectors)]) {
  Vector numbers[extent(Vectors)];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) numbers[v] = field<Shift, Mask>(codes[v]);
  add_dimension<Queries, Vectors>(pass, d, numbers, acc);
}

template <int Bits, int Queries>
HYBRIDGEN_INLINE void stored_block(const StoredPass& pass) {
  // Few queries take more tokens, so that chains enough are under way.
  constexpr int kBlockVectors = static_cast<int>(kKeyBlockTokens / kLanes);
  constexpr int kVectors = Queries <= 2 && kBlockVectors > 2 ? 4 : 2;
  constexpr std::int64_t kTokens = kVectors * kLanes;
  constexpr std::int64_t kDims = Bits == 4 ? 2 * kStoredGroup : kStoredGroup;
  constexpr int kMask = (1 << Bits) - 1;
  for (std::int64_t token = 0; token < kKeyBlockTokens; token += kTokens) {
    Vector acc[extent(Queries)][extent(kVectors)];
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[q][v] = splat(pass.starts[q]);
    }
    const std::uint8_t* row = pass.block + token * kStoredGroup;
    for (std::int64_t d = 0; d < pass.padded_dim; d += kDims, row += kStoredGroupBytes) {
      if (pass.is_scan && token == 0) {
        prefetch(row + kStoredAhead);
        prefetch(row + kStoredAhead + 64);
      }
      Codes codes[extent(kVectors)];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) codes[v] = load_codes(row + v * kLanes * kStoredGroup);
      add_field<Queries, kVectors, 0, kMask>(pass, d, codes, acc);
      add_field<Queries, kVectors, 8, kMask>(pass, d + 1, codes, acc);
      add_field<Queries, kVectors, 16, kMask>(pass, d + 2, codes, acc);
      add_field<Queries, kVectors, 24, kMask>(pass, d + 3, codes, acc);
      if constexpr (Bits == 4) {
        add_field<Queries, kVectors, 4, kMask>(pass, d + 4, codes, acc);
        add_field<Queries, kVectors, 12, kMask>(pass, d + 5, codes, acc);
        add_field<Queries, kVectors, 20, kMask>(pass, d + 6, codes, acc);
        add_field<Queries, kVectors, 28, kMask>(pass, d + 7, codes, acc);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t first = token + v * kLanes;
      const Vector step = load(pass.steps + first);
      const Vector twice = add(step, step);
#pragma GCC unroll 8
      for (int q = 0; q < Queries; ++q) {
        store(pass.logits + q * pass.logits_stride + first,
              fma(acc[q][v], twice, splat(pass.constants[q])));
      }
    }
  }
}

constexpr std::int64_t kStepBytes = static_cast<std::int64_t>(sizeof(BFloat16));

/// A block of codes and steps that chosen tokens are put together in.
struct ChosenBlock {
  alignas(64) std::uint8_t codes[extent(kMaxShadowHeadDim * kKeyBlockTokens)];
  BFloat16 steps[extent(kKeyBlockTokens)];
};

/// Puts `count` <= 32 tokens together; the others stay what they are: any numbers.
HYBRIDGEN_INLINE void collect(const ShadowKeyView& keys,
                              const std::int32_t* positions,
                              std::int64_t count,
                              std::int64_t left,
                              ChosenBlock& to) {
  const std::int64_t code_bytes = keys.block_bytes - kKeyBlockTokens * kStepBytes;
  for (std::int64_t j = 0; j < count; ++j) {
    if (j + kStoredRowsAhead < left) {
      const std::int64_t ahead = positions[j + kStoredRowsAhead] - keys.first_token;
      const std::byte* line = keys.blocks + ahead / kKeyBlockTokens * keys.block_bytes +
                              ahead % kKeyBlockTokens * kStoredGroup;
      for (std::int64_t at = 0; at < code_bytes; at += kStoredGroupBytes) prefetch(line + at);
    }
    const std::int64_t position = positions[j] - keys.first_token;
    const std::int64_t place = position % kKeyBlockTokens;
    const std::byte* block = keys.blocks + position / kKeyBlockTokens * keys.block_bytes;
    for (std::int64_t at = 0; at < code_bytes; at += kStoredGroupBytes) {
      write_as(to.codes + at + j * kStoredGroup,
               read_as<std::uint32_t>(block + at + place * kStoredGroup));
    }
    to.steps[j] = read_as<BFloat16>(block + code_bytes + place * kStepBytes);
  }
}

template <int Bits, int Queries>
void stored_key_logits_of(const StoredLogitsArgs& args, std::int64_t first_query) {
  const ShadowKeyView& keys = args.keys;
  StoredPass pass;
  pass.padded_dim = keys.padded_dim;
  pass.queries = args.queries + first_query * keys.padded_dim;
  pass.starts = args.starts + first_query;
  pass.constants = args.constants + first_query;
  pass.is_scan = args.positions == nullptr;
  ChosenBlock chosen;
  if (!pass.is_scan) __builtin_memset(&chosen, 0, sizeof(chosen));
  const std::int64_t total = pass.is_scan ? args.tokens.size() : args.count;
  for (std::int64_t done = 0; done < total;) {
    std::int64_t from = 0;
    std::int64_t count = min_of(kKeyBlockTokens, total - done);
    if (pass.is_scan) {
      const std::int64_t token = args.tokens.begin - keys.first_token + done;
      const std::int64_t block = token / kKeyBlockTokens;
      from = token - block * kKeyBlockTokens;
      count = min_of(kKeyBlockTokens - from, total - done);
      const std::byte* data = keys.blocks + block * keys.block_bytes;
      pass.block = reinterpret_cast<const std::uint8_t*>(data);
      pass.steps =
          reinterpret_cast<const BFloat16*>(data + keys.block_bytes - kKeyBlockTokens * kStepBytes);
    } else {
      collect(keys, args.positions + done, count, total - done, chosen);
      pass.block = chosen.codes;
      pass.steps = chosen.steps;
    }
    float* out = args.logits + first_query * args.logits_stride + done;
    if (count == kKeyBlockTokens) {
      pass.logits = out;
      pass.logits_stride = args.logits_stride;
      stored_block<Bits, Queries>(pass);
    } else {
      float whole[extent(Queries * kKeyBlockTokens)];
      pass.logits = whole;
      pass.logits_stride = kKeyBlockTokens;
      stored_block<Bits, Queries>(pass);
      for (int q = 0; q < Queries; ++q) {
        __builtin_memcpy(out + q * args.logits_stride,
                         whole + q * kKeyBlockTokens + from,
                         static_cast<std::size_t>(count) * sizeof(float));
      }
    }
    done += count;
  }
}

void stored_key_logits(const StoredLogitsArgs& args) {
  for (std::int64_t q = 0; q < args.num_queries; q += kStoredQueries) {
    with_constant<kStoredQueries>(min_of(kStoredQueries, args.num_queries - q), [&](auto queries) {
      constexpr int kQueries = decltype(queries)::value;
      if (args.keys.precision == ShadowPrecision::kInt8) {
        stored_key_logits_of<8, kQueries>(args, q);
      } else {
        stored_key_logits_of<4, kQueries>(args, q);
      }
    });
  }
}

/// One key: K[d] = centre[d] + 2 step spread[d] (code - (2^bits - 1) / 2).
template <int Bits, typename T>
HYBRIDGEN_INLINE void restore_key(const ShadowKeyView& keys, std::int64_t position, T* out) {
  const std::int64_t place = position % kKeyBlockTokens;
  const std::byte* block = keys.blocks + position / kKeyBlockTokens * keys.block_bytes;
  const std::int64_t code_bytes = keys.block_bytes - kKeyBlockTokens * kStepBytes;
  std::uint8_t codes[extent(kMaxShadowHeadDim)];
  std::uint8_t* to = codes;
  for (std::int64_t at = 0; at < code_bytes; at += kStoredGroupBytes) {
    const auto group = read_as<std::uint32_t>(block + at + place * kStoredGroup);
    if constexpr (Bits == 4) {
      write_as(to, group & 0x0f0f0f0fU);
      write_as(to + kStoredGroup, (group >> 4) & 0x0f0f0f0fU);
      to += 2 * kStoredGroup;
    } else {
      write_as(to, group);
      to += kStoredGroup;
    }
  }
  const float step = to_float(read_as<BFloat16>(block + code_bytes + place * kStepBytes));
  const Vector twice = splat(2.0F * step);
  const Vector middle = splat(static_cast<float>((1 << Bits) - 1) * 0.5F);
  for (std::int64_t d = 0; d < keys.head_dim; d += kLanes) {
    const std::int64_t left = keys.head_dim - d;
    const Vector spread = mul(load_up_to(keys.spreads + d, left), twice);
    // Codes end at a multiple of 8 within an array of 512: what lies beyond is not stored.
    const Vector value = sub(field<0, 0xff>(load_bytes(codes + d)), middle);
    store_up_to(out + d, left, fma(spread, value, load_up_to(keys.centres + d, left)));
  }
}

void stored_key_rows(const StoredKeyRowsArgs& args) {
  const ShadowKeyView& keys = args.keys;
  with_element_type(args.dtype, [&]<typename T>(const T*) {
    T* out = static_cast<T*>(args.out);
    for (std::int64_t j = 0; j < args.count; ++j, out += keys.head_dim) {
      const std::int64_t position =
          (args.positions == nullptr ? args.first + j : args.positions[j]) - keys.first_token;
      if (args.positions != nullptr && j + kStoredRowsAhead < args.count) {
        const std::int64_t ahead = args.positions[j + kStoredRowsAhead] - keys.first_token;
        const std::byte* line = keys.blocks + ahead / kKeyBlockTokens * keys.block_bytes +
                                ahead % kKeyBlockTokens * kStoredGroup;
        for (std::int64_t at = 0; at < keys.block_bytes; at += kStoredGroupBytes) {
          prefetch(line + at);
        }
      }
      if (keys.precision == ShadowPrecision::kInt8) {
        restore_key<8>(keys, position, out);
      } else {
        restore_key<4>(keys, position, out);
      }
    }
  });
}

// ---- Values: lanes are dimensions ---------------------------------------------------------------

/// Where minimum and scale of a row's first group lie.
HYBRIDGEN_INLINE std::int64_t ranges_at(const QuantisedRowView& values) {
  const std::int64_t groups = (values.head_dim + kQuantisedGroup - 1) / kQuantisedGroup;
  return values.row_bytes - groups * 2 * kStepBytes;
}

/// Codes of places [i, i + kLanes) of a group's bytes; those beyond `bytes` are 0.
HYBRIDGEN_INLINE Codes group_bytes(const std::byte* codes, std::int64_t i, std::int64_t bytes) {
  const auto* from = reinterpret_cast<const std::uint8_t*>(codes) + i;
  if (i + kLanes <= bytes) return load_bytes(from);
  std::uint8_t padded[extent(kLanes)] = {};
  __builtin_memcpy(padded, from, static_cast<std::size_t>(bytes - i));
  return load_bytes(padded);
}

template <typename T, int Bits>
void restore_row(const QuantisedRowView& values, const std::byte* row, T* out) {
  const std::byte* range = row + ranges_at(values);
  for (std::int64_t first = 0; first < values.head_dim; first += kQuantisedGroup) {
    const std::int64_t dims = min_of(kQuantisedGroup, values.head_dim - first);
    const std::int64_t bytes = Bits == 8 ? dims : (dims + 1) / 2;
    const Vector minimum = splat(to_float(read_as<BFloat16>(range)));
    const Vector scale = splat(to_float(read_as<BFloat16>(range + kStepBytes)));
    for (std::int64_t i = 0; i < bytes; i += kLanes) {
      const Codes codes = group_bytes(row, i, bytes);
      constexpr int kMask = (1 << Bits) - 1;
      store_up_to(out + first + i, bytes - i, fma(field<0, kMask>(codes), scale, minimum));
      if constexpr (Bits == 4) {
        const std::int64_t left = dims - bytes - i;
        if (left > 0) {
          store_up_to(out + first + bytes + i, left, fma(field<4, kMask>(codes), scale, minimum));
        }
      }
    }
    row += bytes;
    range += 2 * kStepBytes;
  }
}

HYBRIDGEN_INLINE void prefetch_row(const std::byte* row, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += 64) prefetch(row + at);
  prefetch(row + bytes - 1);
}

void stored_value_rows(const StoredValueRowsArgs& args) {
  const QuantisedRowView& values = args.values;
  with_element_type(values.dtype, [&]<typename T>(const T*) {
    T* out = static_cast<T*>(args.out);
    for (std::int64_t j = 0; j < args.count; ++j, out += values.head_dim) {
      const std::int64_t position = args.positions == nullptr ? args.first + j : args.positions[j];
      if (args.positions != nullptr && j + kStoredRowsAhead < args.count) {
        prefetch_row(values.rows + args.positions[j + kStoredRowsAhead] * values.row_bytes,
                     values.row_bytes);
      }
      if (position < values.num_exact) {
        __builtin_memcpy(out,
                         static_cast<const T*>(values.exact) + position * values.head_dim,
                         static_cast<std::size_t>(values.head_dim) * sizeof(T));
        continue;
      }
      const std::byte* row = values.rows + position * values.row_bytes;
      if (values.precision == KvPrecision::kInt8) {
        restore_row<T, 8>(values, row, out);
      } else {
        restore_row<T, 4>(values, row, out);
      }
    }
  });
}

constexpr std::int64_t kSumTokens = 128;  ///< whose rows stay in the first-level cache meanwhile
constexpr int kSumQueries = 4;

/// A piece of one group over some tokens, for some of the queries.
struct SumPass {
  const std::byte* codes[extent(kSumTokens)];      ///< of the group
  float weights[kSumQueries][extent(kSumTokens)];  ///< times the rows' scales
  std::int64_t count = 0;
  std::int64_t bytes = 0;
  std::int64_t dims = 0;
};

/// Adds to sums[q][i ...] (and, of 4 bits, sums[q][bytes + i ...]) what the codes at i hold.
template <int Bits, int Queries>
HYBRIDGEN_INLINE void sum_codes(const SumPass& pass,
                                std::int64_t i,
                                float (&sums)[kSumQueries][extent(kQuantisedGroup)]) {
  constexpr int kMask = (1 << Bits) - 1;
  const std::int64_t low_left = pass.bytes - i;
  const std::int64_t high_left = pass.dims - pass.bytes - i;
  Vector low[extent(Queries)];
  Vector high[extent(Queries)];
#pragma GCC unroll 4
  for (int q = 0; q < Queries; ++q) {
    low[q] = load_up_to(sums[q] + i, low_left);
    high[q] = Bits == 4 && high_left > 0 ? load_up_to(sums[q] + pass.bytes + i, high_left) : zero();
  }
  for (std::int64_t t = 0; t < pass.count; ++t) {
    const Codes codes = group_bytes(pass.codes[t], i, pass.bytes);
    const Vector low_codes = field<0, kMask>(codes);
    const Vector high_codes = Bits == 4 ? field<4, kMask>(codes) : zero();
#pragma GCC unroll 4
    for (int q = 0; q < Queries; ++q) {
      const Vector weight = splat(pass.weights[q][t]);
      low[q] = fma(weight, low_codes, low[q]);
      if constexpr (Bits == 4) high[q] = fma(weight, high_codes, high[q]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Queries; ++q) {
    store_up_to(sums[q] + i, low_left, low[q]);
    if (Bits == 4 && high_left > 0) store_up_to(sums[q] + pass.bytes + i, high_left, high[q]);
  }
}

/// One group of `Queries` outputs: dimensions [first, first + dims).
template <typename T, int Bits, int Queries>
void sum_group(const StoredValueSumsArgs& args, std::int64_t first_query, std::int64_t first) {
  const QuantisedRowView& values = args.values;
  const std::int64_t group = first / kQuantisedGroup;
  const std::int64_t range = ranges_at(values) + group * 2 * kStepBytes;
  const std::int64_t codes_at = group * (Bits == 8 ? kQuantisedGroup : kQuantisedGroup / 2);
  float sums[kSumQueries][extent(kQuantisedGroup)] = {};
  float minima[kSumQueries] = {};
  SumPass pass;
  pass.dims = min_of(kQuantisedGroup, values.head_dim - first);
  pass.bytes = Bits == 8 ? pass.dims : (pass.dims + 1) / 2;
  const auto position_of = [&](std::int64_t j) {
    return args.positions == nullptr ? args.first + j : std::int64_t{args.positions[j]};
  };
  std::int64_t begin = 0;
  for (; begin < args.count && position_of(begin) < values.num_exact; ++begin) {
    const T* row =
        static_cast<const T*>(values.exact) + position_of(begin) * values.head_dim + first;
    for (int q = 0; q < Queries; ++q) {
      const Vector weight = splat(args.weights[(first_query + q) * args.weights_stride + begin]);
      for (std::int64_t d = 0; d < pass.dims; d += kLanes) {
        const std::int64_t left = pass.dims - d;
        store_up_to(sums[q] + d,
                    left,
                    fma(weight, load_up_to(row + d, left), load_up_to(sums[q] + d, left)));
      }
    }
  }
  for (; begin < args.count; begin += pass.count) {
    pass.count = min_of(kSumTokens, args.count - begin);
    for (std::int64_t t = 0; t < pass.count; ++t) {
      const std::int64_t j = begin + t;
      const std::int64_t position = position_of(j);
      const std::byte* row = values.rows + position * values.row_bytes;
      pass.codes[t] = row + codes_at;
      const float minimum = to_float(read_as<BFloat16>(row + range));
      const float scale = to_float(read_as<BFloat16>(row + range + kStepBytes));
#pragma GCC unroll 4
      for (int q = 0; q < Queries; ++q) {
        const float weight = args.weights[(first_query + q) * args.weights_stride + j];
        pass.weights[q][t] = weight * scale;
        minima[q] += weight * minimum;
      }
    }
    for (std::int64_t i = 0; i < pass.bytes; i += kLanes) sum_codes<Bits, Queries>(pass, i, sums);
  }
  for (int q = 0; q < Queries; ++q) {
    float* out = args.out + (first_query + q) * args.out_stride + first;
    for (std::int64_t d = 0; d < pass.dims; d += kLanes) {
      const std::int64_t left = pass.dims - d;
      store_up_to(out + d, left, add(load_up_to(sums[q] + d, left), splat(minima[q])));
    }
  }
}

void stored_value_sums(const StoredValueSumsArgs& args) {
  with_element_type(args.values.dtype, [&]<typename T>(const T*) {
    for (std::int64_t q = 0; q < args.num_queries; q += kSumQueries) {
      with_constant<kSumQueries>(min_of(kSumQueries, args.num_queries - q), [&](auto queries) {
        constexpr int kQueries = decltype(queries)::value;
        for (std::int64_t d = 0; d < args.values.head_dim; d += kQuantisedGroup) {
          if (args.values.precision == KvPrecision::kInt8) {
            sum_group<T, 8, kQueries>(args, q, d);
          } else {
            sum_group<T, 4, kQueries>(args, q, d);
          }
        }
      });
    }
  });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
