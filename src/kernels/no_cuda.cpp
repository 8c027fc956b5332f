// SPDX-License-Identifier: Apache-2.0
// The symbols of our .cu files for a build without CUDA.
#include "hybridgen/core/error.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_coded.h"
#include "kernels/cuda_host_pins.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_planning.h"
#include "kernels/cuda_resident.h"
#include "kernels/cuda_rows.h"

namespace hybridgen::kernels {

namespace {

[[noreturn]] void refuse(const char* operation) {
  throw DeviceError(message("[",
                            operation,
                            "] device is \"cuda\"; allowed in this build: \"cpu\" (it was compiled "
                            "without nvcc); rebuild with the CUDA toolkit or choose \"cpu\""));
}

}  // namespace

bool has_cuda_kernels() { return false; }

const char* pin_host_cuda(void* /*address*/, std::size_t /*bytes*/) { refuse("pin_host_cuda"); }
void unpin_host_cuda(void* /*address*/) {}

int cuda_device_count() { return 0; }
int cuda_compute_capability(int /*device*/) { return 0; }

void concat_logits_cuda(const MergeSegment* /*segments*/,
                        std::int64_t /*num_segments*/,
                        std::int64_t /*num_queries*/,
                        std::int64_t /*max_tokens*/,
                        void* /*stream*/) {
  refuse("concat_logits_cuda");
}

void softmax_values_cuda(const MergeSegment* /*segments*/,
                         std::int64_t /*num_segments*/,
                         std::int64_t /*num_queries*/,
                         std::int64_t /*head_dim*/,
                         DType /*dtype*/,
                         std::int64_t /*max_tokens*/,
                         void* /*stream*/) {
  refuse("softmax_values_cuda");
}

void attend_resident_cuda(const DecodeAttention& /*attention*/, void* /*stream*/) {
  refuse("attend_resident_cuda");
}

void merge_cuda(const DecodeAttention& /*attention*/, void* /*stream*/) { refuse("merge_cuda"); }

void sum_kept_cuda(const DecodeAttention& /*attention*/,
                   const KeptTokens& /*kept*/,
                   void* /*stream*/) {
  refuse("sum_kept_cuda");
}

void fetch_payloads_cuda(const PayloadCopy* /*copies*/,
                         std::int64_t /*batch*/,
                         std::int64_t /*num_heads*/,
                         std::int64_t /*num_kv_heads*/,
                         std::int64_t /*head_dim*/,
                         DType /*dtype*/,
                         PayloadRow* /*payloads*/,
                         void* /*stream*/) {
  refuse("fetch_payloads_cuda");
}

std::size_t plan_work_bytes(std::int64_t /*groups*/,
                            std::int64_t /*num_queries*/,
                            std::int64_t /*width*/,
                            std::int64_t /*tokens*/) {
  return 0;
}

void guess_logits_cuda(const PlanTokens& /*args*/, void* /*stream*/) {
  refuse("guess_logits_cuda");
}

void count_near_cuda(const PlanTokens& /*args*/, void* /*stream*/) { refuse("count_near_cuda"); }

void largest_positions_cuda(const PlanTokens& /*args*/, void* /*stream*/) {
  refuse("largest_positions_cuda");
}

void coded_linear_cuda(const CodedLinearArgs& /*args*/,
                       std::int64_t /*outputs*/,
                       void* /*stream*/) {
  refuse("coded_linear_cuda");
}

void norm_rows_cuda(const NormRows& /*args*/, void* /*stream*/) { refuse("norm_rows_cuda"); }

void place_heads_cuda(const HeadsOfRows& /*args*/, void* /*stream*/) { refuse("place_heads_cuda"); }

void move_rows_cuda(const MoveRows& /*args*/, void* /*stream*/) { refuse("move_rows_cuda"); }

void turn_keys_cuda(const TurnKeys& /*args*/, void* /*stream*/) { refuse("turn_keys_cuda"); }

void select_rows_cuda(const SelectRows& /*args*/, void* /*stream*/) { refuse("select_rows_cuda"); }

void silu_gate_cuda(const SiluGateArgs& /*args*/, void* /*stream*/) { refuse("silu_gate_cuda"); }

void relu_cuda(DType /*dtype*/, void* /*x*/, std::int64_t /*count*/, void* /*stream*/) {
  refuse("relu_cuda");
}

void add_cuda(
    DType /*dtype*/, void* /*y*/, const void* /*x*/, std::int64_t /*count*/, void* /*stream*/) {
  refuse("add_cuda");
}

}  // namespace hybridgen::kernels
