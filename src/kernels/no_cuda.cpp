// SPDX-License-Identifier: Apache-2.0
// The symbols of our .cu files for a build without CUDA.
#include "hybridgen/core/error.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_planning.h"

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

int cuda_device_count() { return 0; }

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

void guess_logits_cuda(const GuessLogitsArgs& /*args*/, void* /*stream*/) {
  refuse("guess_logits_cuda");
}

std::size_t count_near_workspace_bytes(std::int64_t /*groups*/, std::int64_t /*tokens*/) {
  return 0;
}

void count_near_cuda(const CountNearArgs& /*args*/, void* /*stream*/) { refuse("count_near_cuda"); }

std::size_t largest_positions_workspace_bytes(std::int64_t /*groups*/, std::int64_t /*tokens*/) {
  return 0;
}

void largest_positions_cuda(const LargestPositionsArgs& /*args*/, void* /*stream*/) {
  refuse("largest_positions_cuda");
}

}  // namespace hybridgen::kernels
