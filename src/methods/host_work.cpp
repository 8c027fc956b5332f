// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/methods/host_work.h"

#include <array>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

template <typename... Functions>
struct Overloaded : Functions... {
  using Functions::operator()...;
};

TokenChoice widened(const SomeTokens& choice) {
  return std::visit([](const auto& who) { return TokenChoice{who}; }, choice);
}

enum class Payload : std::uint8_t { kNothing, kLogitsAndValues, kKeysAndValues, kPartialAttention };
enum class Choice : std::uint8_t { kAll, kSelector, kPartialKeys };

constexpr std::array kQueries = {std::pair{"none", HostQuery::kNone},
                                 std::pair{"exact", HostQuery::kExact},
                                 std::pair{"guessed", HostQuery::kGuessed}};
constexpr std::array kPayloads = {std::pair{"nothing", Payload::kNothing},
                                  std::pair{"logits_and_values", Payload::kLogitsAndValues},
                                  std::pair{"keys_and_values", Payload::kKeysAndValues},
                                  std::pair{"partial_attention", Payload::kPartialAttention}};
constexpr std::array kChoices = {std::pair{"all", Choice::kAll},
                                 std::pair{"selector", Choice::kSelector},
                                 std::pair{"partial_keys", Choice::kPartialKeys}};

template <typename Enum, std::size_t N>
Enum parse(const char* part,
           const std::string& word,
           const std::array<std::pair<const char*, Enum>, N>& words) {
  std::string allowed;
  for (const auto& [text, value] : words) {
    if (word == text) {
      return value;
    }
    allowed += (allowed.empty() ? "" : ", ") + std::string(text);
  }
  throw ConfigError(message("[composition] ", part, " is '", word, "'; allowed: ", allowed));
}

}  // namespace

HostQuery query_of(const HostWork& work) {
  return std::visit(Overloaded{[](const Nothing&) { return HostQuery::kNone; },
                               [](const FetchKeys&) { return HostQuery::kNone; },
                               [](const auto& other) { return other.query; }},
                    work);
}

TokenChoice choice_of(const HostWork& work) {
  return std::visit(Overloaded{[](const Nothing&) { return TokenChoice{}; },
                               [](const FetchKeys&) { return TokenChoice{}; },
                               [](const Score& score) { return widened(score.choice); },
                               [](const auto& other) { return other.choice; }},
                    work);
}

bool chooses(const HostWork& work) { return !std::holds_alternative<AllTokens>(choice_of(work)); }

bool sends_k(const HostWork& work) {
  return !is<Attend>(work) && std::holds_alternative<BySelectors>(choice_of(work));
}

HostWork parse_host_work(const std::string& query,
                         const std::string& payload,
                         const std::string& choice) {
  const HostQuery when = parse("query", query, kQueries);
  const Payload what = parse("payload", payload, kPayloads);
  const Choice whose = parse("choice", choice, kChoices);
  if (what == Payload::kNothing) {
    return Nothing{};
  }
  // With a selector that chooses before the logits, and keys to send, no query is needed.
  const bool scores = what != Payload::kKeysAndValues || whose == Choice::kPartialKeys;
  if (scores && when == HostQuery::kNone) {
    throw ConfigError(
        "[composition] the host needs a query and gets none; allowed: query exact or guessed");
  }
  if (what == Payload::kLogitsAndValues && whose == Choice::kAll) {
    throw ConfigError(
        "[composition] logits of all tokens without a selector; allowed: choice selector with "
        "k='all', or payload partial_attention");
  }
  const SomeTokens some = whose == Choice::kPartialKeys
                              ? SomeTokens{ByPlanner{TokenCount::share(0.2)}}
                              : SomeTokens{BySelectors{}};
  if (what == Payload::kLogitsAndValues) {
    return Score{when, some};
  }
  const TokenChoice any = whose == Choice::kAll ? TokenChoice{AllTokens{}} : widened(some);
  return what == Payload::kKeysAndValues ? HostWork{Fetch{when, any}} : HostWork{Attend{when, any}};
}

}  // namespace hybridgen
