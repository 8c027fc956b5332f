// SPDX-License-Identifier: Apache-2.0
// How a method says which state it keeps per request: a list of factories.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "hybridgen/core/model_config.h"
#include "hybridgen/core/types.h"
#include "hybridgen/kvcache/kv_part.h"
#include "hybridgen/selection/retention_policy.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen {

class DeviceContext;
struct NumaPart;

/// What a request's parts may depend on.
struct RequestShape {
  std::int64_t request_id = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;  ///< prompt plus generated tokens
  std::uint64_t content = 0;    ///< content_of the prompt: what a method's own draws depend on
};

/// What a part is made for.
struct PartContext {
  const ModelConfig& config;
  DType dtype = DType::kFloat32;  ///< of K and V
  RequestShape request;
  std::int64_t prompt_capacity = 0;  ///< tokens that the device holds while the prompt is read
  std::int64_t max_offloaded = 0;    ///< n_c at most

  // Where it lies. Only when it is made, not when its bytes are asked for.
  const DeviceContext* device = nullptr;
  int numa_node = -1;
  const std::vector<NumaPart>* numa_parts = nullptr;  ///< nodes of KV heads; null: numa_node
};

struct PartBytes {
  std::int64_t device = 0;
  std::int64_t host = 0;
};

/// What a part is asked, beside hearing what happens. A request has one of each but listeners.
enum class PartRole : std::uint8_t {
  kListener,       ///< nothing: any KvPart
  kSelector,       ///< TokenSelector, Post-QKT
  kPreSelector,    ///< TokenSelector, Pre-QKT
  kPlanner,        ///< TokenPlanner
  kKeyProxy,       ///< KeyProxy
  kHostPlacement,  ///< HostPlacement
  kRetention,      ///< RetentionPolicy
  kPromptScores,   ///< PromptScores
  kKeptValues,     ///< KeptValues
};

struct PartFactory {
  PartRole role = PartRole::kListener;
  /// Of the class that the role names. Called once per request; a retention policy's once more, for
  /// its budget.
  std::function<std::unique_ptr<KvPart>(const PartContext&)> make;
  /// Memory of each tier, which admission reckons with; empty: nothing worth counting.
  std::function<PartBytes(const PartContext&)> required_bytes{};
  /// Whether a part of it ever reads softmax weights of decode steps, for admission too: they take
  /// memory where the device is not the host. A part that reads them though this says no does get
  /// them.
  bool wants_decode_weights = false;
  /// Of a selector: TokenSelector::says_how_many(), for admission.
  bool says_how_many = false;
  /// Tokens that the host may hold at most, for a HostPlacement; empty: all that leave the device.
  std::function<std::int64_t(const RequestShape&)> host_limit{};
};

using RetentionFactory = std::function<std::unique_ptr<RetentionPolicy>(
    const RetentionShape& shape, const RequestShape& request)>;

/// A selector by its own strategy's role.
PartFactory selector_part(SelectionStrategy strategy,
                          SelectorFactory make,
                          bool wants_decode_weights = true,
                          bool says_how_many = false);
/// A selector by its name in the registry.
PartFactory named_selector_part(SelectionStrategy strategy, const std::string& name);
/// Who takes tokens until they have `mass` of the offloaded ones' softmax: make_mass_selector().
PartFactory mass_selector_part(double mass);
PartFactory retention_part(RetentionFactory make, bool wants_weights = true);

/// The first factory of a role; null if there is none.
const PartFactory* find_part(const std::vector<PartFactory>& parts, PartRole role);

}  // namespace hybridgen
