// SPDX-License-Identifier: Apache-2.0
// Sums over decode steps and prefill passes since the last reset. Times in seconds, sizes in bytes.
#pragma once

#include <cstdint>

namespace hybridgen {

struct PipelineStatistics {
  std::int64_t decode_steps = 0;
  std::int64_t decode_tokens = 0;  ///< rows, summed over steps
  double decode_s = 0.0;
  double device_s = 0.0;  ///< T_gpu: device stage without its waits
  double wait_s = 0.0;    ///< device stage waiting for payloads
  double cpu_s = 0.0;     ///< T_cpu: first task to last task of each host job batch
  double link_s = 0.0;    ///< T_tx: payload copies
  std::int64_t host_jobs = 0;
  std::int64_t h2d_bytes = 0;  ///< payloads
  /// Queries, new K and V where the host attends, chosen positions, softmax weights for selectors.
  std::int64_t d2h_bytes = 0;
  std::int64_t evicted_bytes = 0;     ///< K and V that left the device, prefill included
  std::int64_t host_key_bytes = 0;    ///< read by the CPU stage
  std::int64_t host_value_bytes = 0;  ///< read by the CPU stage
  std::int64_t cxl_key_bytes = 0;    ///< of the two above, those read of CXL memory: counted by the
  std::int64_t cxl_value_bytes = 0;  ///< share of each request's keys and values that lies there
  std::int64_t prefill_tokens = 0;
  double prefill_s = 0.0;
  std::int64_t prefill_h2d_bytes = 0;  ///< offloaded K and V streamed back while prefilling

  /// Share of the host's and the link's time that the device did not wait for; 1 without host jobs.
  double hidden_share() const {
    const double host_s = cpu_s + link_s;
    return host_s <= 0.0 ? 1.0 : (wait_s >= host_s ? 0.0 : 1.0 - wait_s / host_s);
  }
};

}  // namespace hybridgen
