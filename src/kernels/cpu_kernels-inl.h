// SPDX-License-Identifier: Apache-2.0
// The table of one instruction set. See simd.h for the macros that select it.
#pragma once

#include "kernels/cpu_attend-inl.h"
#include "kernels/cpu_attention-inl.h"
#include "kernels/cpu_blocked_logits-inl.h"
#include "kernels/cpu_linear-inl.h"
#include "kernels/cpu_log_sum-inl.h"
#include "kernels/cpu_norm-inl.h"
#include "kernels/cpu_packed_linear-inl.h"
#include "kernels/cpu_prefill-inl.h"
#include "kernels/cpu_score_sums-inl.h"
#include "kernels/cpu_scores-inl.h"
#include "kernels/cpu_shadow-inl.h"
#include "kernels/cpu_stored_codes-inl.h"
#include "kernels/cpu_tables.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  with_element_type(args.dtype, [&]<typename T>(const T*) { linear_of<T>(args, begin, end); });
}

}  // namespace

constinit const CpuKernels kTable = {
    .isa = HYBRIDGEN_ISA_LEVEL == 2   ? Isa::kAvx512
           : HYBRIDGEN_ISA_LEVEL == 1 ? Isa::kAvx2
                                      : Isa::kPortable,
    .linear = linear,
    .prepared_linear = {.rows_bytes = wide_rows_bytes,
                        .prepare_rows = widen_rows,
                        .outputs = packed_linear_outputs,
                        .scratch_bytes = packed_linear_scratch,
                        .multiply = packed_linear},
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .rotate = rotate,
    .silu_gate = silu_gate,
    .relu = relu,
    .add = add_rows,
    .scale_to_float = scale_to_float,
    .blocked_logits = blocked_logits,
    .chosen_logits = chosen_logits,
    .row_logits = row_logits,
    .shadow_logits = scan_shadow,
    .stored_key_logits = stored_key_logits,
    .stored_key_rows = stored_key_rows,
    .stored_value_rows = stored_value_rows,
    .stored_value_sums = stored_value_sums,
    .softmax_values = softmax_values,
    .attend = attend,
    .merge_parts = merge_parts,
    .softmax_weights = softmax_weights,
    .log_sum_exp = log_sum_exp,
    .gumbel_row = gumbel_row,
    .exponential_gather = exponential_gather,
    .tempered_softmax = tempered_softmax,
    .add_scores = add_scores,
    .prefill_scratch = prefill_scratch,
    .prefill_attention = prefill_attention,
    .column_sums = column_sums,
};

}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
