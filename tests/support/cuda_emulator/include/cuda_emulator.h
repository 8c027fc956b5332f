// SPDX-License-Identifier: Apache-2.0
// What kernels/cuda_launch.h and kernels/cuda_tensor_core.h take from the emulator where nvcc does
// not compile.
#pragma once

#include <cuda_runtime.h>

#include "support/cuda_emulator/launch.h"
#include "support/cuda_emulator/tensor_core.h"
