// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

/// Whether the CPU has the instructions of `isa` and the operating system saves their registers.
/// Tests put an emulation of some instruction sets in the place of this and of their kernels.
bool cpu_has(Isa isa);

}  // namespace hybridgen::kernels
