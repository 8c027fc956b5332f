// SPDX-License-Identifier: Apache-2.0
// Softmax mass over a request's resident and offloaded tokens that a step did not attend to. The
// host leaves the log-sum-exp of the logits that nobody chose, merge() that of those that it
// merged; both meet after the step's wait.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "device/device_context.h"
#include "hybridgen/core/model_config.h"

namespace hybridgen {

/// What is known of a layer, the better first.
enum class LossKind : std::uint8_t {
  kNone,       ///< every token was attended to
  kExact,      ///< all were scored, by the query of the softmax
  kEstimated,  ///< all were scored, but by a guessed query or a proxy of the keys
  kUnknown,    ///< not all were scored
};

/// Of a request in a step: the mean over layers and query heads.
struct StepLoss {
  LossKind kind = LossKind::kNone;  ///< the worst of its layers
  double mass = 0.0;                ///< in [0, 1] unless it is unknown
};

/// Of a request in those of its steps where it is known.
struct LossSum {
  std::int64_t measured = 0;  ///< steps that left tokens out, by how much
  std::int64_t complete = 0;  ///< steps that left none out
  std::int64_t unknown = 0;
  double sum = 0.0;
  double largest = 0.0;
  bool is_estimated = false;

  void add(const StepLoss& step);
  /// Steps that a mean is over. Where nothing is known of some, those before them in which there
  /// was nothing to leave out say nothing of the text.
  std::int64_t steps() const { return unknown == 0 ? measured + complete : measured; }
};

/// Share of the second of two log-sum-exps in both.
double share_of_second(double first, double second);

/// Of the rows of a micro-batch.
class LostMass {
 public:
  /// `has_selector`: a method without one scores no tokens, and needs no memory for their sums.
  LostMass(const ModelConfig& config,
           const DeviceContext& device,
           std::int64_t rows,
           bool has_selector);
  /// Of a row: of the device, and of the host, which has what is the device's, too.
  static std::int64_t device_bytes(const ModelConfig& config);
  static std::int64_t host_bytes(const ModelConfig& config) { return 2 * device_bytes(config); }

  /// Forgets the step before.
  void begin_step();
  /// Where the host leaves a row's log-sum-exp of what is not chosen, float32 [H].
  float* unchosen(std::int64_t layer, std::int64_t row);
  /// Where merge() leaves that of what is, float32 [H] on the device; of all rows of a layer one
  /// behind the other.
  at::Tensor* merged(std::int64_t layer, std::int64_t row);
  void note(std::int64_t layer, std::int64_t row, LossKind kind);
  /// Starts the copy to the host on the current stream, of all layers and rows; none where nothing
  /// was merged for it or the device is the host.
  void send();
  /// Once the host has waited for the device.
  StepLoss of(std::int64_t row) const;

 private:
  std::size_t index(std::int64_t layer, std::int64_t row) const {
    return static_cast<std::size_t>(layer * rows_ + row);
  }

  std::int64_t num_layers_;
  std::int64_t num_heads_;
  std::int64_t rows_;
  at::Tensor merged_;                    ///< [L, B, H] on the device
  at::Tensor host_merged_;               ///< the same tensor on a CPU device
  std::vector<at::Tensor> merged_rows_;  ///< views of it
  std::vector<float> unchosen_;          ///< [L, B, H]
  std::vector<LossKind> kinds_;          ///< [L, B]
};

}  // namespace hybridgen
