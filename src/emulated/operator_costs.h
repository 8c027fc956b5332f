// SPDX-License-Identifier: Apache-2.0
// What an operator of LibTorch does on a device, as the cost model asks for it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

#include "emulated/cost_model.h"

namespace hybridgen::emulated {

/// Bytes and FLOPs of `op` with `arguments`, of which it makes `results` (new tensors only, not
/// arguments that it writes to). What a tensor repeats (stride 0) is read once; what an index
/// chooses is read as often as it is chosen, and the rest of that tensor not at all. Only shapes
/// and types are looked at.
TimedOperation cost_of(const c10::OperatorHandle& op,
                       c10::ArrayRef<c10::IValue> arguments,
                       c10::ArrayRef<at::Tensor> results);

/// A copy of `to`'s elements between two tensors of the device.
TimedOperation device_copy(const at::Tensor& to, const at::Tensor& from);

}  // namespace hybridgen::emulated
