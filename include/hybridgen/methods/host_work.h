// SPDX-License-Identifier: Apache-2.0
// What the host does for one (request, layer), as one of a few alternatives that carry their own
// fields only. A job of any of them starts as soon as the query that it needs is there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "hybridgen/core/engine_options.h"

namespace hybridgen {

/// Which query a host job needs; this alone decides when the job may start.
enum class HostQuery : std::uint8_t {
  kNone,     ///< hidden behind the layer before, like a prefetch
  kExact,    ///< the layer's own: hidden behind the layer's resident logits only
  kGuessed,  ///< projected from the input of the layer before: hidden behind that layer
};

/// Who chooses among the offloaded tokens. Nobody: all of them take part.
struct AllTokens {
  friend bool operator==(const AllTokens&, const AllTokens&) = default;
};
/// K tokens, as the user set or the scheduler steers it: a selector by their logits (Post-QKT), or
/// a pre-selector or the device's planner before them (Pre-QKT).
struct BySelectors {
  friend bool operator==(const BySelectors&, const BySelectors&) = default;
};
/// The device's planner, as many as it finds worth it.
struct ByPlanner {
  TokenCount most = TokenCount::all();  ///< of the offloaded tokens, at most
  friend bool operator==(const ByPlanner&, const ByPlanner&) = default;
};
using TokenChoice = std::variant<AllTokens, BySelectors, ByPlanner>;
using SomeTokens = std::variant<BySelectors, ByPlanner>;

/// Sends nothing.
struct Nothing {
  friend bool operator==(const Nothing&, const Nothing&) = default;
};
/// Sends K and V: the device computes the logits, and one softmax over all tokens that take part.
struct Fetch {
  HostQuery query = HostQuery::kNone;
  TokenChoice choice;
  friend bool operator==(const Fetch&, const Fetch&) = default;
};
/// Sends K of all tokens; how many V follow KeptValues says.
struct FetchKeys {
  friend bool operator==(const FetchKeys&, const FetchKeys&) = default;
};
/// Sends logits, which it computes, and V: one softmax on the device.
struct Score {
  HostQuery query = HostQuery::kExact;
  SomeTokens choice;
  friend bool operator==(const Score&, const Score&) = default;
};
/// Sends the attention over the tokens, output and natural log-sum-exp: merged by them.
struct Attend {
  HostQuery query = HostQuery::kExact;
  TokenChoice choice;
  friend bool operator==(const Attend&, const Attend&) = default;
};
using HostWork = std::variant<Nothing, Fetch, FetchKeys, Score, Attend>;

HostQuery query_of(const HostWork& work);
TokenChoice choice_of(const HostWork& work);

template <typename Alternative>
bool is(const HostWork& work) {
  return std::holds_alternative<Alternative>(work);
}

/// Whether anybody chooses which tokens take part.
bool chooses(const HostWork& work);
/// Whether K says how many of them are sent, so that there is something to steer.
bool sends_k(const HostWork& work);

/// Whether rows of tokens are sent, as they lie on the host.
inline bool sends_rows(const HostWork& work) { return !is<Nothing>(work) && !is<Attend>(work); }

/// The work that a composition spells in three words: `query` ("none", "exact", "guessed"),
/// `payload` ("nothing", "logits_and_values", "keys_and_values", "partial_attention") and `choice`
/// ("all", "selector", "partial_keys"). ConfigError for a word that is none of these, and for those
/// that mean nothing together.
HostWork parse_host_work(const std::string& query,
                         const std::string& payload,
                         const std::string& choice);

}  // namespace hybridgen
