// SPDX-License-Identifier: Apache-2.0
// What the per-instruction-set translation units export to the dispatcher: whole tables, and single
// kernels that replace their counterparts in the table of the instruction set below.
#pragma once

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

namespace portable {
extern const CpuKernels kTable;
}
namespace avx2 {
extern const CpuKernels kTable;
}
namespace avx512 {
extern const CpuKernels kTable;
}
namespace avx512_vnni {
void shadow_logits(const ShadowLogitsArgs& args);
}
namespace avx512_bf16 {
void bf16_linear(const LinearArgs& args, std::int64_t begin, std::int64_t end);
void blocked_logits(const BlockedLogitsArgs& args);
void chosen_logits(const ChosenLogitsArgs& args);
std::int64_t prefill_scratch(const PrefillAttentionArgs& args);
void prefill_attention(const PrefillAttentionArgs& args);
void column_sums(const PrefillAttentionArgs& args);
}  // namespace avx512_bf16
namespace amx {
void blocked_logits(const BlockedLogitsArgs& args);
void chosen_logits(const ChosenLogitsArgs& args);
std::int64_t prefill_scratch(const PrefillAttentionArgs& args);
void prefill_attention(const PrefillAttentionArgs& args);
void column_sums(const PrefillAttentionArgs& args);
std::int64_t prepared_rows_bytes(const LinearArgs& args);
void prepare_rows(const LinearArgs& args, std::int64_t block, void* prepared);
std::int64_t prepared_linear_outputs(const LinearArgs& args);
std::int64_t prepared_linear_scratch(const LinearArgs& args);
void prepared_linear(const LinearArgs& args,
                     const void* prepared,
                     std::int64_t begin,
                     std::int64_t end,
                     void* scratch);
}  // namespace amx

}  // namespace hybridgen::kernels
