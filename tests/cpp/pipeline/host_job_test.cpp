// SPDX-License-Identifier: Apache-2.0
// The job that each kind of work means for a request, as a table.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "pipeline/make_host_job.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kOffloaded = 12;

/// A request of a method with 12 tokens on the host and K = 5.
struct Request {
  explicit Request(Method of)
      : method(std::move(of)),
        plan(
            plan_request(model->config(), DType::kFloat32, true, method, attended, {0, 20, 30}, 8)),
        state(*model, method, attended, plan, budgets, tiers, /*numa_node=*/-1) {
    state.tokens.append(20);
    state.tokens.offload({0, kOffloaded});
  }

  std::shared_ptr<DecoderModel> model = testing::tiny_model();
  Method method;
  AttendedTokens attended{TokenCount::count(5), std::nullopt};
  RequestPlan plan;
  Budgets budgets;
  TraceRecorder trace;
  TierStatistics tier_statistics;
  KvTiers tiers{KvPlacement::kSemantic, {}, with_room(budgets), trace, tier_statistics};
  RequestState state;

 private:
  static Budgets& with_room(Budgets& budgets) {
    budgets.add(TierKind::kDevice, std::int64_t{1} << 30, "device");
    budgets.add(TierKind::kDram, std::int64_t{1} << 30, "dram");
    return budgets;
  }
};

EngineOptions hybrid(QueryMode query,
                     SelectionStrategy strategy,
                     const std::string& pre_selector = "sinks_recent") {
  EngineOptions options = testing::options("hybridgen");
  options.hybridgen.query.mode = query;
  options.hybridgen.strategy = strategy;
  if (strategy == SelectionStrategy::kPreQkt) {
    options.hybridgen.pre_selector = pre_selector;
  }
  options.hybridgen.k = TokenCount::count(5);
  return options;
}

EngineOptions with(const std::string& method, const char* name, OptionValue value) {
  EngineOptions options = testing::options(method);
  options.method_config[name] = std::move(value);
  return options;
}

constexpr auto kPost = SelectionStrategy::kPostQkt;
constexpr auto kPre = SelectionStrategy::kPreQkt;

enum class Who : std::uint8_t { kEvery, kDevice, kPlanned, kSelected };  // as in Chooser

struct Case {
  std::string name;
  EngineOptions options;
  std::int64_t layer;
  Payload payload;
  Who who;
  std::int64_t num_chosen;  ///< before the device plans
  bool only_copies;
};

std::vector<Case> cases() {
  return {
      {"flexgen",
       testing::options("flexgen"),
       0,
       Payload::kKeysAndValues,
       Who::kEvery,
       kOffloaded,
       true},
      {"flexgen_sparse",
       with("flexgen", "attn_sparsity", 0.5),
       0,
       Payload::kKeys,
       Who::kEvery,
       kOffloaded,
       true},
      {"moe_lightning",
       testing::options("moe_lightning"),
       0,
       Payload::kPartialAttention,
       Who::kEvery,
       kOffloaded,
       false},
      {"infinigen_early",
       testing::options("infinigen"),
       1,
       Payload::kKeysAndValues,
       Who::kEvery,
       kOffloaded,
       true},
      {"infinigen",
       testing::options("infinigen"),
       2,
       Payload::kKeysAndValues,
       Who::kDevice,
       kOffloaded,
       true},
      {"hgca",
       testing::options("hgca"),
       0,
       Payload::kPartialAttention,
       Who::kPlanned,
       kOffloaded,
       false},
      {"exact",
       hybrid(QueryMode::kExact, kPost),
       3,
       Payload::kLogitsAndValues,
       Who::kSelected,
       5,
       false},
      {"rescored_early",
       hybrid(QueryMode::kRescore, kPost),
       1,
       Payload::kLogitsAndValues,
       Who::kSelected,
       5,
       false},
      {"rescored",
       hybrid(QueryMode::kRescore, kPost),
       2,
       Payload::kKeysAndValues,
       Who::kSelected,
       5,
       false},
      {"planned",
       hybrid(QueryMode::kSpeculative, kPre),
       2,
       Payload::kLogitsAndValues,
       Who::kPlanned,
       5,
       false},
      {"planned_by_partial_keys",
       hybrid(QueryMode::kSpeculative, kPre, "partial_keys"),
       2,
       Payload::kLogitsAndValues,
       Who::kDevice,
       5,
       false},
      {"rescored_by_partial_keys",
       hybrid(QueryMode::kRescore, kPre, "partial_keys"),
       2,
       Payload::kKeysAndValues,
       Who::kDevice,
       5,
       true},
  };
}

class HostJobOf : public ::testing::TestWithParam<Case> {};

TEST_P(HostJobOf, SaysWhatIsSentWhoChoosesAndHowMany) {
  const Case& expected = GetParam();
  Request request(make_method(expected.options));
  const HostJob job =
      host_job(request.state, expected.layer, request.method.work_of(expected.layer));
  EXPECT_EQ(job.payload, expected.payload);
  EXPECT_EQ(job.chooser.index(), static_cast<std::size_t>(expected.who));
  EXPECT_EQ(job.num_offloaded, kOffloaded);
  EXPECT_EQ(job.num_chosen, expected.num_chosen);
  EXPECT_EQ(job.only_copies(), expected.only_copies);
  EXPECT_EQ(job.is_shared(), expected.who != Who::kSelected);
  EXPECT_EQ(job.store, request.state.host.get());
  EXPECT_EQ(job.query, nullptr);
  EXPECT_EQ(job.new_key, nullptr);
  // Layers take turns with the staging.
  EXPECT_EQ(job.buffers.merged, request.state.staging_of(expected.layer).buffers().merged);
}

INSTANTIATE_TEST_SUITE_P(Methods, HostJobOf, ::testing::ValuesIn(cases()), [](const auto& each) {
  return each.param.name;
});

TEST(HostJob, AsksThePlannerForKOnlyWhereASelectorWouldChoose) {
  Request own(make_method(testing::options("infinigen")));
  const HostJob planned = host_job(own.state, 2, own.method.work);
  EXPECT_EQ(std::get<ChosenOnDevice>(planned.chooser).wanted, std::nullopt);
  Request steered(make_method(hybrid(QueryMode::kRescore, kPre, "partial_keys")));
  const HostJob k = host_job(steered.state, 2, steered.method.work);
  EXPECT_EQ(std::get<ChosenOnDevice>(k.chooser).wanted, 5);
}

TEST(HostJob, ScansAProxyUnlessEveryTokenWouldBeACandidate) {
  EngineOptions options = hybrid(QueryMode::kExact, kPost);
  options.hybridgen.scoring = Scoring::kInt8;
  for (const auto& [per_k, candidates] : {std::pair{1.5, 8}, {2.0, 10}, {2.4, 0}, {9.0, 0}}) {
    options.hybridgen.candidates_per_k = per_k;
    Request request(make_method(options));
    const HostJob job = host_job(request.state, 0, request.method.work_of(0));
    ASSERT_NE(job.selection(), nullptr);
    EXPECT_EQ(job.selection()->proxy != nullptr, candidates > 0) << per_k;
    EXPECT_EQ(job.selection()->num_candidates, candidates) << per_k;
  }
}

}  // namespace
}  // namespace hybridgen
