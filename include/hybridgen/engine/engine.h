// SPDX-License-Identifier: Apache-2.0
// What users hold: requests in, tokens out. Admission, prefill and decode of a changing set of
// requests over one model, by one method.
//
// Not thread-safe: one caller at a time. Work runs on the engine's own driver thread and worker
// pool; step() blocks until it is done. In a forked child it throws DeviceError. A request's
// failure is its own: it ends with an event that carries the error, and all others go on. After any
// exception the engine stays usable.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/engine/sampler.h"
#include "hybridgen/kvcache/tier_statistics.h"
#include "hybridgen/memory/disk_statistics.h"
#include "hybridgen/memory/numa_part.h"
#include "hybridgen/methods/method.h"
#include "hybridgen/models/model.h"
#include "hybridgen/models/weight_statistics.h"
#include "hybridgen/pipeline/statistics.h"
#include "hybridgen/runtime/trace_recorder.h"

namespace hybridgen {

/// Why no more tokens of a request come.
enum class FinishReason : std::uint8_t { kNone, kStop, kLength, kAbort, kError };

/// "", "stop", "length", "abort" or "error".
std::string_view name_of(FinishReason reason);

/// A new token of a request, or its failure: then finish_reason is kError and there is no token.
struct TokenEvent {
  std::int64_t request_id = 0;
  std::int64_t token_id = -1;
  float logprob = 0.0F;  ///< natural logarithm, of the raw distribution
  bool is_greedy = false;
  std::vector<std::pair<std::int64_t, float>> top_logprobs;
  /// With the first token, if they were asked for: of each prompt token but the first its own
  /// (token, logprob) and then the most likely ones.
  std::vector<std::vector<std::pair<std::int64_t, float>>> prompt_logprobs;
  FinishReason finish_reason = FinishReason::kNone;
  std::exception_ptr error;  ///< kError: what ended the request; one of error.h where it can be
};

/// Where one request's keys and values lie, if it is another place than the engine's options say.
struct RequestHome {
  /// Newest tokens on the device, whatever EngineOptions::device_tokens says; only of methods with
  /// a window.
  std::optional<std::int64_t> device_tokens{};
  /// Of its offloaded tokens whole blocks go to the disk once they are written, and stay there;
  /// only of engines with a disk.
  bool on_disk = false;
};

struct RequestStatistics {
  std::int64_t prompt_tokens = 0;
  std::int64_t generated_tokens = 0;
  double ttft_s = 0.0;     ///< from add() to the first token
  double prefill_s = 0.0;  ///< in this request's own chunks
  double decode_s = 0.0;   ///< in decode steps it took part in
  std::int64_t decode_steps = 0;
  std::int64_t k = 0;  ///< offloaded tokens chosen per head in the last step
  std::string strategy;
  std::int64_t offloaded_tokens = 0;
  std::int64_t resident_tokens = 0;
  std::int64_t dropped_tokens = 0;  ///< gone for good
  std::int64_t scheduler_decisions = 0;
  std::string last_decision;              ///< of the scheduler, if there is one
  double attended_offloaded_share = 0.0;  ///< chosen / offloaded, over all decode steps
  /// Softmax mass over resident and offloaded tokens that was not attended to, by the query of the
  /// softmax: mean over layers, query heads and those decode steps in which it is known. None where
  /// not all tokens were scored, or some are gone.
  std::optional<double> lost_mass;
  std::optional<double> largest_lost_mass;  ///< of these steps
  std::string lost_mass_kind;               ///< "exact", "estimated" or ""
  std::int64_t lost_mass_steps = 0;
  FinishReason finish_reason = FinishReason::kNone;
};

struct RunStatistics {
  PipelineStatistics pipeline;
  TierStatistics tiers;
  DiskStatistics disk;
  WeightStatistics weights;
  std::int64_t requests = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t generated_tokens = 0;
};

struct TierUsage {
  std::string tier;
  std::int64_t capacity_bytes = 0;
  std::int64_t used_bytes = 0;     ///< by this engine's requests
  std::int64_t process_bytes = 0;  ///< by those of all engines of this process that share the tier
  // What the system says of the pages that offloaded tokens of running requests lie on; only where
  // it was asked.
  std::int64_t found_bytes = 0;
  std::map<int, std::int64_t> bytes_by_node{};  ///< bytes by memory node
  double huge_page_share = 0.0;                 ///< of their bytes, over all tiers, on huge pages
};

class Engine {
 public:
  /// Throws ConfigError for bad options (naming the option, what is allowed and the nearest name),
  /// DeviceError if threads cannot be created.
  Engine(std::shared_ptr<DecoderModel> model, const EngineOptions& options);
  /// The same for a composition of the user's own instead of a named method.
  Engine(std::shared_ptr<DecoderModel> model, const EngineOptions& options, Method method);
  /// Ends the engine's threads. In a forked child, which has none of them, it only lets go.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Options with every automatic value resolved.
  const EngineOptions& options() const;

  /// Memory nodes that offloaded tokens are divided over by KV head; empty: they are not.
  const std::vector<NumaPart>& numa_parts() const;

  /// Queues a request and returns its id. ConfigError: empty prompt, token id out of range, prompt
  /// longer than the model allows, bad sampling options. OutOfMemoryError: it could never fit, with
  /// the nearest setting that does.
  /// `forced`: these tokens are taken instead of sampled ones (scoring). `decode_prompt_tokens`:
  /// the last so many prompt tokens pass through decode steps instead of prefill. `home`:
  /// ConfigError for what this engine's method or tiers do not have.
  std::int64_t add(std::vector<std::int64_t> prompt,
                   SamplingOptions sampling,
                   std::vector<std::int64_t> forced = {},
                   std::int64_t decode_prompt_tokens = 0,
                   const RequestHome& home = {});

  bool has_work() const;

  /// One prefill chunk of one request, or one decode step of all running ones. What fails for one
  /// request (its admission, its chunk, its host jobs, its logits) ends that one, by an event; what
  /// fails for all of them together (say, an allocation for a batch) ends each that took part.
  std::vector<TokenEvent> step();

  /// Ends a request now; its statistics stay until release(). ConfigError for an unknown id.
  void finish(std::int64_t request_id, FinishReason reason);
  void release(std::int64_t request_id);

  RequestStatistics request_statistics(std::int64_t request_id) const;
  RunStatistics run_statistics() const;
  void reset_statistics();
  /// Capacity and use of each tier. `looks_at_pages`: asks the system where the pages lie, too,
  /// which takes about a tenth of a second for a million of them; DeviceError if it does not tell.
  std::vector<TierUsage> memory(bool looks_at_pages = false) const;
  TraceRecorder& trace();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hybridgen
