// SPDX-License-Identifier: Apache-2.0
// Query, key and value heads of some rows, with the caches that they go to, and what the CPU
// kernels make of them.
#pragma once

#include "kernel_test_support.h"
#include "row_test_support.h"

namespace hybridgen::kernels::test {

inline constexpr float kEps = 1e-3F;
inline constexpr std::int64_t kLayers = 2;
inline constexpr std::int64_t kSlots = 4;
inline constexpr std::int64_t kAngles = 6;

struct HeadsShape {
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t dim;
  Layout layout;

  std::int64_t stride(std::int64_t row_heads) const { return row_heads * dim + layout.gap; }
};

/// Which parts of the work are wanted.
struct HeadsOptions {
  bool query = true;
  bool key = true;
  bool value = true;
  bool norms = false;
  bool turns = false;
  bool turns_key = true;
  bool places = false;
};

/// All that is read and written. Query and key heads are integers, so that norms have exact sums.
struct Heads {
  Heads(DType dtype, const HeadsShape& shape)
      : query(integers(dtype, shape, shape.heads, 130)),
        key(integers(dtype, shape, shape.kv_heads, 132)),
        value(random_array(dtype, shape.rows * shape.stride(shape.kv_heads), 133)),
        cosines(random_floats(kAngles * (shape.dim / 2), 134)),
        sines(random_floats(kAngles * (shape.dim / 2), 135)) {
    for (std::uint32_t i = 0; i < 2; ++i) norms[i] = random_array(dtype, shape.dim, 136 + i);
    for (std::int64_t row = 0; row < shape.rows; ++row) {
      rotation_rows.push_back((row * 4 + 5) % kAngles);
      keys.push_back(cache(dtype, shape, 0x30 + static_cast<int>(row)));
      values.push_back(cache(dtype, shape, 0x40 + static_cast<int>(row)));
    }
  }

  /// Numbers of some request that nobody reads.
  static Array cache(DType dtype, const HeadsShape& shape, int byte) {
    Array array(dtype, kLayers * shape.kv_heads * kSlots * shape.dim);
    std::memset(array.data(), byte, static_cast<std::size_t>(array.count()) * size_of(dtype));
    return array;
  }

  static Array integers(DType dtype,
                        const HeadsShape& shape,
                        std::int64_t heads,
                        std::uint32_t seed) {
    Array array = random_array(dtype, shape.rows * shape.stride(heads), seed);
    for (std::int64_t row = 0; row < shape.rows; ++row) {
      for (std::int64_t head = 0; head < heads; ++head) {
        set_mirrored_integers(array, row * shape.stride(heads) + head * shape.dim, shape.dim, 1.0F);
      }
    }
    return array;
  }

  Array query, key, value;
  std::vector<float> cosines, sines;
  Array norms[2];  ///< of query and key
  std::vector<std::int64_t> rotation_rows;
  std::vector<Array> keys, values;  ///< [kLayers, kv_heads, kSlots, dim] of each row's request
};

/// Tokens of a row's request: the first has none on the device, others begin at different slots.
inline std::int64_t num_resident(std::int64_t row) { return row % 4; }
inline std::int64_t first_slot(std::int64_t row) { return row % 2; }
inline constexpr std::int64_t kLayer = 1;

inline void norm_and_turn(Array& x,
                          const Heads& in,
                          const HeadsShape& shape,
                          std::int64_t heads,
                          const Array* norm,
                          bool turns) {
  const CpuKernels& twin = cpu_kernels(Isa::kPortable);
  const std::int64_t stride = shape.stride(heads);
  for (std::int64_t head = 0; norm != nullptr && head < heads; ++head) {
    void* of_head = static_cast<std::byte*>(x.data()) +
                    static_cast<std::size_t>(head * shape.dim) * size_of(x.dtype());
    twin.rms_norm({.dtype = x.dtype(),
                   .x = of_head,
                   .weight = norm->data(),
                   .y = of_head,
                   .rows = shape.rows,
                   .dim = shape.dim,
                   .x_stride = stride,
                   .y_stride = stride,
                   .eps = kEps});
  }
  if (!turns) return;
  twin.rotate({.dtype = x.dtype(),
               .x = x.data(),
               .positions = in.rotation_rows.data(),
               .cosines = in.cosines.data(),
               .sines = in.sines.data(),
               .rows = shape.rows,
               .heads = heads,
               .head_dim = shape.dim,
               .x_stride = stride});
}

/// `rows` [rows, kv_heads, dim] in the slots of the new tokens.
inline void place(std::vector<Array>& caches, const Array& rows, const HeadsShape& shape) {
  for (std::int64_t row = 0; row < shape.rows; ++row) {
    if (num_resident(row) == 0) continue;
    const std::int64_t slot = first_slot(row) + num_resident(row) - 1;
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
      copy_numbers(caches[static_cast<std::size_t>(row)],
                   ((kLayer * shape.kv_heads + head) * kSlots + slot) * shape.dim,
                   rows,
                   row * shape.stride(shape.kv_heads) + head * shape.dim,
                   shape.dim);
    }
  }
}

inline Heads on_host(const Heads& in, const HeadsShape& shape, HeadsOptions options) {
  Heads out = in;
  const auto norm = [&](std::size_t i) { return options.norms ? &in.norms[i] : nullptr; };
  if (options.query) norm_and_turn(out.query, in, shape, shape.heads, norm(0), options.turns);
  const bool turns_key = options.turns && options.turns_key;
  if (options.key) norm_and_turn(out.key, in, shape, shape.kv_heads, norm(1), turns_key);
  if (options.places && options.key) place(out.keys, out.key, shape);
  if (options.places && options.value) place(out.values, out.value, shape);
  return out;
}

}  // namespace hybridgen::kernels::test
