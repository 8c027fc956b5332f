// SPDX-License-Identifier: Apache-2.0
// A method is a value: where old tokens live, which query the host needs, when tokens are chosen,
// what crosses the link, how results merge and what is dropped for good. The pipeline reads it and
// knows no method by name. One file per method in src/methods builds its value from the engine's
// options.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/selection/retention_policy.h"
#include "hybridgen/selection/token_selector.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/pool_eviction.h"
#include "kvcache/scoring_shadow.h"

namespace hybridgen {

/// Which tokens have K and V on the device between steps.
enum class Residency : std::uint8_t {
  kAll,       ///< every token
  kWindow,    ///< the newest ones; older ones are on the host
  kRetained,  ///< a fixed number that a retention policy keeps; the others are gone
  kNone,      ///< none: the host holds and attends to every token
};

/// What the host sends for one (request, layer).
enum class PayloadKind : std::uint8_t {
  kNothing,
  kLogitsAndValues,  ///< of the chosen tokens: one softmax on the device
  kKeysAndValues,    ///< of the chosen tokens: the device computes their logits too
  /// Keys of all offloaded tokens, then values of those with the largest weights: one softmax over
  /// all tokens, of which the others' share is left out (FlexGen's sparse attention).
  kKeysThenValues,
  kPartialAttention,  ///< output and natural log-sum-exp over the chosen tokens: merged by them
};

/// Which query a host job needs; this alone decides when the job may start.
enum class HostQuery : std::uint8_t {
  kNone,     ///< hidden behind the layer before, like a prefetch
  kExact,    ///< the layer's own: hidden behind the layer's resident logits only
  kGuessed,  ///< projected from the input of the layer before: hidden behind that layer
};

/// Who chooses among the offloaded tokens.
enum class HostChoice : std::uint8_t {
  kAll,          ///< nobody: all of them
  kSelector,     ///< the request's selector, before or after the logits are known
  kPartialKeys,  ///< the device, by guessed logits over a few columns of every key
};

/// What the host does in one layer.
struct LayerRule {
  HostQuery query = HostQuery::kExact;
  PayloadKind payload = PayloadKind::kNothing;
  HostChoice choice = HostChoice::kAll;
  friend bool operator==(const LayerRule&, const LayerRule&) = default;
};

/// Where a decode step's tokens stand for rotary or learned positions.
enum class PositionMode : std::uint8_t {
  kOriginal,    ///< in the text
  kCacheIndex,  ///< in the retained cache: keys are stored un-rotated (rotary models)
  kClamped,     ///< in the text, but never beyond the budget (learned positions)
};

/// Name of the Pre-QKT choice that has no part on the host: the device plans by partial keys.
inline constexpr const char* kPartialKeysSelector = "partial_keys";

/// InfiniGen's partial keys: which columns, how many tokens.
struct PartialKeyOptions {
  double column_share = 0.2;                      ///< r: columns of every key that are kept
  double alpha = 4.0;                             ///< tokens within alpha of the best guess count
  TokenCount max_fetch = TokenCount::share(0.2);  ///< of the offloaded tokens, at most
};

/// InfiniGen's limit on tokens in host memory.
struct PoolLimit {
  double capacity = 1.0;  ///< share of a request's tokens (prompt and new), >= its prompt
  PoolPolicy policy = PoolPolicy::kCounter;
};

struct OptionClass;

/// What a per-request part may depend on.
struct RequestShape {
  std::int64_t request_id = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;  ///< prompt plus generated tokens
  std::uint64_t content = 0;    ///< content_of the prompt: what a method's own draws depend on
};

/// The same number for the same prompt, in every engine, call and process.
std::uint64_t content_of(std::span<const std::int64_t> prompt);

using RetentionFactory = std::function<std::unique_ptr<RetentionPolicy>(
    const RetentionShape& shape, const RequestShape& request)>;

struct Method {
  std::string name;
  /// Options, the engine's and its own, that these settings leave unread, and why: refuse_unread.
  std::map<std::string, std::string> unread;
  Residency residency = Residency::kAll;

  LayerRule rule;                ///< of most layers
  LayerRule early_rule;          ///< of layers before `first_layer`
  std::int64_t first_layer = 0;  ///< first layer of `rule`
  GuessNorm guess_norm = GuessNorm::kNext;
  GuessSource guess_source = GuessSource::kNextWeights;

  /// Window of a request whose user set none; empty: as many tokens as fit.
  std::function<std::int64_t(const RequestShape&)> window;
  std::int64_t eviction_block = 1;  ///< tokens leave the window in multiples of this

  SelectionStrategy strategy = SelectionStrategy::kPostQkt;
  SelectorFactory selector;                  ///< Post-QKT; may be empty
  SelectorFactory pre_selector;              ///< Pre-QKT; may be empty
  bool pre_selects_by_partial_keys = false;  ///< Pre-QKT on the device instead of pre_selector
  PartialKeyOptions partial_keys;
  /// Low-precision copy of the keys that Post-QKT scans; the best `candidates_per_k` * K of a query
  /// head then get exact logits. None: it scans the keys themselves. For selectors that choose the
  /// largest of the logits they are given.
  std::optional<ShadowPrecision> shadow;
  double candidates_per_k = 1.0;
  std::optional<PoolLimit> pool;
  double value_share = 1.0;  ///< kKeysThenValues: of all tokens but the new one

  RetentionFactory retention;  ///< kRetained only
  std::optional<KeyformerScore>
      prompt_score;               ///< of the prompt's rows; none: plain softmax weights
  bool retained_on_host = false;  ///< stream the retained tokens every step
  PositionMode positions = PositionMode::kOriginal;
  std::string position_modes = "original";  ///< what the method's users may ask for

  std::int64_t micro_batches = 1;  ///< at least so many, as long as there are requests for them
  std::int64_t lookahead = 0;      ///< micro-batches whose attention inputs run ahead; 0: all

  const LayerRule& rule_of(std::int64_t layer) const {
    return layer < first_layer ? early_rule : rule;
  }
  /// Whether tokens ever live on the host.
  bool offloads() const {
    return residency == Residency::kWindow || residency == Residency::kNone ||
           (residency == Residency::kRetained && retained_on_host);
  }
  /// Keys are scanned by the host (blocks) or shipped and read row by row.
  KeyLayout key_layout = KeyLayout::kBlocked;
  /// Whether any layer's host job uses the partial keys.
  bool uses_partial_keys() const {
    return pre_selects_by_partial_keys || rule.choice == HostChoice::kPartialKeys;
  }
};

/// What tables say about a method.
struct MethodInfo {
  std::string name;
  std::string class_name;  ///< of its options in Python
  std::string summary;
  std::string attention;  ///< "device", "host" or "both"
  std::string timing;     ///< when tokens are chosen: "none", "pre", "post", "state" or "scheduled"
  std::string exact_when;
  std::string drops;  ///< what is lost for good
  std::string link;   ///< what crosses it, per layer and step
  std::vector<OptionInfo> tunables;
  /// Options of the engine, beyond the method's own ones, that change what it does; of those in
  /// selective_options().
  std::vector<std::string> reads;
};

/// The method `options.method` built from `options`. ConfigError for an unknown name (with the
/// nearest), an unknown or impossible value in options.method_config.
Method make_method(const EngineOptions& options);

/// ConfigError for parts that do not go together; what a user composes may not.
void check_composition(const Method& method);

/// Options of the engine that not every method reads, by the names in EngineOptions.
std::vector<std::string> selective_options();
/// Those that a composition reads: they follow from its parts.
std::vector<std::string> options_read_by(const Method& composition);
/// ConfigError naming every option, the engine's or the method's own, that differs from its default
/// and that the method does not read: what a user asked for is done or refused.
void refuse_unread(const Method& method, const EngineOptions& options);

/// How the host should hold the keys for what a method does with them.
KeyLayout natural_key_layout(const Method& method);

/// What of `asked` applies to a method: nothing where no selector chooses what is sent, no change
/// of strategy where only one has a selector, and the method's own strategy to start with.
std::optional<SchedulerOptions> steering_of(const Method& method,
                                            const std::optional<SchedulerOptions>& asked);

/// The class of options of each method, in the order of list_methods.
std::vector<OptionClass> method_option_classes();

/// All methods in a fixed order.
std::vector<MethodInfo> list_methods();

}  // namespace hybridgen
