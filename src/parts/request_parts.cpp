// SPDX-License-Identifier: Apache-2.0
#include "parts/request_parts.h"

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

template <typename Role>
void take(Role*& place, KvPart& part, const char* name) {
  auto* const own = dynamic_cast<Role*>(&part);
  if (own == nullptr || place != nullptr) {
    throw ConfigError(message("[method parts] a part of role ",
                              name,
                              own == nullptr ? " is of another class" : " is there already",
                              "; allowed: one part of each role but listeners, of the class that "
                              "the role names"));
  }
  place = own;
}

// Memory was planned by what the factory says.
void check_how_many(const PartFactory& factory, const TokenSelector& selector) {
  if (selector.says_how_many() != factory.says_how_many) {
    throw ConfigError(message("[method parts] selector \"",
                              selector.name(),
                              factory.says_how_many ? "\" does not say" : "\" says",
                              " how many tokens it takes, and its part says otherwise; allowed: "
                              "the same of both; add it by selector_part(), says_how_many=",
                              selector.says_how_many() ? "true" : "false"));
  }
}

}  // namespace

void RequestParts::add(const PartFactory& factory, const PartContext& context) {
  std::unique_ptr<KvPart> made = factory.make(context);
  KvPart& part = *made;
  switch (factory.role) {
    case PartRole::kListener:
      break;
    case PartRole::kSelector:
      take(selector, part, "selector");
      check_how_many(factory, *selector);
      break;
    case PartRole::kPreSelector:
      take(pre_selector, part, "pre_selector");
      break;
    case PartRole::kPlanner:
      take(planner, part, "planner");
      break;
    case PartRole::kKeyProxy:
      take(proxy, part, "key_proxy");
      break;
    case PartRole::kHostPlacement:
      take(placement, part, "host_placement");
      break;
    case PartRole::kRetention:
      take(retention, part, "retention");
      break;
    case PartRole::kPromptScores:
      take(prompt_scores, part, "prompt_scores");
      break;
    case PartRole::kKeptValues:
      take(kept_values, part, "kept_values");
      break;
  }
  all.push_back(std::move(made));
}

}  // namespace hybridgen
