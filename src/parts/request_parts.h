// SPDX-License-Identifier: Apache-2.0
// The parts of one request: a list of all that hear what happens to its tokens, and those of them
// that are asked.
#pragma once

#include <memory>
#include <vector>

#include "hybridgen/parts/part_factory.h"
#include "hybridgen/parts/part_roles.h"

namespace hybridgen {

struct RequestParts {
  std::vector<std::unique_ptr<KvPart>> all;

  // One of `all` each, or null.
  TokenSelector* selector = nullptr;
  TokenSelector* pre_selector = nullptr;
  TokenPlanner* planner = nullptr;
  KeyProxy* proxy = nullptr;
  HostPlacement* placement = nullptr;
  RetentionPolicy* retention = nullptr;
  PromptScores* prompt_scores = nullptr;
  KeptValues* kept_values = nullptr;

  /// Makes a part. ConfigError if it is not of the class that its role names, or the role is taken.
  void add(const PartFactory& factory, const PartContext& context);

  /// Calls tell(part) for each.
  template <typename Tell>
  void tell(const Tell& tell) const {
    for (const std::unique_ptr<KvPart>& part : all) {
      tell(*part);
    }
  }
};

}  // namespace hybridgen
