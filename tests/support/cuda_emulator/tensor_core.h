// SPDX-License-Identifier: Apache-2.0
// What kernels/cuda_tensor_core.h does where there is no PTX: mma, ldmatrix and cp.async.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "support/cuda_emulator/block.h"
#include "support/cuda_emulator/half_types.h"

namespace hybridgen::cuda_emulator {

struct Sixteen {
  alignas(16) std::byte bytes[16];
};

inline void check_sixteen(const char* operation, const char* what, const void* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) {
    Block::current().fail(std::string(operation) + " " + what + " is not aligned to 16 bytes");
  }
}

inline void check_shared(const char* operation, const void* address) {
  if (!Block::current().shared().holds(address, 16)) {
    Block::current().fail(std::string(operation) + " address is not in a shared array");
  }
}

// ---- mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32 ----

/// Place of element i (0 or 1) of register r of a lane: the row of A (and of C), or column of B, is
/// lane / 4 (of A and C plus 8 in odd registers and pairs); k is 2 (lane % 4) + i, plus 8 in the
/// second half of the registers.
template <IsHalfType T>
void mma_16x8x16(float (&c)[4],
                 const std::uint32_t (&a)[4],
                 const std::uint32_t (&b)[2],
                 Where where = Where::current()) {
  struct Given {
    std::uint32_t a[4];
    std::uint32_t b[2];
  } given;
  std::memcpy(given.a, a, sizeof(a));
  std::memcpy(given.b, b, sizeof(b));
  const WarpExchange all(0xffffffffU, "mma.m16n8k16", &given, sizeof(given), where);
  const auto element = [](std::uint32_t pair, int i) {
    return static_cast<double>(
        to_float<T::kMantissaBits>(static_cast<std::uint16_t>(pair >> (16 * i))));
  };
  const int lane = all.lane();
  for (int i = 0; i < 4; ++i) {
    const int row_register = i / 2;             // rows lane / 4 and lane / 4 + 8
    const int column = 2 * (lane % 4) + i % 2;  // of B and C
    double sum = static_cast<double>(c[i]);
    for (int k = 0; k < 16; ++k) {
      const int quarter = k % 8 / 2;  // the lane of a group of four that has it
      const Given of_a = all.from<Given>(lane / 4 * 4 + quarter);
      const Given of_b = all.from<Given>(column * 4 + quarter);
      sum += element(of_a.a[row_register + k / 8 * 2], k % 2) * element(of_b.b[k / 8], k % 2);
    }
    c[i] = static_cast<float>(sum);
  }
}

// ---- ldmatrix.sync.aligned.m8n8.x4.shared.b16 ----

/// Lane i names row i % 8 of matrix i / 8: 16 bytes, eight elements. Register j of a lane then
/// holds row lane / 4 of matrix j, elements 2 (lane % 4) and the next one; transposed, column lane
/// / 4.
inline void load_matrices(std::uint32_t (&to)[4],
                          const void* row,
                          bool is_transposed,
                          Where where = Where::current()) {
  check_sixteen("ldmatrix", "row", row);
  check_shared("ldmatrix", row);
  const Sixteen own = *static_cast<const Sixteen*>(row);
  const WarpExchange all(0xffffffffU, "ldmatrix.x4", &own, sizeof(own), where);
  const auto element = [&](int matrix, int r, int column) {
    const Sixteen given = all.from<Sixteen>(8 * matrix + r);
    std::uint16_t bits = 0;
    std::memcpy(&bits, given.bytes + 2 * column, 2);
    return std::uint32_t{bits};
  };
  const int line = all.lane() / 4;
  const int first = 2 * (all.lane() % 4);
  for (int j = 0; j < 4; ++j) {
    to[j] = is_transposed ? element(j, first, line) | element(j, first + 1, line) << 16
                          : element(j, line, first) | element(j, line, first + 1) << 16;
  }
}

// ---- cp.async.cg.shared.global ----

inline void copy_async_16(void* shared, const void* global, int bytes) {
  check_sixteen("cp.async", "shared address", shared);
  check_sixteen("cp.async", "global address", global);
  check_shared("cp.async", shared);
  if (bytes < 0 || bytes > 16)
    Block::current().fail("cp.async reads " + std::to_string(bytes) + " bytes; allowed: 0 to 16");
  // Unknown until the wait: NaN.
  Sixteen unknown;
  std::memset(unknown.bytes, 0xFF, sizeof(unknown.bytes));
  *static_cast<Sixteen*>(shared) = unknown;
  Block::current().async_copies().add(shared, global, bytes);
}

inline void commit_copies() { Block::current().async_copies().commit(); }

inline void wait_for_copies(int pending) {
  AsyncCopies& copies = Block::current().async_copies();
  while (const auto copy = copies.next_due(pending)) {
    Sixteen value{};
    std::memcpy(value.bytes, copy->from, static_cast<std::size_t>(copy->bytes));
    *static_cast<Sixteen*>(copy->to) = value;
  }
}

}  // namespace hybridgen::cuda_emulator
