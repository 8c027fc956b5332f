// SPDX-License-Identifier: Apache-2.0
// What the three words of a composition mean together, as a table: each of the 36 triples is one
// kind of work or is refused; and what a method may do with it.
#include "hybridgen/methods/host_work.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"

namespace hybridgen {
namespace {

const std::vector<std::string> kQueries = {"none", "exact", "guessed"};
const std::vector<std::string> kPayloads = {
    "nothing", "logits_and_values", "keys_and_values", "partial_attention"};
const std::vector<std::string> kChoices = {"all", "selector", "partial_keys"};

const ByPlanner kPlanner{TokenCount::share(0.2)};

HostQuery query_named(const std::string& name) {
  return name == "none"    ? HostQuery::kNone
         : name == "exact" ? HostQuery::kExact
                           : HostQuery::kGuessed;
}

struct Case {
  std::string payload;
  std::string choice;
  bool needs_query;
  HostWork (*work)(HostQuery query);
};

const std::vector<Case> kCases = {
    {"nothing", "all", false, [](HostQuery) { return HostWork{Nothing{}}; }},
    {"nothing", "selector", false, [](HostQuery) { return HostWork{Nothing{}}; }},
    {"nothing", "partial_keys", false, [](HostQuery) { return HostWork{Nothing{}}; }},
    {"logits_and_values",
     "selector",
     true,
     [](HostQuery query) { return HostWork{Score{query, BySelectors{}}}; }},
    {"logits_and_values",
     "partial_keys",
     true,
     [](HostQuery query) { return HostWork{Score{query, kPlanner}}; }},
    {"keys_and_values",
     "all",
     false,
     [](HostQuery query) { return HostWork{Fetch{query, AllTokens{}}}; }},
    // A selector that plans before the logits needs no query: check_composition knows the strategy.
    {"keys_and_values",
     "selector",
     false,
     [](HostQuery query) { return HostWork{Fetch{query, BySelectors{}}}; }},
    {"keys_and_values",
     "partial_keys",
     true,
     [](HostQuery query) { return HostWork{Fetch{query, kPlanner}}; }},
    {"partial_attention",
     "all",
     true,
     [](HostQuery query) { return HostWork{Attend{query, AllTokens{}}}; }},
    {"partial_attention",
     "selector",
     true,
     [](HostQuery query) { return HostWork{Attend{query, BySelectors{}}}; }},
    {"partial_attention", "partial_keys", true, [](HostQuery query) {
       return HostWork{Attend{query, kPlanner}};
     }}};

std::string refusal(const std::string& query,
                    const std::string& payload,
                    const std::string& choice) {
  try {
    parse_host_work(query, payload, choice);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(HostWork, IsWhatTheThreeWordsMeanOrARefusal) {
  for (const std::string& query : kQueries) {
    for (const std::string& payload : kPayloads) {
      for (const std::string& choice : kChoices) {
        SCOPED_TRACE(query + ", " + payload + ", " + choice);
        const auto found = std::ranges::find_if(kCases, [&](const Case& each) {
          return each.payload == payload && each.choice == choice;
        });
        if (found == kCases.end()) {
          ASSERT_EQ(payload, "logits_and_values");
          ASSERT_EQ(choice, "all");
          EXPECT_NE(refusal(query, payload, choice), "");
        } else if (found->needs_query && query == "none") {
          EXPECT_EQ(refusal(query, payload, choice),
                    "[composition] the host needs a query and gets none; allowed: query exact or "
                    "guessed");
        } else {
          EXPECT_EQ(parse_host_work(query, payload, choice), found->work(query_named(query)));
        }
      }
    }
  }
}

TEST(HostWork, NamesAWordThatItDoesNotKnow) {
  EXPECT_EQ(refusal("maybe", "nothing", "all"),
            "[composition] query is 'maybe'; allowed: none, exact, guessed");
  EXPECT_EQ(refusal("none", "keys", "all"),
            "[composition] payload is 'keys'; allowed: nothing, logits_and_values, "
            "keys_and_values, partial_attention");
  EXPECT_EQ(refusal("none", "nothing", "some"),
            "[composition] choice is 'some'; allowed: all, selector, partial_keys");
}

TEST(HostWork, SaysWhichQueryItNeedsWhoChoosesAndWhetherKIsSent) {
  struct Answers {
    HostWork work;
    HostQuery query;
    bool chooses;
    bool sends_k;
  };
  for (const Answers& each : std::vector<Answers>{
           {Nothing{}, HostQuery::kNone, false, false},
           {FetchKeys{}, HostQuery::kNone, false, false},
           {Fetch{HostQuery::kNone, AllTokens{}}, HostQuery::kNone, false, false},
           {Fetch{HostQuery::kGuessed, BySelectors{}}, HostQuery::kGuessed, true, true},
           {Fetch{HostQuery::kGuessed, kPlanner}, HostQuery::kGuessed, true, false},
           {Score{HostQuery::kExact, BySelectors{}}, HostQuery::kExact, true, true},
           {Attend{HostQuery::kExact, AllTokens{}}, HostQuery::kExact, false, false},
           {Attend{HostQuery::kExact, BySelectors{}}, HostQuery::kExact, true, false}}) {
    SCOPED_TRACE(each.work.index());
    EXPECT_EQ(query_of(each.work), each.query);
    EXPECT_EQ(chooses(each.work), each.chooses);
    EXPECT_EQ(sends_k(each.work), each.sends_k);
  }
}

Method streaming(HostWork work) {
  Method method;
  method.name = "streaming";
  method.residency = Residency::kWindow;
  method.work = std::move(work);
  method.key_layout = natural_key_layout(method);
  return method;
}

TEST(Composition, EarlyWorkCountsOnlyWhereThereAreEarlyLayers) {
  Method method = streaming(Fetch{HostQuery::kNone, AllTokens{}});
  EXPECT_NO_THROW(check_composition(method));
  method.first_layer = 1;
  EXPECT_THROW(check_composition(method), ConfigError);
  method.early_work = method.work;
  EXPECT_NO_THROW(check_composition(method));
}

TEST(Composition, APlannersChoiceNeedsAPlanner) {
  Method method = streaming(Fetch{HostQuery::kExact, kPlanner});
  EXPECT_THROW(check_composition(method), ConfigError);
  method.parts = {{.role = PartRole::kPlanner, .make = {}}};
  EXPECT_NO_THROW(check_composition(method));
}

TEST(Composition, PlacesOfRetainedTokensNeedSomebodyWhoRetains) {
  Method method;
  method.name = "shifted";
  EXPECT_NO_THROW(check_composition(method));
  for (const PositionMode positions : {PositionMode::kCacheIndex, PositionMode::kClamped}) {
    method.positions = positions;
    EXPECT_THROW(check_composition(method), ConfigError);
  }
  method.parts = {{.role = PartRole::kRetention, .make = {}}};
  EXPECT_NO_THROW(check_composition(method));
}

TEST(Composition, OnlyAHostPlacementLimitsTheHostsTokens) {
  Method method = streaming(Fetch{HostQuery::kNone, AllTokens{}});
  const auto half = [](const RequestShape& request) { return request.max_tokens / 2; };
  method.parts = {{.role = PartRole::kListener, .make = {}, .host_limit = half}};
  EXPECT_THROW(check_composition(method), ConfigError);
  method.parts.front().role = PartRole::kHostPlacement;
  EXPECT_NO_THROW(check_composition(method));
}

TEST(Composition, KeysThatAreShippedWholeLieInRows) {
  Method method = streaming(Fetch{HostQuery::kNone, AllTokens{}});
  method.key_layout = KeyLayout::kBlocked;
  EXPECT_THROW(check_composition(method), ConfigError);
  method.key_layout = KeyLayout::kRows;
  EXPECT_NO_THROW(check_composition(method));
}

}  // namespace
}  // namespace hybridgen
