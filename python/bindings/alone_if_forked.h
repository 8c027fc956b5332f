// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "device/driver_thread.h"
#include "runtime/process.h"

namespace hybridgen::bindings {

/// The process that imported the module.
inline const MakerProcess importer;

/// While it lives, LibTorch works in the calling thread alone if this is a forked child: there the
/// thread may have an OpenMP team of the parent's, and would wait for its threads for ever.
class AloneIfForked {
 public:
  AloneIfForked() {
    if (!importer.is_this_one()) {
      set_intra_op_threads(1);
    }
  }
  ~AloneIfForked() { set_intra_op_threads(threads_); }
  AloneIfForked(const AloneIfForked&) = delete;
  AloneIfForked& operator=(const AloneIfForked&) = delete;

 private:
  int threads_ = default_intra_op_threads();
};

}  // namespace hybridgen::bindings
