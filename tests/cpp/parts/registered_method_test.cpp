// SPDX-License-Identifier: Apache-2.0
// A method of a user's own with state of its own, as one file: nothing else knows it. It keeps the
// newest tokens on the device and fetches from the host those that its own state has seen to
// matter, and the state is made, told and asked per request.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"
#include "kvcache/host_kv_store.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

// ---- The method: offloaded tokens are fetched whose keys are long, the newest first among equals.

/// What happened to the parts of all requests.
struct Seen {
  std::atomic<int> made{0};
  std::atomic<int> gone{0};
  std::atomic<std::int64_t> prompt_rows{0};
  std::atomic<std::int64_t> offloaded{0};
  std::atomic<std::int64_t> steps{0};
};
Seen seen;

/// Remembers the squared length of every offloaded key, per (layer, KV head): derived from keys
/// alone, on the host.
class LongKeys final : public TokenSelector {
 public:
  explicit LongKeys(const SelectorShape& shape)
      : shape_(shape), lengths_(static_cast<std::size_t>(shape.num_layers * shape.num_kv_heads)) {
    ++seen.made;
  }
  ~LongKeys() override { ++seen.gone; }
  LongKeys(const LongKeys&) = delete;
  LongKeys& operator=(const LongKeys&) = delete;

  std::string_view name() const override { return "long_keys"; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPreQkt; }
  PartState state() const override { return {.from_keys = true, .saved = false}; }

  void on_offload(std::int64_t layer,
                  std::int64_t kv_head,
                  TokenRange tokens,
                  const BlockedKeyView& keys) override {
    std::vector<float>& lengths = of(layer, kv_head);
    ASSERT_EQ(static_cast<std::int64_t>(lengths.size()), tokens.begin);
    const auto* data = static_cast<const float*>(keys.data);
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      const float* block = data + t / kKeyBlockTokens * shape_.head_dim * kKeyBlockTokens;
      float length = 0.0F;
      for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
        const float element = block[d * kKeyBlockTokens + t % kKeyBlockTokens];
        length += element * element;
      }
      lengths.push_back(length);
    }
    if (layer == 0 && kv_head == 0) {
      seen.offloaded += tokens.size();
    }
  }

  std::span<const std::int32_t> plan(const PlanContext& context,
                                     std::vector<std::int32_t>& scratch) const override {
    const std::vector<float>& lengths =
        lengths_[static_cast<std::size_t>(context.layer * shape_.num_kv_heads + context.kv_head)];
    scratch.clear();
    for (std::int32_t t = 0; t < context.num_offloaded; ++t) scratch.push_back(t);
    std::ranges::stable_sort(scratch, [&](std::int32_t a, std::int32_t b) {
      return lengths[static_cast<std::size_t>(a)] > lengths[static_cast<std::size_t>(b)];
    });
    scratch.resize(static_cast<std::size_t>(context.k));
    std::ranges::sort(scratch);
    return scratch;
  }

 private:
  std::vector<float>& of(std::int64_t layer, std::int64_t kv_head) {
    return lengths_[static_cast<std::size_t>(layer * shape_.num_kv_heads + kv_head)];
  }

  SelectorShape shape_;
  std::vector<std::vector<float>> lengths_;
};

/// Hears and decides nothing: what a method may count.
class Counter final : public KvPart {
 public:
  PartState state() const override { return {}; }
  void on_prompt_rows(const PromptRows& rows) override {
    seen.prompt_rows += rows.layer == 0 ? 1 : 0;
  }
  void end_step() override { ++seen.steps; }
};

MethodInfo long_keys_info() {
  MethodInfo info;
  info.name = "long_keys";
  info.summary = "offloaded tokens with the longest keys";
  info.tunables = {{.name = "window",
                    .type = "int",
                    .allowed = "an integer >= 1",
                    .meaning = "tokens on the device",
                    .default_value = 9}};
  info.reads = {"k"};
  return info;
}

Method long_keys_method(const EngineOptions& options) {
  const auto found = options.method_config.find("window");
  const auto window =
      found == options.method_config.end() ? std::int64_t{9} : *found->second.as<std::int64_t>();
  Method method;
  method.name = "long_keys";
  method.residency = Residency::kWindow;
  method.window.tokens = [window](const RequestShape&) { return window; };
  method.work = Fetch{HostQuery::kNone, BySelectors{}};
  method.early_work = method.work;
  method.strategy = SelectionStrategy::kPreQkt;
  method.parts = {
      selector_part(method.strategy,
                    [](const SelectorShape& shape) { return std::make_unique<LongKeys>(shape); }),
      {.role = PartRole::kListener,
       .make = [](const PartContext&) { return std::make_unique<Counter>(); }}};
  check_composition(method);
  return method;
}

// ---- What it does

using testing::generate;

EngineOptions options_of(TokenCount k) {
  EngineOptions options = testing::options("long_keys");
  options.hybridgen.k = k;
  return options;
}

class RegisteredMethod : public ::testing::Test {
 protected:
  void SetUp() override { register_method(long_keys_info(), long_keys_method); }
};

TEST_F(RegisteredMethod, EqualsFullAttentionIfItFetchesAllTokens) {
  const auto model = testing::tiny_model();
  Engine full(model, testing::options("full"));
  Engine own(model, options_of(TokenCount::all()));
  testing::expect_same(generate(own, testing::ragged_prompts(), 8),
                       generate(full, testing::ragged_prompts(), 8));
}

TEST_F(RegisteredMethod, KeepsStateForEachRequestAndHearsOfItsTokens) {
  const int made = seen.made;
  const int gone = seen.gone;
  const std::int64_t offloaded = seen.offloaded;
  const std::int64_t prompt_rows = seen.prompt_rows;
  const std::int64_t steps = seen.steps;
  const auto model = testing::tiny_model();
  const std::vector<std::vector<std::int64_t>> prompts = {testing::prompt(40, 1),
                                                          testing::prompt(30, 2)};
  {
    Engine engine(model, options_of(TokenCount::count(5)));
    const auto together = generate(engine, prompts, 6);
    EXPECT_EQ(seen.made - made, 2);
    EXPECT_EQ(seen.gone - gone, 2);
    EXPECT_EQ(seen.prompt_rows - prompt_rows, 2);       // one chunk each
    EXPECT_EQ(seen.steps - steps, 2 * 5);               // the prompt gives the first token
    EXPECT_EQ(seen.offloaded - offloaded, 36 + 26);     // 40 + 5 and 30 + 5 tokens, less 9 each
    for (std::size_t i = 0; i < prompts.size(); ++i) {  // and none of the other's
      Engine alone(model, options_of(TokenCount::count(5)));
      EXPECT_EQ(generate(alone, {prompts[i]}, 6).front(), together[i]);
    }
  }
}

TEST_F(RegisteredMethod, LeavesOutWhatItDoesNotFetch) {
  const auto model = testing::tiny_model();
  Engine full(model, testing::options("full"));
  Engine few(model, options_of(TokenCount::count(1)));
  EXPECT_NE(generate(few, {testing::prompt(60)}, 8), generate(full, {testing::prompt(60)}, 8));
}

TEST_F(RegisteredMethod, IsListedAndItsOptionsAreChecked) {
  const auto methods = list_methods();
  EXPECT_EQ(std::ranges::count(methods, std::string("long_keys"), &MethodInfo::name), 1);
  EngineOptions options = options_of(TokenCount::count(5));
  options.hybridgen.query.mode = QueryMode::kExact;
  EXPECT_THROW(make_method(options), ConfigError);  // which it does not read
  options.hybridgen.query = {};
  options.method_config["window"] = 20;
  EXPECT_EQ(make_method(options).window.tokens({}), 20);
}

TEST_F(RegisteredMethod, MayReplaceItselfButNoneOfTheLibrarysOwn) {
  const std::size_t count = list_methods().size();
  MethodInfo info = long_keys_info();
  info.summary = "another";
  register_method(info, long_keys_method);
  EXPECT_EQ(list_methods().size(), count);
  EXPECT_EQ(list_methods().back().summary, "another");
  for (const char* name : {"", "h2o", "hybridgen"}) {
    info.name = name;
    try {
      register_method(info, long_keys_method);
      FAIL() << name << " was taken";
    } catch (const ConfigError& error) {
      EXPECT_EQ(std::string(error.what()),
                message("[register_method] name is '",
                        name,
                        "'; allowed: any that is not one of the library's own"));
    }
  }
}

TEST(PartsOfAMethod, AreOfTheClassThatTheirRoleNames) {
  Method method = long_keys_method(options_of(TokenCount::count(5)));
  method.parts.back().role = PartRole::kPlanner;
  Engine engine(testing::tiny_model(), testing::options("full"), method);
  SamplingOptions sampling;
  sampling.max_tokens = 2;
  engine.add(testing::prompt(20), sampling);
  const std::vector<TokenEvent> events = engine.step();
  ASSERT_EQ(events.size(), 1U);
  ASSERT_NE(events.front().error, nullptr);
  try {
    std::rethrow_exception(events.front().error);
  } catch (const ConfigError& error) {
    EXPECT_TRUE(
        std::string(error.what())
            .starts_with("[method parts] a part of role planner is of another class; allowed: "))
        << error.what();
  }
}

}  // namespace
}  // namespace hybridgen
