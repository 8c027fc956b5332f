// SPDX-License-Identifier: Apache-2.0
// Stands in for the toolkit's header of the same name.
#pragma once

#include "support/cuda_emulator/intrinsics.h"
#include "support/cuda_emulator/kernel_language.h"
#include "support/cuda_emulator/runtime.h"
#include "support/cuda_emulator/vector_types.h"
