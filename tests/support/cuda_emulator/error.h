// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

namespace hybridgen::cuda_emulator {

/// A kernel did what no device promises to survive: it waits for ever, or uses an operation in a
/// way that CUDA leaves undefined. Thrown by the launch that runs the kernel, or by the task that
/// runs it where launches are queued.
class KernelError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

}  // namespace hybridgen::cuda_emulator
