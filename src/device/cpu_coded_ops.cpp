// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>

#include <algorithm>

#include "device/coded_view.h"
#include "device/cpu_ops.h"
#include "device/kept_room.h"
#include "device/kernel_args.h"

namespace hybridgen {
namespace {

/// Elements that are restored at a time: the last-level cache holds them for the product.
constexpr std::int64_t kRestoredElements = std::int64_t{1} << 20;

}  // namespace

void CpuOps::coded_linear(const at::Tensor& x,
                          const LinearWeight& weight,
                          const at::Tensor& bias,
                          at::Tensor& y) const {
  if (x.size(0) <= kMostStepRows) {
    stream_codes(x, weight, bias, y);
  } else {
    restore_in_pieces(x, weight, bias, y);
  }
}

void CpuOps::stream_codes(const at::Tensor& x,
                          const LinearWeight& weight,
                          const at::Tensor& bias,
                          at::Tensor& y) const {
  const kernels::CodedLinearArgs args = coded_linear_args(x, weight, bias, y);
  thread_local HostBuffer rows;
  void* prepared = room_in(rows, coded_kernels_.rows_bytes(args));
  for_rows(args.rows, weight.inputs, [&](std::int64_t begin, std::int64_t end) {
    coded_kernels_.prepare_rows(args, begin, end, prepared);
  });
  // Whole tiles of the kernel, so that only the last piece has outputs left over.
  constexpr std::int64_t kTile = 4;
  const std::int64_t piece = (outputs_per_piece(weight) + kTile - 1) / kTile * kTile;
  for_ranges(args.rows, weight.outputs(), piece, [&](std::int64_t begin, std::int64_t end) {
    coded_kernels_.multiply(args, prepared, begin, end);
  });
}

void CpuOps::restore_in_pieces(const at::Tensor& x,
                               const LinearWeight& weight,
                               const at::Tensor& bias,
                               at::Tensor& y) const {
  const std::int64_t outputs = weight.outputs();
  const std::int64_t most = std::clamp<std::int64_t>(kRestoredElements / weight.inputs, 1, outputs);
  const at::Tensor room = at::empty({most, weight.inputs}, x.options());
  kernels::RestoreRowsArgs args;
  args.weight = coded_view(weight);
  args.dtype = dtype_of(x);
  for (std::int64_t first = 0; first < outputs; first += most) {
    const std::int64_t count = std::min(most, outputs - first);
    for_ranges(x.size(0), count, 1, [&](std::int64_t begin, std::int64_t end) {
      kernels::RestoreRowsArgs part = args;
      part.first = first + begin;
      part.count = end - begin;
      part.values = offset(room.mutable_data_ptr(), begin * weight.inputs, room.element_size());
      coded_kernels_.restore_rows(part);
    });
    at::Tensor columns = y.narrow(1, first, count);
    linear(x,
           LinearWeight(room.narrow(0, 0, count)),
           bias.defined() ? bias.narrow(0, first, count) : at::Tensor(),
           columns);
  }
}

void CpuOps::select_coded_rows(const LinearWeight& table,
                               const at::Tensor& ids,
                               std::int64_t offset_rows,
                               at::Tensor& y) const {
  const std::int64_t* row = ids.const_data_ptr<std::int64_t>();
  kernels::RestoreRowsArgs args;
  args.weight = coded_view(table);
  args.dtype = dtype_of(y);
  args.count = 1;
  for (std::int64_t r = 0; r < ids.size(0); ++r) {
    args.first = row[r] + offset_rows;
    args.values = offset(y.mutable_data_ptr(), r * y.stride(0), y.element_size());
    coded_kernels_.restore_rows(args);
  }
}

}  // namespace hybridgen
