// SPDX-License-Identifier: Apache-2.0
// How x lies once it is prepared, and in which order a row's codes meet it.
//
// A vector is 32 bytes of codes: two blocks, one per half. Its codes are widened to 16 bits in
// parts (2 for 8 bits, 4 for 4 bits): part p has of each pair of bytes the p-th code, so that the
// low half of every part belongs to the first block. x lies in that order. Four vectors are a
// chunk: eight blocks, whose scales fill eight lanes.
#pragma once

#include "kernels/coded_linear.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kVectorBytes = 32;
constexpr std::int64_t kVectorWords = 16;  ///< 16-bit words
constexpr std::int64_t kChunkVectors = 4;
constexpr std::int64_t kChunkBlocks = 8;

template <int Bits>
constexpr int kParts = 16 / Bits;
template <int Bits>
constexpr std::int64_t kBlock = 128 / Bits;
template <int Bits>
constexpr std::int64_t kVectorInputs = 2 * kBlock<Bits>;

/// Of a vector's inputs the one that word `word` of part `part` holds.
template <int Bits>
constexpr std::int64_t input_at(std::int64_t part, std::int64_t word) {
  if (Bits == 8) return 2 * word + part;
  const std::int64_t byte = 2 * word + part / 2;
  return byte / 16 * 32 + byte % 16 + 16 * (part % 2);
}

/// Numbers of a chunk's blocks lie with those of its vectors' first blocks before the second ones,
/// so that each meets its four sums without crossing the halves of a register.
constexpr std::int64_t block_of_lane(std::int64_t lane) { return 2 * (lane % 4) + lane / 4; }

/// A row of prepared x: codes of whole chunks; then the scales of blocks; then their
/// sums, times what codes of 4 bits without minima start at: -8.
struct PreparedRow {
  std::int16_t* codes = nullptr;
  float* scales = nullptr;
  float* sums = nullptr;
};

struct PreparedShape {
  std::int64_t vectors = 0;  ///< of a row of codes
  std::int64_t chunks = 0;

  std::int64_t codes(int bits) const { return chunks * kChunkVectors * kVectorWords * (16 / bits); }
  std::int64_t row_bytes(int bits) const {
    const std::int64_t bytes = codes(bits) * std::int64_t{sizeof(std::int16_t)} +
                               2 * chunks * kChunkBlocks * std::int64_t{sizeof(float)};
    return bytes;  // a multiple of 64
  }
  PreparedRow row(int bits, void* prepared, std::int64_t r) const {
    auto* codes_at =
        reinterpret_cast<std::int16_t*>(static_cast<std::byte*>(prepared) + r * row_bytes(bits));
    auto* scales = reinterpret_cast<float*>(codes_at + codes(bits));
    return {codes_at, scales, scales + chunks * kChunkBlocks};
  }
};

HYBRIDGEN_INLINE PreparedShape prepared_shape(const CodedWeightView& weight) {
  const std::int64_t vectors = coded_row_bytes(weight.bits, weight.inputs) / kVectorBytes;
  return {vectors, (vectors + kChunkVectors - 1) / kChunkVectors};
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
