// SPDX-License-Identifier: Apache-2.0
// Tensors of a CPU device in memory that asks for huge pages: a walk over pages of 4 KiB costs a
// decode step, which reads all weights, up to a third of the read rate.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>

#include "memory/host_buffer.h"

namespace hybridgen {

/// Lays tensors one behind the other, each at a cache line, in blocks that grow up to 64 MiB: small
/// matrices share huge pages. A tensor keeps its block alive.
class HostTensors {
 public:
  /// Contiguous, on the CPU. Throws OutOfMemoryError.
  at::Tensor allocate(at::IntArrayRef shape, at::TensorOptions options);

 private:
  std::shared_ptr<HostBuffer> block_;
  std::size_t used_ = 0;   ///< of block_
  std::size_t total_ = 0;  ///< of all blocks
};

}  // namespace hybridgen
