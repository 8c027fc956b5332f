// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace hybridgen::kernels {

/// Whether this process may use AMX-BF16 tiles: the CPU has them and the operating system saves
/// them and grants their use, which is asked for once and then holds for all threads.
bool may_use_amx();

}  // namespace hybridgen::kernels
