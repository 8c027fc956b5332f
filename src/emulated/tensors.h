// SPDX-License-Identifier: Apache-2.0
// Tensors of emulated devices, as operations see them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <vector>

namespace hybridgen::emulated {

/// Whether the tensor is defined and lies on a device of a kind that can be emulated.
bool is_emulated(const at::Tensor& tensor);

/// The same elements as a CPU tensor, for an operation that runs later. It owns nothing: as on
/// CUDA, a block may be freed before the operations that use it have run.
at::Tensor alias_of(const at::Tensor& tensor);

/// Tells the thread sanitizer, which does not see into LibTorch, that a stream uses the host's
/// memory.
void note_host_access(const at::Tensor& host, bool writes);

/// `value` with `map` done to each tensor in it.
template <typename Map>
c10::IValue map_tensors(const c10::IValue& value, const Map& map) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? c10::IValue(map(value.toTensor())) : value;
  }
  if (value.isTensorList()) {
    std::vector<at::Tensor> mapped;
    for (const at::Tensor& each : value.toTensorVector()) {
      mapped.push_back(each.defined() ? map(each) : each);
    }
    return mapped;
  }
  if (value.isList()) {
    c10::List<c10::IValue> source = value.toList();
    c10::impl::GenericList mapped(source.elementType());
    for (const c10::IValue& each : value.toListRef()) {
      mapped.push_back(map_tensors(each, map));
    }
    return mapped;
  }
  return value;
}

}  // namespace hybridgen::emulated
