// SPDX-License-Identifier: Apache-2.0
// The one step that no C++ expresses: go on with another stack.
#pragma once

namespace hybridgen::cuda_emulator {

/// Prepares the stack that ends at `top` (exclusive, a multiple of 16) so that the first switch to
/// it calls entry(argument), which must not return. Returns its place.
void* prepare_stack(void* bottom, void* top, void (*entry)(void*), void* argument);

/// Saves the present place to *from and goes on at `to`.
void switch_stack(void** from, void* to);

/// Frees what prepare_stack may have allocated.
void release_place(void* place);

}  // namespace hybridgen::cuda_emulator
