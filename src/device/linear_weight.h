// SPDX-License-Identifier: Apache-2.0
// A linear layer as a value: a matrix in one format and one place, and several of them that read
// the same input. DeviceOps::linear knows how to multiply each; nobody else asks for the format.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace hybridgen {

/// A matrix [outputs, inputs]. Copies share memory.
struct LinearWeight {
  LinearWeight() = default;
  explicit LinearWeight(at::Tensor dense_) : dense(std::move(dense_)), inputs(dense.size(1)) {}

  at::Tensor dense;  ///< [outputs, inputs] of the model's dtype; undefined where it is coded
  // Coded: element (o, i) is scales(o, i / group) * code(o, i) + minima(o, i / group), in float32.
  at::Tensor codes;   ///< uint8 [outputs, row bytes]; how they lie: kernels/coded_rows.h
  at::Tensor scales;  ///< [outputs, groups], float16 or float32
  at::Tensor minima;  ///< the same, or undefined: symmetric
  int bits = 0;       ///< 8: int8 codes; 4: codes from 0 to 15, less 8 where there are no minima
  std::int64_t group = 0;  ///< inputs; the last one may have fewer
  std::int64_t inputs = 0;

  bool defined() const { return dense.defined() || codes.defined(); }
  bool is_coded() const { return codes.defined(); }
  std::int64_t outputs() const { return (is_coded() ? codes : dense).size(0); }
  /// Of all its tensors.
  std::int64_t bytes() const;
  /// Those that it has, in a fixed order.
  std::vector<at::Tensor*> tensors();

  /// A view of `count` rows from `first` on.
  LinearWeight rows(std::int64_t first, std::int64_t count) const;
  /// The rows of these ids (int64 [n], where the weight is), as a copy in the same format.
  LinearWeight select(const at::Tensor& ids) const;
  /// All of it, dense in this dtype: computed in float32 and rounded once; itself if it is so.
  at::Tensor restored(at::ScalarType type) const;
};

/// Weights that read the same input: what they make lies side by side, in order.
struct Projection {
  std::vector<LinearWeight> parts;  ///< one wherever format and place agree
  at::Tensor bias;                  ///< [outputs], or undefined

  std::int64_t outputs() const;
  std::int64_t bytes() const;  ///< bias included
  /// A view of `count` rows from `first` on; it may begin and end inside of parts.
  Projection rows(std::int64_t first, std::int64_t count) const;
};

}  // namespace hybridgen
