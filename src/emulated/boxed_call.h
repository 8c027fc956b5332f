// SPDX-License-Identifier: Apache-2.0
// An operator of LibTorch called with its arguments on a stack: on the CPU, and for its results'
// shapes.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <vector>

namespace hybridgen::emulated {

/// Runs it on the CPU tensors of `stack`, which then holds the results.
void run(const c10::OperatorHandle& op, torch::jit::Stack& stack);

/// Shapes that the operation gives, without its data: by LibTorch's shape functions or, for the few
/// operators that have none, by its CPU kernel on zeros.
std::vector<at::Tensor> shapes_of(const c10::OperatorHandle& op,
                                  c10::ArrayRef<c10::IValue> arguments);

/// Gives `tensor` these sizes, and memory if it has none.
void resize(const at::Tensor& tensor, at::IntArrayRef sizes);
/// out= tensors that are still empty take the result's shape before the operation is queued.
void resize_outputs(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments);

}  // namespace hybridgen::emulated
