// SPDX-License-Identifier: Apache-2.0
// What a device that is not the host holds beside the weights and what requests keep there. Upper
// bounds that follow from the tensors which AtenOps and Prefill make (analytic); a test holds them
// against an allocator. On a CPU device budgets count nothing of this: there it is host memory,
// which host_working_bytes() says.
#pragma once

#include <cstdint>

#include "hybridgen/core/model_config.h"
#include "pipeline/request_plan.h"

namespace hybridgen {

/// Rows that pass through the model together, at most.
struct EngineRows {
  std::int64_t prefill = 1;  ///< tokens of a prompt
  std::int64_t scored = 1;   ///< of these, rows whose logits are there at a time
  std::int64_t decode = 1;   ///< of a micro-batch
};

/// As long as an engine lives: the rotary table, the workspaces of prompts, and what operations on
/// rows take for a moment.
std::int64_t engine_device_bytes(const ModelConfig& config, DType dtype, const EngineRows& rows);

/// As long as a request runs: its row of a micro-batch, logits included.
std::int64_t decode_row_bytes(const ModelConfig& config, DType dtype);

/// What operations on the tokens of one request take for a moment, when its prompt passes through
/// the model in chunks of `prefill_rows` and when it decodes. Requests take turns, so that the
/// largest of theirs counts for all.
std::int64_t momentary_device_bytes(const ModelConfig& config,
                                    DType dtype,
                                    const Method& method,
                                    const RequestPlan& plan,
                                    std::int64_t prefill_rows);

/// What operations of a CPU device and its host workers keep of host memory beside the weights and
/// what requests reserve, once a request of this plan has been read and `rows.decode` of them have
/// made tokens: workspaces, outputs of attention, the rotary table, workers' scratch, and the
/// largest blocks of a prompt's scores (analytic).
std::int64_t host_working_bytes(const ModelConfig& config,
                                DType dtype,
                                const Method& method,
                                const RequestPlan& plan,
                                const EngineRows& rows,
                                std::int64_t host_threads);

}  // namespace hybridgen
