// SPDX-License-Identifier: Apache-2.0
#include "device/cpu_ops.h"

#include <cstring>

#include "device/kept_room.h"
#include "device/kernel_args.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

// A piece of a streamed weight: long enough to be read in bursts, short enough that threads which
// start late or read slowly leave little to wait for.
constexpr std::int64_t kLeastPieceBytes = std::int64_t{32} << 10;
constexpr std::int64_t kMostPieceBytes = std::int64_t{1} << 20;
constexpr std::int64_t kPiecesPerThread = 8;

// Rows of x that are prepared at a time: the last-level cache holds them.
constexpr std::int64_t kPreparedBytes = std::int64_t{8} << 20;
constexpr std::int64_t kLeastRowsAtATime = 64;

}  // namespace

CpuOps::CpuOps(std::string_view isa, WorkerPool* pool, RowsOf rows_of)
    : kernels_(kernels::cpu_kernels(kernels::resolve_isa(isa))),
      coded_kernels_(kernels::coded_kernels(kernels_.isa)),
      pool_(pool),
      rows_of_(rows_of) {}

void CpuOps::linear(const at::Tensor& x,
                    const LinearWeight& linear_weight,
                    const at::Tensor& bias,
                    at::Tensor& y) const {
  if (linear_weight.is_coded()) {
    coded_linear(x, linear_weight, bias, y);
    return;
  }
  const at::Tensor& weight = linear_weight.dense;
  const std::int64_t rows = x.size(0);
  kernels::LinearArgs args;
  args.dtype = dtype_of(x);
  args.y_dtype = dtype_of(y);
  args.x = x.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.rows = rows;
  args.in_features = x.size(1);
  args.x_stride = x.stride(0);
  args.y_stride = y.stride(0);
  const LinearForm form = linear_form(kernels_.isa, args.dtype, args.y_dtype, rows_of_, rows);
  if (form == LinearForm::kPrepared) {
    if (prepared_linear(args, weight.size(0))) return;
  } else if (form != LinearForm::kStreamed) {
    if (library_linear(form, x, weight, bias, y, args)) return;
  }
  for_ranges(rows,
             weight.size(0),
             outputs_per_piece(linear_weight),
             [&](std::int64_t begin, std::int64_t end) { kernels_.linear(args, begin, end); });
}

bool CpuOps::prepared_linear(const kernels::LinearArgs& args, std::int64_t outputs) const {
  const kernels::PreparedLinear& form = kernels_.prepared_linear;
  const auto element = static_cast<std::int64_t>(size_of(args.dtype));
  const auto y_element = static_cast<std::int64_t>(size_of(args.y_dtype));
  const std::int64_t bytes = form.rows_bytes(args);
  const std::int64_t most = bytes <= kPreparedBytes
                                ? args.rows
                                : std::max(kLeastRowsAtATime, args.rows * kPreparedBytes / bytes);
  try {
    for (std::int64_t first = 0; first < args.rows; first += most) {
      kernels::LinearArgs part = args;
      part.x = offset(args.x, first * args.x_stride, element);
      part.y = offset(args.y, first * args.y_stride, y_element);
      part.rows = std::min(most, args.rows - first);
      thread_local HostBuffer rows;
      void* prepared = room_in(rows, form.rows_bytes(part));
      if (form.rows_bytes(part) > 0) {
        const std::int64_t blocks =
            (part.rows + kernels::kPreparedRows - 1) / kernels::kPreparedRows;
        for_ranges(args.rows, blocks, 1, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t block = begin; block < end; ++block) {
            form.prepare_rows(part, block, prepared);
          }
        });
      }
      for_ranges(args.rows, outputs, form.outputs(part), [&](std::int64_t begin, std::int64_t end) {
        thread_local HostBuffer scratch;
        form.multiply(part, prepared, begin, end, room_in(scratch, form.scratch_bytes(part)));
      });
    }
    return true;
  } catch (const OutOfMemoryError&) {
    return false;
  }
}

void CpuOps::select_rows(const LinearWeight& rows,
                         const at::Tensor& ids,
                         std::int64_t offset_rows,
                         at::Tensor& y) const {
  if (rows.is_coded()) {
    select_coded_rows(rows, ids, offset_rows, y);
    return;
  }
  const at::Tensor& table = rows.dense;
  const std::int64_t element = table.element_size();
  const std::int64_t* row = ids.const_data_ptr<std::int64_t>();
  for (std::int64_t r = 0; r < ids.size(0); ++r) {
    std::memcpy(offset(y.mutable_data_ptr(), r * y.stride(0), element),
                offset(table.const_data_ptr(), (row[r] + offset_rows) * table.stride(0), element),
                static_cast<std::size_t>(table.size(1) * element));
  }
}

void CpuOps::norm(const ModelConfig& config,
                  const at::Tensor& x,
                  const at::Tensor& weight,
                  const at::Tensor& bias,
                  at::Tensor& y) const {
  kernels::NormArgs args;
  args.dtype = dtype_of(x);
  args.x = x.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  const bool has_heads = x.dim() == 3;
  const std::int64_t heads = has_heads ? x.size(1) : 1;
  args.dim = x.size(-1);
  args.eps = static_cast<float>(config.norm_eps);
  const auto apply = config.norm == NormKind::kRms ? kernels_.rms_norm : kernels_.layer_norm;
  const std::int64_t element = x.element_size();
  // The rows of one call lie evenly: all of a matrix, or the heads of one row.
  args.x_stride = has_heads ? args.dim : x.stride(0);
  args.y_stride = has_heads ? args.dim : y.stride(0);
  const std::int64_t rows_per_call = has_heads ? 1 : x.size(0);
  for_rows(x.size(0), heads * args.dim, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row += rows_per_call) {
      kernels::NormArgs part = args;
      part.x = offset(args.x, row * x.stride(0), element);
      part.y = offset(args.y, row * y.stride(0), element);
      part.rows = heads * std::min(rows_per_call, end - row);
      apply(part);
    }
  });
}

void CpuOps::rotate(const RopeTable& table, const at::Tensor& positions, at::Tensor& x) const {
  kernels::RotateArgs args;
  args.dtype = dtype_of(x);
  args.x = x.mutable_data_ptr();
  args.positions = positions.const_data_ptr<std::int64_t>();
  args.cosines = table.cosines.const_data_ptr<float>();
  args.sines = table.sines.const_data_ptr<float>();
  args.heads = x.size(1);
  args.head_dim = x.size(2);
  args.x_stride = x.stride(0);
  const std::int64_t element = x.element_size();
  for_rows(x.size(0), args.heads * args.head_dim, [&](std::int64_t begin, std::int64_t end) {
    kernels::RotateArgs part = args;
    part.x = offset(args.x, begin * args.x_stride, element);
    part.positions += begin;
    part.rows = end - begin;
    kernels_.rotate(part);
  });
}

void CpuOps::silu_gate(const at::Tensor& gate, const at::Tensor& up, at::Tensor& y) const {
  const kernels::SiluGateArgs args = silu_gate_args(gate, up, y);
  const std::int64_t element = gate.element_size();
  for_rows(gate.size(0), args.dim, [&](std::int64_t begin, std::int64_t end) {
    kernels::SiluGateArgs part = args;
    part.gate = offset(args.gate, begin * args.gate_stride, element);
    part.up = offset(args.up, begin * args.up_stride, element);
    part.y = offset(args.y, begin * args.y_stride, element);
    part.rows = end - begin;
    kernels_.silu_gate(part);
  });
}

void CpuOps::relu(at::Tensor& x) const {
  const std::int64_t element = x.element_size();
  for_elements(x, [&](std::int64_t begin, std::int64_t end) {
    kernels_.relu(dtype_of(x), offset(x.mutable_data_ptr(), begin, element), end - begin);
  });
}

void CpuOps::add(at::Tensor& y, const at::Tensor& x) const {
  const std::int64_t element = x.element_size();
  for_elements(x, [&](std::int64_t begin, std::int64_t end) {
    kernels_.add(dtype_of(x),
                 offset(y.mutable_data_ptr(), begin, element),
                 offset(x.const_data_ptr(), begin, element),
                 end - begin);
  });
}

void CpuOps::append_row(const at::Tensor& rows,
                        std::int64_t row,
                        const at::Tensor& destination,
                        std::int64_t slot) const {
  const std::int64_t element = rows.element_size();
  const std::int64_t head_dim = rows.size(2);
  for (std::int64_t g = 0; g < rows.size(1); ++g) {
    std::memcpy(offset(destination.mutable_data_ptr(),
                       g * destination.stride(0) + slot * destination.stride(1),
                       element),
                offset(rows.const_data_ptr(), row * rows.stride(0) + g * rows.stride(1), element),
                static_cast<std::size_t>(head_dim * element));
  }
}

std::int64_t CpuOps::outputs_per_piece(const LinearWeight& weight) const {
  const std::int64_t bytes = weight.bytes();
  const std::int64_t threads = pool_ == nullptr ? at::get_num_threads() : pool_->size() + 1;
  const std::int64_t piece =
      std::clamp(bytes / (threads * kPiecesPerThread), kLeastPieceBytes, kMostPieceBytes);
  return std::max<std::int64_t>(1, piece * weight.outputs() / bytes);
}

std::unique_ptr<DeviceOps> make_cpu_ops(std::string_view isa, WorkerPool* pool, RowsOf rows_of) {
  return std::make_unique<CpuOps>(isa, pool, rows_of);
}

}  // namespace hybridgen
