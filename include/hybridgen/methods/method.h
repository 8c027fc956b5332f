// SPDX-License-Identifier: Apache-2.0
// A method is a value: where old tokens live, which query the host needs, when tokens are chosen,
// what crosses the link, how results merge and what is dropped for good. The pipeline reads it and
// knows no method by name. One file per method in src/methods builds its value from the engine's
// options.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/core/kv_views.h"
#include "hybridgen/methods/host_work.h"
#include "hybridgen/parts/part_factory.h"

namespace hybridgen {

/// Which tokens have K and V on the device between steps.
enum class Residency : std::uint8_t {
  kAll,       ///< every token
  kWindow,    ///< the newest ones; older ones are on the host
  kRetained,  ///< a fixed number that a retention policy keeps; the others are gone
  kNone,      ///< none: the host holds and attends to every token
};

/// Where a decode step's tokens stand for rotary or learned positions.
enum class PositionMode : std::uint8_t {
  kOriginal,    ///< in the text
  kCacheIndex,  ///< in the retained cache: keys are stored un-rotated (rotary models)
  kClamped,     ///< in the text, but never beyond the budget (learned positions)
};

struct OptionClass;

/// The same number for the same prompt, in every engine, call and process.
std::uint64_t content_of(std::span<const std::int64_t> prompt);

/// Tokens that stay on the device, the newest ones.
struct WindowRule {
  /// Of a request whose user set no number; empty: as many as fit.
  std::function<std::int64_t(const RequestShape&)> tokens;
  std::int64_t block = 1;  ///< they leave in multiples of this
};

/// How micro-batches follow each other through the layers.
struct BatchOrder {
  std::int64_t micro_batches = 1;  ///< at least so many, as long as there are requests for them
  std::int64_t lookahead = 0;      ///< whose attention inputs run ahead; 0: all
};

struct Method {
  std::string name;
  /// Options, the engine's and its own, that these settings leave unread, and why: refuse_unread.
  std::map<std::string, std::string> unread;
  Residency residency = Residency::kAll;

  HostWork work;                 ///< of most layers
  HostWork early_work;           ///< of layers before `first_layer`
  std::int64_t first_layer = 0;  ///< first layer of `work`
  GuessNorm guess_norm = GuessNorm::kNext;
  GuessSource guess_source = GuessSource::kNextWeights;
  SelectionStrategy strategy = SelectionStrategy::kPostQkt;  ///< BySelectors: the first steps'

  /// State per request. Of the parts that choose tokens a request gets those that its strategies
  /// may ask; none of them if nothing ever leaves the device.
  std::vector<PartFactory> parts;

  WindowRule window;                           ///< kWindow
  KeyLayout key_layout = KeyLayout::kBlocked;  ///< scanned by the host, or shipped and read by rows
  /// Of rows on the host: the engine's options, which every method with such rows keeps.
  KvPrecision key_precision = KvPrecision::kFull;
  KvPrecision value_precision = KvPrecision::kFull;
  PositionMode positions = PositionMode::kOriginal;
  std::string position_modes = "original";  ///< what the method's users may ask for
  BatchOrder batches;

  const HostWork& work_of(std::int64_t layer) const {
    return layer < first_layer ? early_work : work;
  }
  bool has(PartRole role) const { return find_part(parts, role) != nullptr; }
  /// Whether somebody can choose before the logits.
  bool can_plan() const { return has(PartRole::kPreSelector) || has(PartRole::kPlanner); }
  /// Whether tokens ever live on the host.
  bool offloads() const {
    return residency == Residency::kWindow || residency == Residency::kNone || retains_on_host();
  }
  /// kRetained: the kept tokens live there, and stream back every step.
  bool retains_on_host() const { return residency == Residency::kRetained && !is<Nothing>(work); }
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

/// The class of options of each method of the library, in the order of list_methods.
std::vector<OptionClass> method_option_classes();

/// All methods: the library's own in a fixed order, then those that were registered.
std::vector<MethodInfo> list_methods();

using MethodFactory = std::function<Method(const EngineOptions& options)>;

/// Adds a method under `info.name`. ConfigError if the name is empty or one of the library's own; a
/// second registration of the same name replaces the first. Engines that exist keep what they have.
void register_method(MethodInfo info, MethodFactory make);

}  // namespace hybridgen
