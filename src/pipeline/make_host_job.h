// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "hybridgen/methods/host_work.h"
#include "pipeline/host_job.h"
#include "pipeline/request_state.h"

namespace hybridgen {

/// The job that `work` means for a request with offloaded tokens, in its next step: what it reads,
/// who chooses how many tokens, what it sends and where to. Changes nothing. For the caller to add:
/// the query, the new token's rows, and the device's plan if the device chooses.
HostJob host_job(RequestState& request, std::int64_t layer, const HostWork& work);

}  // namespace hybridgen
