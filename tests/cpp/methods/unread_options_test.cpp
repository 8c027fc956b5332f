// SPDX-License-Identifier: Apache-2.0
// An option that the chosen method does not read is refused by name, never ignored.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using Change = std::function<void(EngineOptions&)>;

// Methods that retain tokens keep them on the device unless they are told otherwise.
Change on_host(const Change& change) {
  return [change](EngineOptions& options) {
    change(options);
    for (const char* name : {"streaming_llm", "h2o", "keyformer"}) {
      if (options.method == name) options.method_config["home"] = std::string("host");
    }
  };
}

// Every selective option, set to something that is not its default.
const std::map<std::string, Change>& changes() {
  static const std::map<std::string, Change> all = {
      {"query", [](EngineOptions& o) { o.hybridgen.query.mode = QueryMode::kSpeculative; }},
      {"query.first_layer", [](EngineOptions& o) { o.hybridgen.query.first_layer = 3; }},
      {"query.norm", [](EngineOptions& o) { o.hybridgen.query.norm = GuessNorm::kCurrent; }},
      {"query.source",
       [](EngineOptions& o) { o.hybridgen.query.source = GuessSource::kPreviousQuery; }},
      {"selector", [](EngineOptions& o) { o.hybridgen.selector = "h2o"; }},
      {"pre_selector", [](EngineOptions& o) { o.hybridgen.pre_selector = "sinks_recent"; }},
      {"strategy", [](EngineOptions& o) { o.hybridgen.strategy = SelectionStrategy::kPreQkt; }},
      {"k", [](EngineOptions& o) { o.hybridgen.k = TokenCount::count(5); }},
      {"mass", [](EngineOptions& o) { o.hybridgen.mass = 0.5; }},
      {"k_max", [](EngineOptions& o) { o.hybridgen.k_max = TokenCount::count(5); }},
      {"scheduler", [](EngineOptions& o) { o.hybridgen.scheduler.emplace(); }},
      {"scoring", [](EngineOptions& o) { o.hybridgen.scoring = Scoring::kInt8; }},
      {"candidates_per_k", [](EngineOptions& o) { o.hybridgen.candidates_per_k = 3.0; }},
      {"column_share", [](EngineOptions& o) { o.hybridgen.column_share = 0.9; }},
      {"device_tokens", [](EngineOptions& o) { o.device_tokens.count = 30; }},
      {"keys", on_host([](EngineOptions& o) { o.key_precision = KvPrecision::kInt8; })},
      {"values", on_host([](EngineOptions& o) { o.value_precision = KvPrecision::kInt4; })}};
  return all;
}

std::string refusal(const EngineOptions& options) {
  try {
    static_cast<void>(make_method(options));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

// The option that "query.norm" is a part of.
std::string whole_of(const std::string& name) { return name.substr(0, name.find('.')); }

TEST(UnreadOptions, HaveAChangeHereForEveryName) {
  std::set<std::string> changed;
  for (const auto& [name, change] : changes()) changed.insert(whole_of(name));
  const std::vector<std::string> names = selective_options();
  EXPECT_EQ(changed, std::set<std::string>(names.begin(), names.end()));
}

TEST(UnreadOptions, AreRefusedByNameByEveryMethodThatDoesNotReadThem) {
  for (const MethodInfo& info : list_methods()) {
    ASSERT_EQ(refusal(testing::options(info.name)), "") << info.name;
    for (const auto& [name, change] : changes()) {
      EngineOptions options = testing::options(info.name);
      change(options);
      const bool reads = std::ranges::find(info.reads, whole_of(name)) != info.reads.end();
      const bool is_its_own =
          name == "strategy" &&
          make_method(testing::options(info.name)).strategy == options.hybridgen.strategy;
      if (!reads && !is_its_own) {
        // A steered K is said as k=None, too.
        const std::string said = name == "scheduler" ? "k" : name;
        const std::string start = message("[method ", info.name, "] ", said, " is ");
        EXPECT_EQ(refusal(options).substr(0, start.size()), start);
        EXPECT_NE(refusal(options).find("; allowed: "), std::string::npos);
        EXPECT_NE(refusal(options).find("hybridgen"), std::string::npos);  // the way out
      } else if (info.name != "hybridgen") {
        EXPECT_EQ(refusal(options), "") << info.name << ", " << name;
      }
    }
  }
}

TEST(UnreadOptions, SayHowRowsLieOnAHostThatHoldsNone) {
  for (const char* method : {"streaming_llm", "h2o", "keyformer"}) {
    for (const char* name : {"keys", "values"}) {
      EngineOptions options = testing::options(method);
      changes().at(name)(options);
      EXPECT_EQ(refusal(options), "");
      options.method_config.erase("home");
      EXPECT_TRUE(refusal(options).starts_with(message("[method ", method, "] ", name, " is ")));
      EXPECT_NE(refusal(options).find("set home='host'"), std::string::npos) << refusal(options);
    }
  }
}

TEST(UnreadOptions, AreNoDefaultsForReadingAlike) {
  EngineOptions options = testing::options("full");
  options.hybridgen.k = TokenCount::larger_of(256, 0.1250000001);
  ASSERT_EQ(options.hybridgen.k.text(), TokenCount::usual().text());
  EXPECT_TRUE(refusal(options).starts_with("[method full] k is (256, 0.125); allowed: "));
}

TEST(UnreadOptions, AreNamedAllAtOnce) {
  EngineOptions options = testing::options("full");
  options.hybridgen.selector = "h2o";
  options.hybridgen.k = TokenCount::count(5);
  options.hybridgen.strategy = SelectionStrategy::kPreQkt;
  options.device_tokens.count = 3;
  EXPECT_EQ(refusal(options),
            "[method full] k is 5; allowed: 'auto', as full does not read it; leave it out, or use "
            "a method that reads it: hybridgen; the same holds for strategy, selector, "
            "device_tokens");
}

struct Unread {
  std::string name;
  Change change;  // leaves `name` without effect
  std::string reason;
};

TEST(UnreadOptions, OfHybridgenAreThoseThatAnotherOfItsOptionsLeavesWithoutEffect) {
  const auto exact = [](EngineOptions& o) { o.hybridgen.query.mode = QueryMode::kExact; };
  const auto before = [](EngineOptions& o) { o.hybridgen.strategy = SelectionStrategy::kPreQkt; };
  const auto nothing = [](EngineOptions&) {};
  for (const auto& [name, change, reason] : std::vector<Unread>{
           {"query.first_layer", exact, "guesses nothing"},
           {"query.norm", exact, "guesses nothing"},
           {"query.source", exact, "guesses nothing"},
           {"query.norm", changes().at("query.source"), "takes that query as it is"},
           {"pre_selector", nothing, "set strategy='pre' or k=None"},
           {"selector", before, "set strategy='post'"},
           {"scoring", before, "set strategy='post'"},
           {"scoring", changes().at("keys"), "the keys themselves lie in 8 or 4 bits"},
           {"candidates_per_k", nothing, "set scoring to 'int8' or 'int4'"},
           {"k", changes().at("scheduler"), "the scheduler steers K"},
           {"k_max", nothing, "it limits what mass takes"},
           {"k", changes().at("mass"), "mass says how many tokens count"},
           {"mass", changes().at("scheduler"), "the scheduler steers K"},
           {"strategy", changes().at("mass"), "mass needs the logits of all tokens"},
           {"selector", changes().at("mass"), "mass takes the largest logits"},
           {"scoring", changes().at("mass"), "a copy's scores say nothing exact of mass"}}) {
    EngineOptions options = testing::options("hybridgen");
    change(options);
    EXPECT_EQ(refusal(options), "") << name;
    changes().at(name)(options);
    const std::string found = refusal(options);
    EXPECT_NE(found.find(message("[method hybridgen] ", name, " is ")), std::string::npos) << found;
    EXPECT_NE(found.find(reason), std::string::npos) << found;
  }
  // Who may choose before and after reads both selectors.
  EngineOptions steered = testing::options("hybridgen");
  steered.hybridgen.scheduler.emplace();
  steered.hybridgen.selector = "h2o";
  steered.hybridgen.pre_selector = "sinks_recent";
  EXPECT_EQ(refusal(steered), "");
}

struct UnreadOwn {
  std::string method;
  std::string name;
  OptionValue value;       // not its default
  OptionValue by_default;  // maybe written as another type
  Change read;             // makes it count
  Change silence;          // leaves it without effect
  std::string reason;
};

TEST(UnreadOptions, OfAMethodsOwnAreRefusedUnlessTheyAreAtTheirDefaults) {
  const auto nothing = [](EngineOptions&) {};
  const auto before = changes().at("strategy");
  const auto window = changes().at("device_tokens");
  const auto share = [](EngineOptions& o) { o.device_tokens.share = 0.0; };
  const auto steered = [](EngineOptions& o) {
    o.hybridgen.scheduler.emplace();
    o.hybridgen.pre_selector = "sinks_recent";
  };
  const auto set = [](const char* name, const OptionValue& value) {
    return [=](EngineOptions& o) { o.method_config[name] = value; };
  };
  const std::int64_t whole = 7;
  for (const auto& [method, name, value, by_default, read, silence, reason] :
       std::vector<UnreadOwn>{
           {"hybridgen", "column_share", 0.9, 0.2, before, nothing, "set strategy='pre' or k=None"},
           {"hybridgen", "column_share", 0.9, 0.2, before, steered, "pre_selector='partial_keys'"},
           {"flexgen", "gpu_share", 0.9, std::int64_t{0}, nothing, window, "KVConfig"},
           {"flexgen", "gpu_share", 0.9, 0.0, nothing, share, "KVConfig"},
           {"hgca", "blocks", whole, std::int64_t{2}, nothing, window, "KVConfig"},
           {"streaming_llm", "window", whole, std::int64_t{1024}, nothing, window, "KVConfig"},
           {"keyformer", "seed", whole, std::int64_t{0}, nothing, set("noise", false), "noise"},
           {"infinigen",
            "policy",
            std::string("lru"),
            std::string("counter"),
            set("capacity", 0.5),
            nothing,
            "capacity"}}) {
    EngineOptions options = testing::options(method);
    options.method_config[name] = value;
    read(options);
    EXPECT_EQ(refusal(options), "") << method << ", " << name;

    options = testing::options(method);
    silence(options);
    options.method_config[name] = by_default;
    EXPECT_EQ(refusal(options), "") << method << ", " << name;
    options.method_config[name] = value;
    const std::string found = refusal(options);
    EXPECT_TRUE(found.starts_with(message("[method ", method, "] ", name, " is "))) << found;
    EXPECT_NE(found.find("; allowed: "), std::string::npos) << found;
    EXPECT_NE(found.find(reason), std::string::npos) << found;
  }
}

TEST(UnreadOptions, OfTheEngineAndOfTheMethodAreNamedTogether) {
  EngineOptions options = testing::options("keyformer");
  options.method_config = {{"noise", false}, {"seed", std::int64_t{3}}};
  options.hybridgen.k = TokenCount::count(5);
  const std::string found = refusal(options);
  EXPECT_TRUE(found.starts_with("[method keyformer] k is 5; allowed: ")) << found;
  EXPECT_TRUE(found.ends_with("; the same holds for seed")) << found;
}

TEST(UnreadOptions, OfACompositionFollowFromItsParts) {
  Method streamed;
  streamed.name = "mine";
  streamed.residency = Residency::kWindow;
  streamed.work = Fetch{HostQuery::kNone, AllTokens{}};
  streamed.early_work = streamed.work;
  EXPECT_EQ(options_read_by(streamed),
            (std::vector<std::string>{"device_tokens", "keys", "values"}));
  Method chosen = streamed;
  chosen.work = Score{HostQuery::kExact, BySelectors{}};
  EXPECT_EQ(options_read_by(chosen),
            (std::vector<std::string>{"k", "scheduler", "device_tokens", "keys", "values"}));
  Method on_device;
  on_device.name = "mine";
  EXPECT_EQ(options_read_by(on_device), std::vector<std::string>{});
}

TEST(UnreadOptions, OfACompositionAreRefusedByTheEngineToo) {
  Method on_device;
  on_device.name = "mine";
  EngineOptions options = testing::options("full");
  options.hybridgen.k = TokenCount::count(5);
  try {
    Engine engine(testing::tiny_model(), options, on_device);
    FAIL() << "nothing was refused";
  } catch (const ConfigError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("[method mine] k is 5; allowed: "))
        << error.what();
  }
}

TEST(OptionsOfAComposition, AreValidatedByTheEngineToo) {
  Method on_device;
  on_device.name = "mine";
  EngineOptions options = testing::options("full");
  options.prefill_chunk = 0;
  EXPECT_THROW(Engine(testing::tiny_model(), options, on_device), ConfigError);
}

}  // namespace
}  // namespace hybridgen
