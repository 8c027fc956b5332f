// SPDX-License-Identifier: Apache-2.0
// Quantised tensors of files, as models/unpack.h has them.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "alone_if_forked.h"
#include "bindings.h"
#include "kernels/gguf_blocks.h"
#include "models/unpack.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

/// What Python hands on to Model.load_coded.
py::dict dict_of(const CodedTensors& coded) {
  py::dict parts;
  parts["codes"] = coded.codes;
  parts["scales"] = coded.scales;
  parts["minima"] = coded.minima.defined() ? py::cast(coded.minima) : py::none();
  parts["bits"] = coded.bits;
  parts["group"] = coded.group;
  return parts;
}

template <typename Work>
auto without_gil(const Work& work) {
  const py::gil_scoped_release release;
  const at::NoGradGuard no_grad;
  const AloneIfForked alone;
  return work();
}

PackedTensors packed_of(const std::string& layout,
                        int bits,
                        int zero_offset,
                        const at::Tensor& codes,
                        const at::Tensor& zeros,
                        const at::Tensor& scales,
                        const at::Tensor& group_of_input) {
  return {.layout = layout == "awq" ? kernels::PackedLayout::kAwq : kernels::PackedLayout::kGptq,
          .bits = bits,
          .codes = codes,
          .zeros = zeros,
          .scales = scales,
          .group_of_input = group_of_input,
          .zero_offset = zero_offset};
}

void register_gguf(py::module_& module) {
  module.def(
      "gguf_formats",
      [] {
        py::list formats;
        for (const kernels::GgufFormat& format : kernels::gguf_formats()) {
          py::dict d;
          d["id"] = format.id;
          d["name"] = format.name;
          d["block_values"] = format.block_values;
          d["block_bytes"] = format.block_bytes;
          d["bits"] = format.bits;
          d["group"] = format.group;
          d["has_minima"] = format.has_minima;
          formats.append(d);
        }
        return formats;
      },
      "Types of GGUF tensors that are read: values and bytes of a block, bits of a code (0: plain "
      "numbers), values of a scale, and whether there are minima.");
  module.def(
      "restore_gguf",
      [](std::uint32_t format, const at::Tensor& rows, const std::string& dtype) {
        return without_gil([&] { return restore_gguf(format, rows, dtype_from_name(dtype)); });
      },
      py::arg("format"),
      py::arg("rows"),
      py::arg("dtype"),
      "Numbers [outputs, inputs] of a GGUF tensor's rows, uint8 [outputs, bytes of a row].");
  module.def(
      "split_gguf",
      [](std::uint32_t format, const at::Tensor& rows) {
        return dict_of(without_gil([&] { return split_gguf(format, rows); }));
      },
      py::arg("format"),
      py::arg("rows"),
      "The same as codes, scales, minima (None: symmetric), bits and group.");
}

}  // namespace

void register_unpack(py::module_& module) {
  register_gguf(module);
  module.def(
      "restore_packed",
      [](const std::string& layout,
         int bits,
         int zero_offset,
         const at::Tensor& codes,
         const at::Tensor& zeros,
         const at::Tensor& scales,
         const at::Tensor& group_of_input,
         const std::string& dtype) {
        const PackedTensors packed =
            packed_of(layout, bits, zero_offset, codes, zeros, scales, group_of_input);
        return without_gil([&] { return restore_packed(packed, dtype_from_name(dtype)); });
      },
      py::arg("layout"),
      py::kw_only(),
      py::arg("bits"),
      py::arg("zero_offset"),
      py::arg("codes"),
      py::arg("zeros"),
      py::arg("scales"),
      py::arg("group_of_input"),
      py::arg("dtype"),
      "Numbers [outputs, inputs] of a matrix that is packed as 'gptq' or 'awq' do.");
  module.def(
      "split_packed",
      [](const std::string& layout,
         int bits,
         int zero_offset,
         const at::Tensor& codes,
         const at::Tensor& zeros,
         const at::Tensor& scales,
         const at::Tensor& group_of_input,
         std::int64_t group) {
        const PackedTensors packed =
            packed_of(layout, bits, zero_offset, codes, zeros, scales, group_of_input);
        return dict_of(without_gil([&] { return split_packed(packed, group); }));
      },
      py::arg("layout"),
      py::kw_only(),
      py::arg("bits"),
      py::arg("zero_offset"),
      py::arg("codes"),
      py::arg("zeros"),
      py::arg("scales"),
      py::arg("group_of_input"),
      py::arg("group"),
      "The same as codes, scales, minima, bits and group.");
}

}  // namespace hybridgen::bindings
