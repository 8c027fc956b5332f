// SPDX-License-Identifier: Apache-2.0
// Prepared rows times coded weights. Bound by the weights' way from memory for few rows: codes are
// widened in registers, and a row of x meets them with two instructions per 16 codes.
//
// Output (r, n) is eight float32 sums. In each chunk they first take minimum * x's sum, one block a
// lane (of 4 bits without minima scale * -8 times it, as prepared rows have it); then vector by
// vector scale * the integer sums of its two blocks, four lanes each. Lanes are added at the end.
// That order is all that rounding depends on: the integers are exact, and below 2^24, so that they
// are exact in float32 too.
#pragma once

#include "kernels/coded_shape-inl.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// x rows that share the widened codes of a weight row, at most. Lanes one by one gain nothing from
/// that, and take minutes to compile.
constexpr int kCodedRows = HYBRIDGEN_ISA_LEVEL > 0 ? 4 : 1;
/// Codes of the weight rows that all x rows meet before the next ones: half a first-level cache.
constexpr std::int64_t kCodedTileBytes = std::int64_t{16} << 10;

#if HYBRIDGEN_ISA_LEVEL > 0

using Lanes = __m256;

HYBRIDGEN_INLINE Lanes lanes_of(float value) { return _mm256_set1_ps(value); }
HYBRIDGEN_INLINE Lanes load_lanes(const float* p) { return _mm256_loadu_ps(p); }
HYBRIDGEN_INLINE Lanes multiply_lanes(Lanes a, Lanes b) { return _mm256_mul_ps(a, b); }
HYBRIDGEN_INLINE Lanes fma_lanes(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
HYBRIDGEN_INLINE float sum_of_lanes(Lanes v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

using LaneIndex = __m256i;

HYBRIDGEN_INLINE LaneIndex load_index(const std::int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
HYBRIDGEN_INLINE Lanes load_eight(const float* p) { return load_lanes(p); }
HYBRIDGEN_INLINE Lanes load_eight(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
HYBRIDGEN_INLINE Lanes pick(Lanes numbers, LaneIndex index) {
  return _mm256_permutevar8x32_ps(numbers, index);
}

/// The scales of vector `V` of a chunk: those of its blocks in four lanes each.
template <int V>
HYBRIDGEN_INLINE Lanes scales_of_vector(Lanes scales) {
  return _mm256_permute_ps(scales, V * 0x55);
}

template <int Bits>
struct Codes {
  __m256i parts[extent(16 / Bits)];
};

template <int Bits>
HYBRIDGEN_INLINE Codes<Bits> widen(const std::uint8_t* bytes) {
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  if constexpr (Bits == 8) {
    return {{_mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), _mm256_srai_epi16(all, 8)}};
  } else {
    const __m256i mask = _mm256_set1_epi16(0xf);
    return {{_mm256_and_si256(all, mask),
             _mm256_and_si256(_mm256_srli_epi16(all, 4), mask),
             _mm256_and_si256(_mm256_srli_epi16(all, 8), mask),
             _mm256_srli_epi16(all, 12)}};
  }
}

/// Sums of a vector's products, four lanes a block, as float32.
template <int Bits>
HYBRIDGEN_INLINE Lanes products(const Codes<Bits>& codes, const std::int16_t* x) {
  const auto* x_parts = reinterpret_cast<const __m256i*>(x);
#if defined(HYBRIDGEN_ISA_VNNI)
  __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int p = 0; p < kParts<Bits>; ++p) {
    sum = _mm256_dpwssd_epi32(sum, codes.parts[p], _mm256_load_si256(x_parts + p));
  }
#else
  __m256i sum = _mm256_madd_epi16(codes.parts[0], _mm256_load_si256(x_parts));
#pragma GCC unroll 4
  for (int p = 1; p < kParts<Bits>; ++p) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes.parts[p], _mm256_load_si256(x_parts + p)));
  }
#endif
  return _mm256_cvtepi32_ps(sum);
}

#else  // portable: the same lanes, one by one

struct Lanes {
  float of[8];
};

HYBRIDGEN_INLINE Lanes lanes_of(float value) {
  return {{value, value, value, value, value, value, value, value}};
}
HYBRIDGEN_INLINE Lanes load_lanes(const float* p) {
  Lanes v;
  for (int i = 0; i < 8; ++i) v.of[i] = p[i];
  return v;
}
HYBRIDGEN_INLINE Lanes multiply_lanes(Lanes a, Lanes b) {
  for (int i = 0; i < 8; ++i) a.of[i] *= b.of[i];
  return a;
}
HYBRIDGEN_INLINE Lanes fma_lanes(Lanes a, Lanes b, Lanes c) {
  for (int i = 0; i < 8; ++i) c.of[i] = __builtin_fmaf(a.of[i], b.of[i], c.of[i]);
  return c;
}
HYBRIDGEN_INLINE float sum_of_lanes(Lanes v) {
  float four[4];
  for (int i = 0; i < 4; ++i) four[i] = v.of[i] + v.of[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

struct LaneIndex {
  std::int32_t of[8];
};

HYBRIDGEN_INLINE LaneIndex load_index(const std::int32_t* p) { return read_as<LaneIndex>(p); }
template <typename T>
HYBRIDGEN_INLINE Lanes load_eight(const T* p) {
  Lanes v;
  for (int i = 0; i < 8; ++i) v.of[i] = load_one(p + i);
  return v;
}
HYBRIDGEN_INLINE Lanes pick(Lanes numbers, LaneIndex index) {
  Lanes v;
  for (int i = 0; i < 8; ++i) v.of[i] = numbers.of[index.of[i]];
  return v;
}
template <int V>
HYBRIDGEN_INLINE Lanes scales_of_vector(Lanes scales) {
  Lanes result;
  for (int i = 0; i < 8; ++i) result.of[i] = scales.of[V + i / 4 * 4];
  return result;
}

template <int Bits>
struct Codes {
  std::int16_t parts[extent(16 / Bits)][kVectorWords];
};

template <int Bits>
HYBRIDGEN_INLINE Codes<Bits> widen(const std::uint8_t* bytes) {
  Codes<Bits> codes;
  for (int word = 0; word < kVectorWords; ++word) {
    for (int p = 0; p < kParts<Bits>; ++p) {
      const int byte = bytes[2 * word + p * Bits / 8];
      codes.parts[p][word] = static_cast<std::int16_t>(Bits == 8 ? static_cast<std::int8_t>(byte)
                                                                 : (byte >> (4 * (p % 2))) & 0xf);
    }
  }
  return codes;
}

template <int Bits>
HYBRIDGEN_INLINE Lanes products(const Codes<Bits>& codes, const std::int16_t* x) {
  Lanes sums;
  for (int lane = 0; lane < 8; ++lane) {
    std::int32_t sum = 0;
    for (int p = 0; p < kParts<Bits>; ++p) {
      for (int word = 2 * lane; word < 2 * lane + 2; ++word) {
        sum += codes.parts[p][word] * x[p * kVectorWords + word];
      }
    }
    sums.of[lane] = static_cast<float>(sum);
  }
  return sums;
}

#endif

/// How the numbers of groups (scales, minima) become those of a chunk's blocks, where a row has
/// several.
class Groups {
 public:
  Groups(std::int64_t count, std::int64_t blocks)
      : count_(count), blocks_(blocks), is_regular_((blocks & (blocks - 1)) == 0) {
    while (is_regular_ && (std::int64_t{1} << shift_) < blocks) ++shift_;
    for (std::int64_t lane = 0; lane < kChunkBlocks; ++lane) {
      picks_[lane] = static_cast<std::int32_t>(block_of_lane(lane) >> shift_);
    }
  }

  std::int64_t count() const { return count_; }  ///< of a row
  LaneIndex picks() const { return load_index(picks_); }

  /// Whether a chunk's numbers are `pick`ed from eight in a row that may be read: `left` are from
  /// the row's first on. What lies behind the row meets an x of 0.
  bool are_picked(std::int64_t chunk, std::int64_t left) const {
    return is_regular_ && first(chunk) + kChunkBlocks <= left;
  }
  std::int64_t first(std::int64_t chunk) const { return chunk * kChunkBlocks >> shift_; }

  /// The same numbers without reading others.
  template <typename T>
  Lanes one_by_one(const T* row, std::int64_t chunk) const {
    float numbers[extent(kChunkBlocks)];
    for (std::int64_t lane = 0; lane < kChunkBlocks; ++lane) {
      const std::int64_t block = chunk * kChunkBlocks + block_of_lane(lane);
      const std::int64_t group = block / blocks_;
      numbers[lane] = group < count_ ? load_one(row + group) : 0.0F;
    }
    return load_lanes(numbers);
  }

 private:
  std::int64_t count_;
  std::int64_t blocks_;  ///< of a group
  bool is_regular_;
  int shift_ = 0;
  std::int32_t picks_[extent(kChunkBlocks)] = {};
};

/// What a pass over a few rows of x and of weights reads.
struct CodedPass {
  PreparedShape shape;
  Groups groups;
  std::int64_t row_bytes = 0;
  bool brings = false;  ///< the weights into the cache
};

/// sums[r * Outputs + o] of x row r and weight row o.
template <int Bits, typename Scale, bool HasMinima, int Rows, int Outputs>
HYBRIDGEN_INLINE void coded_tile(const CodedPass& pass,
                                 const std::uint8_t* codes,
                                 const Scale* scales,
                                 const Scale* minima,
                                 std::int64_t scales_left,
                                 const PreparedRow* x,
                                 float* sums) {
  constexpr bool kHasOffset = HasMinima || Bits == 4;
  constexpr std::int64_t kVectorCodes = kParts<Bits> * kVectorWords;
  Lanes acc[extent(Rows)][extent(Outputs)];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int o = 0; o < Outputs; ++o) acc[r][o] = lanes_of(0.0F);
  }
  const LaneIndex picks = pass.groups.picks();
  const bool is_one_group = pass.groups.count() == 1;
  for (std::int64_t chunk = 0; chunk < pass.shape.chunks; ++chunk) {
    const std::int64_t first_number = pass.groups.first(chunk);
    const bool are_picked =
        pass.groups.are_picked(chunk, scales_left - (Outputs - 1) * pass.groups.count());
    Lanes scale[extent(Rows)][extent(Outputs)];
#pragma GCC unroll 4
    for (int o = 0; o < Outputs; ++o) {
      const std::int64_t at = o * pass.groups.count();
      const auto numbers = [&](const Scale* row) {
        if (is_one_group) return lanes_of(load_one(row + at));
        return are_picked ? pick(load_eight(row + at + first_number), picks)
                          : pass.groups.one_by_one(row + at, chunk);
      };
      const Lanes own = numbers(scales);
      const Lanes offset = HasMinima ? numbers(minima) : own;
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const std::int64_t blocks = chunk * kChunkBlocks;
        scale[r][o] = multiply_lanes(own, load_lanes(x[r].scales + blocks));
        if constexpr (kHasOffset) {
          acc[r][o] = fma_lanes(offset, load_lanes(x[r].sums + blocks), acc[r][o]);
        }
      }
    }
    const std::int64_t first = chunk * kChunkVectors;
    const auto add_vector = [&]<int V>(Constant<V>) {
      const std::int64_t at = (first + V) * kVectorBytes;
#pragma GCC unroll 4
      for (int o = 0; o < Outputs; ++o) {
        const std::uint8_t* bytes = codes + o * pass.row_bytes + at;
        const Codes<Bits> widened = widen<Bits>(bytes);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          const Lanes sum = products<Bits>(widened, x[r].codes + (first + V) * kVectorCodes);
          acc[r][o] = fma_lanes(sum, scales_of_vector<V>(scale[r][o]), acc[r][o]);
        }
      }
    };
    if (pass.brings) {
      // The next tile's as they lie: memory hands out one stream faster than several.
      prefetch_lines<2 * Outputs>(codes + Outputs * (pass.row_bytes + first * kVectorBytes),
                                  Outputs * pass.row_bytes);
    }
    add_vector(Constant<0>{});
    const std::int64_t vectors = pass.shape.vectors - first;
    if (vectors > 1) add_vector(Constant<1>{});
    if (vectors > 2) add_vector(Constant<2>{});
    if (vectors > 3) add_vector(Constant<3>{});
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int o = 0; o < Outputs; ++o) sums[r * Outputs + o] = sum_of_lanes(acc[r][o]);
  }
}

template <int Bits, typename Scale, bool HasMinima>
struct CodedProduct {
  const CodedLinearArgs& args;
  void* prepared;
  CodedPass pass;

  void store_one_output(std::int64_t row, std::int64_t output, float sum) const {
    with_element_type(args.dtype, [&]<typename T>(const T*) {
      if (args.bias != nullptr) sum += load_one(static_cast<const T*>(args.bias) + output);
      const std::int64_t at = row * args.y_stride + output;
      if (args.y_dtype == DType::kFloat32) {
        store_one(static_cast<float*>(args.y) + at, sum);
      } else {
        store_one(static_cast<T*>(args.y) + at, sum);
      }
    });
  }

  /// x rows [row, row + Rows) times weight rows [output, output + Outputs) of those before `end`.
  template <int Rows, int Outputs>
  HYBRIDGEN_INLINE void tile(std::int64_t row, std::int64_t output, std::int64_t end) const {
    const std::int64_t first = output * pass.groups.count();
    PreparedRow x[extent(Rows)];
    for (int r = 0; r < Rows; ++r) x[r] = pass.shape.row(Bits, prepared, row + r);
    float sums[extent(Rows * Outputs)];
    coded_tile<Bits, Scale, HasMinima, Rows, Outputs>(
        pass,
        args.weight.codes + output * pass.row_bytes,
        static_cast<const Scale*>(args.weight.scales) + first,
        HasMinima ? static_cast<const Scale*>(args.weight.minima) + first : nullptr,
        end * pass.groups.count() - first,
        x,
        sums);
    for (int r = 0; r < Rows; ++r) {
      for (int o = 0; o < Outputs; ++o) {
        store_one_output(row + r, output + o, sums[r * Outputs + o]);
      }
    }
  }

  template <int Rows>
  HYBRIDGEN_INLINE void outputs(std::int64_t row,
                                std::int64_t begin,
                                std::int64_t end,
                                std::int64_t last) const {
    // Few sums wait for each other: more weight rows at a time hide that.
    constexpr int kOutputs = kCodedRows / Rows;
    std::int64_t output = begin;
    for (; output + kOutputs <= end; output += kOutputs) tile<Rows, kOutputs>(row, output, last);
    if constexpr (kOutputs > 1) {
      for (; output < end; ++output) tile<Rows, 1>(row, output, last);
    }
  }

  void operator()(std::int64_t begin, std::int64_t end) {
    std::int64_t most = kCodedTileBytes / pass.row_bytes / 4 * 4;
    if (most < 4) most = 4;
    const std::int64_t passes = (args.rows + kCodedRows - 1) / kCodedRows;
    for (std::int64_t first = begin; first < end; first += most) {
      const std::int64_t last = min_of(first + most, end);
      std::int64_t row = 0;
      for (std::int64_t i = 0; i < passes; ++i) {
        const std::int64_t rows = (args.rows - row) / (passes - i);
        pass.brings = i == 0;
        with_constant<kCodedRows>(
            rows, [&](auto size) { outputs<decltype(size)::value>(row, first, last, end); });
        row += rows;
      }
    }
  }
};

template <int Bits, typename Scale, bool HasMinima>
void multiply_of(const CodedLinearArgs& args,
                 const void* prepared,
                 std::int64_t begin,
                 std::int64_t end) {
  const CodedWeightView& weight = args.weight;
  const std::int64_t groups = coded_groups(weight.inputs, weight.group);
  CodedProduct<Bits, Scale, HasMinima> product{
      args,
      const_cast<void*>(prepared),
      {.shape = prepared_shape(weight),
       .groups = Groups(groups, weight.group / kBlock<Bits>),
       .row_bytes = coded_row_bytes(Bits, weight.inputs)}};
  product(begin, end);
}

void multiply_coded(const CodedLinearArgs& args,
                    const void* prepared,
                    std::int64_t begin,
                    std::int64_t end) {
  const auto of_bits = [&]<int Bits>(Constant<Bits>) {
    const auto of_scale = [&]<typename Scale>(const Scale*) {
      if (args.weight.minima == nullptr) {
        multiply_of<Bits, Scale, false>(args, prepared, begin, end);
      } else {
        multiply_of<Bits, Scale, true>(args, prepared, begin, end);
      }
    };
    if (args.weight.scale_dtype == DType::kFloat32) {
      of_scale(static_cast<const float*>(nullptr));
    } else {
      of_scale(static_cast<const Half*>(nullptr));
    }
  };
  if (args.weight.bits == 8) {
    of_bits(Constant<8>{});
  } else {
    of_bits(Constant<4>{});
  }
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
