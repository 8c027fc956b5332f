// SPDX-License-Identifier: Apache-2.0
#include "device/cpu_ops.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <cstring>
#include <exception>

#include "device/own_error.h"
#include "hybridgen/core/error.h"
#include "kernels/onednn_linear.h"

namespace hybridgen {
namespace {

// Above this many rows a projection is a matrix product, which libraries do best: oneDNN in
// float32, where LibTorch takes MKL's, and LibTorch in 16 bits. Below, it reads the weights once
// and our kernel runs at the memory limit (docs/kernels.md), but does not use the tile registers of
// a CPU that has them.
constexpr std::int64_t kMaxStreamedRows = 64;
constexpr std::int64_t kMaxStreamedRowsBesideTiles = 16;
// A piece of a streamed weight: long enough to be read in bursts, short enough that threads which
// start late or read slowly leave little to wait for.
constexpr std::int64_t kLeastPieceBytes = std::int64_t{32} << 10;
constexpr std::int64_t kMostPieceBytes = std::int64_t{1} << 20;
constexpr std::int64_t kPiecesPerThread = 8;

/// Whether a library did linear(). Both want memory for code and scratch, and one of oneDNN's
/// kernels that once got none refuses for as long as the process lives: then ours, which wants
/// none, takes over, here and for every later call that fails. Whatever else they throw, of
/// shapes that do not match for example, is thrown on.
bool multiply_by_library(const at::Tensor& x,
                         const at::Tensor& weight,
                         const at::Tensor& bias,
                         at::Tensor& y,
                         const kernels::LinearArgs& args) {
  try {
    if (args.dtype == DType::kFloat32 && kernels::has_onednn()) {
      kernels::onednn_linear(args, weight.size(0));
    } else if (bias.defined()) {
      at::addmm_out(y, bias, x, weight.t());
    } else {
      at::mm_out(y, x, weight.t());
    }
    return true;
  } catch (const DeviceError&) {
    return false;  // of onednn_linear
  } catch (...) {
    if (!is_lack_of_memory(std::current_exception())) throw;
    return false;
  }
}

}  // namespace

CpuOps::CpuOps(std::string_view isa, WorkerPool* pool)
    : kernels_(kernels::cpu_kernels(kernels::resolve_isa(isa))),
      pool_(pool),
      max_streamed_rows_(kernels_.isa == kernels::Isa::kAmx ? kMaxStreamedRowsBesideTiles
                                                            : kMaxStreamedRows) {}

void CpuOps::linear(const at::Tensor& x,
                    const at::Tensor& weight,
                    const at::Tensor& bias,
                    at::Tensor& y) const {
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
  if (rows > max_streamed_rows_ && y.scalar_type() == x.scalar_type() &&
      multiply_by_library(x, weight, bias, y, args)) {
    return;
  }
  for_ranges(
      rows, weight.size(0), outputs_per_piece(weight), [&](std::int64_t begin, std::int64_t end) {
        kernels_.linear(args, begin, end);
      });
}

void CpuOps::select_rows(const at::Tensor& table,
                         const at::Tensor& ids,
                         std::int64_t offset_rows,
                         at::Tensor& y) const {
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
  args.dim = x.size(1);
  args.x_stride = x.stride(0);
  args.y_stride = y.stride(0);
  args.eps = static_cast<float>(config.norm_eps);
  const auto apply = config.norm == NormKind::kRms ? kernels_.rms_norm : kernels_.layer_norm;
  const std::int64_t element = x.element_size();
  for_rows(x.size(0), args.dim, [&](std::int64_t begin, std::int64_t end) {
    kernels::NormArgs part = args;
    part.x = offset(args.x, begin * args.x_stride, element);
    part.y = offset(args.y, begin * args.y_stride, element);
    part.rows = end - begin;
    apply(part);
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
  kernels::SiluGateArgs args;
  args.dtype = dtype_of(gate);
  args.gate = gate.const_data_ptr();
  args.up = up.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.dim = gate.size(1);
  args.gate_stride = gate.stride(0);
  args.up_stride = up.stride(0);
  args.y_stride = y.stride(0);
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
                        at::Tensor& destination,
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

std::int64_t CpuOps::outputs_per_piece(const at::Tensor& weight) const {
  const auto bytes = static_cast<std::int64_t>(weight.nbytes());
  const std::int64_t threads = pool_ == nullptr ? at::get_num_threads() : pool_->size() + 1;
  const std::int64_t piece =
      std::clamp(bytes / (threads * kPiecesPerThread), kLeastPieceBytes, kMostPieceBytes);
  return std::max<std::int64_t>(1, piece * weight.size(0) / bytes);
}

std::unique_ptr<DeviceOps> make_cpu_ops(std::string_view isa, WorkerPool* pool) {
  return std::make_unique<CpuOps>(isa, pool);
}

}  // namespace hybridgen
