// SPDX-License-Identifier: Apache-2.0
#include "models/unpack.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "device/torch_types.h"
#include "hybridgen/core/error.h"
#include "kernels/coded_rows.h"
#include "kernels/gguf_blocks.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kRowsAtOnce = 16;  ///< whose words GPTQ and AWQ share, twice over

/// Runs over rows in pieces of kRowsAtOnce, on all threads.
void for_row_pieces(std::int64_t rows,
                    const std::function<void(std::int64_t first, std::int64_t count)>& work) {
  const std::int64_t pieces = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  at::parallel_for(0, pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t first = piece * kRowsAtOnce;
      work(first, std::min(kRowsAtOnce, rows - first));
    }
  });
}

/// Rows [first, first + count) of a matrix of any floating dtype from float32.
void store_rows(const at::Tensor& matrix,
                std::int64_t first,
                std::int64_t count,
                std::vector<float>& values) {
  const std::int64_t inputs = matrix.size(1);
  matrix.narrow(0, first, count)
      .copy_(at::from_blob(values.data(), {count, inputs}, at::TensorOptions().dtype(at::kFloat)));
}

at::Tensor empty_floats(std::int64_t rows, std::int64_t columns, DType dtype) {
  return at::empty({rows, columns}, at::TensorOptions().dtype(to_scalar_type(dtype)));
}

void refuse_odd_scales(const CodedTensors& coded) {
  const bool is_sound = at::isfinite(coded.scales).all().item<bool>() &&
                        (!coded.minima.defined() || at::isfinite(coded.minima).all().item<bool>());
  if (!is_sound) {
    throw CheckpointError(
        "[unpack] a scale is NaN or infinite; allowed: numbers; the checkpoint is damaged, "
        "download "
        "it again");
  }
}

CodedTensors empty_codes(int bits,
                         std::int64_t group,
                         std::int64_t outputs,
                         std::int64_t inputs,
                         bool has_minima,
                         DType scales) {
  CodedTensors coded;
  coded.bits = bits;
  coded.group = group;
  coded.codes = at::empty({outputs, kernels::coded_row_bytes(bits, inputs)},
                          at::TensorOptions().dtype(at::kByte));
  const std::int64_t groups = kernels::coded_groups(inputs, group);
  coded.scales = empty_floats(outputs, groups, scales);
  if (has_minima) coded.minima = empty_floats(outputs, groups, scales);
  return coded;
}

const kernels::GgufFormat& checked_format(std::uint32_t id, const at::Tensor& rows) {
  const kernels::GgufFormat* format = kernels::find_gguf_format(id);
  if (format == nullptr) {
    throw CheckpointError(
        message("[unpack] the type of a GGUF tensor is ", id, ", which is not read"));
  }
  if (rows.scalar_type() != at::kByte || rows.dim() != 2 || !rows.is_contiguous() ||
      rows.size(1) % format->block_bytes != 0) {
    throw CheckpointError(message("[unpack] rows of ",
                                  format->name,
                                  " have the shape ",
                                  rows.sizes(),
                                  "; allowed: bytes [outputs, a multiple of ",
                                  format->block_bytes,
                                  "]"));
  }
  return *format;
}

/// What the kernels need of PackedTensors, whose scales are float32 here.
struct CheckedPacked {
  kernels::PackedIntegers view;
  at::Tensor codes, zeros, scales, group_of_input;
};

CheckedPacked checked_packed(const PackedTensors& packed) {
  const auto refuse = [](const char* what, const at::Tensor& tensor) {
    throw CheckpointError(
        message("[unpack] ",
                what,
                " has the shape ",
                tensor.sizes(),
                " of ",
                c10::toString(tensor.scalar_type()),
                ", which the other tensors of its layer contradict; the checkpoint "
                "is damaged, download it again"));
  };
  const auto require = [&](const char* what, const at::Tensor& tensor, int dim, bool is_number) {
    const bool fits = is_number ? tensor.is_floating_point() : tensor.scalar_type() == at::kInt;
    if (tensor.dim() != dim || !fits) refuse(what, tensor);
  };
  require("qweight", packed.codes, 2, false);
  require("qzeros", packed.zeros, 2, false);
  require("scales", packed.scales, 2, true);
  require("g_idx", packed.group_of_input, 1, false);
  CheckedPacked checked;
  checked.codes = packed.codes.contiguous();
  checked.zeros = packed.zeros.contiguous();
  checked.scales = packed.scales.to(at::kFloat).contiguous();
  checked.group_of_input = packed.group_of_input.contiguous();
  kernels::PackedIntegers& view = checked.view;
  view.layout = packed.layout;
  view.bits = packed.bits;
  view.groups = checked.scales.size(0);
  view.outputs = checked.scales.size(1);
  view.inputs = checked.group_of_input.size(0);
  view.zero_offset = packed.zero_offset;
  view.codes = checked.codes.const_data_ptr<std::int32_t>();
  view.zeros = checked.zeros.const_data_ptr<std::int32_t>();
  view.scales = checked.scales.const_data_ptr<float>();
  view.group_of_input = checked.group_of_input.const_data_ptr<std::int32_t>();
  check(view);
  const std::int64_t per = 32 / view.bits;
  const bool is_awq = view.layout == kernels::PackedLayout::kAwq;
  const std::int64_t rows = is_awq ? view.inputs : view.inputs / per;
  const std::int64_t columns = is_awq ? view.outputs / per : view.outputs;
  if (checked.codes.size(0) != rows || checked.codes.size(1) != columns) {
    refuse("qweight", checked.codes);
  }
  if (checked.zeros.size(0) != view.groups || checked.zeros.size(1) != view.outputs / per) {
    refuse("qzeros", checked.zeros);
  }
  return checked;
}

void refuse_scattered_groups(const kernels::PackedIntegers& view, std::int64_t group) {
  bool is_in_order = kernels::is_coded_shape(view.bits, view.inputs, group) &&
                     kernels::coded_groups(view.inputs, group) == view.groups;
  for (std::int64_t i = 0; is_in_order && i < view.inputs; ++i) {
    is_in_order = view.group_of_input[i] == i / group;
  }
  if (!is_in_order) {
    throw CheckpointError(message("[unpack] inputs are not in groups of ",
                                  group,
                                  " that stand together; such a matrix can only be restored"));
  }
}

/// Codes of an output as kernels/coded_rows.h has them, and its scales and minima.
void code_row(const kernels::PackedIntegers& view,
              std::int64_t output,
              const std::uint8_t* unpacked,
              const std::uint8_t* zeros,
              const CodedTensors& coded,
              std::vector<std::int8_t>& codes) {
  const int less = view.bits == 8 ? 128 : 0;
  for (std::int64_t i = 0; i < view.inputs; ++i) {
    codes[static_cast<std::size_t>(i)] = static_cast<std::int8_t>(unpacked[i] - less);
  }
  kernels::pack_row(view.bits,
                    codes.data(),
                    view.inputs,
                    coded.codes.mutable_data_ptr<std::uint8_t>() + output * coded.codes.size(1));
  float* scales = coded.scales.mutable_data_ptr<float>() + output * view.groups;
  float* minima = coded.minima.mutable_data_ptr<float>() + output * view.groups;
  for (std::int64_t g = 0; g < view.groups; ++g) {
    scales[g] = view.scales[g * view.outputs + output];
    minima[g] = scales[g] * static_cast<float>(less - static_cast<int>(zeros[g]));
  }
}

}  // namespace

at::Tensor restore_gguf(std::uint32_t format_id, const at::Tensor& rows, DType dtype) {
  const kernels::GgufFormat& format = checked_format(format_id, rows);
  const std::int64_t inputs = rows.size(1) / format.block_bytes * format.block_values;
  const at::Tensor restored = empty_floats(rows.size(0), inputs, dtype);
  const auto* bytes = rows.const_data_ptr<std::uint8_t>();
  for_row_pieces(rows.size(0), [&](std::int64_t first, std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count * inputs));
    for (std::int64_t row = 0; row < count; ++row) {
      kernels::restore_gguf_row(
          format, bytes + (first + row) * rows.size(1), inputs, values.data() + row * inputs);
    }
    store_rows(restored, first, count, values);
  });
  return restored;
}

CodedTensors split_gguf(std::uint32_t format_id, const at::Tensor& rows) {
  const kernels::GgufFormat& format = checked_format(format_id, rows);
  if (format.bits == 0) {
    throw CheckpointError(message("[unpack] ", format.name, " has no codes"));
  }
  const std::int64_t inputs = rows.size(1) / format.block_bytes * format.block_values;
  const bool is_plain_scale = format.block_values == format.group;  // the file's own, in float16
  CodedTensors coded = empty_codes(
      format.bits, format.group, rows.size(0), inputs, format.has_minima, DType::kFloat32);
  const std::int64_t groups = inputs / format.group;
  const int more = format.bits == 4 && !format.has_minima ? 8 : 0;
  const auto* bytes = rows.const_data_ptr<std::uint8_t>();
  auto* codes_out = coded.codes.mutable_data_ptr<std::uint8_t>();
  float* scales = coded.scales.mutable_data_ptr<float>();
  float* minima = format.has_minima ? coded.minima.mutable_data_ptr<float>() : nullptr;
  for_row_pieces(rows.size(0), [&](std::int64_t first, std::int64_t count) {
    std::vector<std::int8_t> codes(static_cast<std::size_t>(inputs));
    for (std::int64_t row = first; row < first + count; ++row) {
      kernels::split_gguf_row(format,
                              bytes + row * rows.size(1),
                              inputs,
                              codes.data(),
                              scales + row * groups,
                              minima == nullptr ? nullptr : minima + row * groups);
      for (std::int8_t& code : codes) code = static_cast<std::int8_t>(code + more);
      kernels::pack_row(format.bits, codes.data(), inputs, codes_out + row * coded.codes.size(1));
    }
  });
  refuse_odd_scales(coded);
  if (is_plain_scale) {
    coded.scales = coded.scales.to(at::kHalf);
    if (coded.minima.defined()) coded.minima = coded.minima.to(at::kHalf);
  }
  return coded;
}

at::Tensor restore_packed(const PackedTensors& packed, DType dtype) {
  const CheckedPacked checked = checked_packed(packed);
  const kernels::PackedIntegers& view = checked.view;
  const at::Tensor restored = empty_floats(view.outputs, view.inputs, dtype);
  for_row_pieces(view.outputs, [&](std::int64_t first, std::int64_t count) {
    const auto size = static_cast<std::size_t>(count * view.inputs);
    std::vector<std::uint8_t> codes(size);
    std::vector<std::uint8_t> zeros(static_cast<std::size_t>(view.groups));
    std::vector<float> values(size);
    kernels::unpack_codes(view, first, count, codes.data());
    for (std::int64_t row = 0; row < count; ++row) {
      kernels::unpack_zeros(view, first + row, zeros.data());
      kernels::restore_packed_row(view,
                                  first + row,
                                  codes.data() + row * view.inputs,
                                  zeros.data(),
                                  values.data() + row * view.inputs);
    }
    store_rows(restored, first, count, values);
  });
  return restored;
}

CodedTensors split_packed(const PackedTensors& packed, std::int64_t group) {
  const CheckedPacked checked = checked_packed(packed);
  const kernels::PackedIntegers& view = checked.view;
  refuse_scattered_groups(view, group);
  CodedTensors coded =
      empty_codes(view.bits, group, view.outputs, view.inputs, true, DType::kFloat32);
  for_row_pieces(view.outputs, [&](std::int64_t first, std::int64_t count) {
    std::vector<std::uint8_t> unpacked(static_cast<std::size_t>(count * view.inputs));
    std::vector<std::uint8_t> zeros(static_cast<std::size_t>(view.groups));
    std::vector<std::int8_t> codes(static_cast<std::size_t>(view.inputs));
    kernels::unpack_codes(view, first, count, unpacked.data());
    for (std::int64_t row = 0; row < count; ++row) {
      kernels::unpack_zeros(view, first + row, zeros.data());
      code_row(view, first + row, unpacked.data() + row * view.inputs, zeros.data(), coded, codes);
    }
  });
  refuse_odd_scales(coded);
  return coded;
}

}  // namespace hybridgen
