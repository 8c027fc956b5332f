// SPDX-License-Identifier: Apache-2.0
// Every option of every struct is said once, in a table: these hold the tables to what they
// promise.
#include "core/option_table.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "core/option_tables.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

template <typename Options>
void expect_sound(const OptionTable<Options>& table) {
  std::set<std::string> names;
  for (const OptionRow<Options>& row : table.rows()) {
    EXPECT_TRUE(names.insert(row.info.name).second) << row.info.name << " is there twice";
    EXPECT_FALSE(row.info.type.empty() || row.info.allowed.empty()) << row.info.name;
    Options options;
    const OptionValue before = row.get(options);
    EXPECT_FALSE(row.set(options, OptionValue::Other{"an object"})) << row.info.name;
    EXPECT_TRUE(is_same(row.get(options), before)) << row.info.name << " kept a refused value";
    EXPECT_TRUE(row.set(options, row.info.default_value)) << row.info.name;
    EXPECT_TRUE(is_same(row.get(options), before)) << row.info.name << " has another default";
  }
}

TEST(OptionTables, TakeTheirDefaultsAndRefuseWhatIsNoValueWithoutChangingAnything) {
  expect_sound(engine_table());
  expect_sound(hybridgen_table());
  expect_sound(query_table());
  expect_sound(scheduler_table());
}

TEST(OptionTables, ReadWhatTheyWrite) {
  HybridGenOptions options;
  options.k = TokenCount::share(0.25);
  options.query = {QueryMode::kSpeculative, 3, GuessNorm::kCurrent, GuessSource::kPreviousQuery};
  options.scoring = Scoring::kInt4;
  options.candidates_per_k = 3.0;
  EXPECT_EQ(hybridgen_table().read("test", hybridgen_table().values(options)), options);
  options.k = TokenCount::usual();
  options.scheduler = SchedulerOptions{.k_min = 7, .grow = {4, 3}, .k_max = 50, .deadband = 0.5};
  EXPECT_EQ(hybridgen_table().read("test", hybridgen_table().values(options)), options);
}

TEST(OptionTables, NameTheNearestOfAnUnknownOption) {
  EXPECT_EQ(refusal([] { query_table().read("QueryConfig", {{"first_layers", 3}}); }),
            "[QueryConfig] option 'first_layers' is not known; allowed: mode, first_layer, norm, "
            "source; did you mean 'first_layer'?");
}

TEST(OptionTables, NameValueAndRangeOfWhatIsNotAllowed) {
  EXPECT_EQ(refusal([] { query_table().read("QueryConfig", {{"first_layer", 0}}); }),
            "[QueryConfig] first_layer is 0; allowed: an integer >= 1");
  EXPECT_EQ(refusal([] { query_table().read("QueryConfig", {{"norm", "last"}}); }),
            "[QueryConfig] norm is 'last'; allowed: 'next' or 'current'");
  EngineOptions options;
  options.prefill_chunk = 0;
  EXPECT_EQ(refusal([&] { options.validate(); }),
            "[engine options] max_num_batched_tokens is 0; allowed: an integer >= 1");
}

TEST(OptionTables, ReadSizesAsPeopleWriteThem) {
  const auto size = [](const OptionValue& text) {
    return engine_table().read("test", {{"dram", text}}).dram_bytes;
  };
  EXPECT_EQ(size("64GiB"), std::int64_t{64} << 30);
  EXPECT_EQ(size("64 gib"), std::int64_t{64} << 30);
  EXPECT_EQ(size("500MB"), 500'000'000);
  EXPECT_EQ(size("1.5k"), 1500);
  EXPECT_EQ(size("2TiB"), std::int64_t{2} << 40);
  EXPECT_EQ(size("123"), 123);
  EXPECT_EQ(size("7B"), 7);
  EXPECT_EQ(size(99), 99);
  EXPECT_EQ(size("auto"), 0);
  for (const OptionValue& bad : {OptionValue("12 parsecs"),
                                 OptionValue("-1GiB"),
                                 OptionValue("GiB"),
                                 OptionValue("1..5GB"),
                                 OptionValue("1.GB"),
                                 OptionValue("1e3"),
                                 OptionValue("inf"),
                                 OptionValue("9EiB"),
                                 OptionValue("2097153TiB"),
                                 OptionValue(""),
                                 OptionValue(0),
                                 OptionValue(1.5),
                                 OptionValue(true)}) {
    EXPECT_NE(refusal([&] { size(bad); }), "") << text_of(bad);
  }
}

TEST(OptionTables, TakeFactorsForTheFractionsTheyStandFor) {
  const auto grow = [](double factor) {
    return scheduler_table().read("test", {{"grow", factor}}).grow;
  };
  EXPECT_EQ(grow(1.2), (Rational{6, 5}));
  EXPECT_EQ(grow(1.0), (Rational{1, 1}));
  EXPECT_EQ(grow(4.0 / 3.0), (Rational{4, 3}));
  EXPECT_EQ(scheduler_table().read("test", {{"shrink", 0.8}}).shrink, (Rational{4, 5}));
}

}  // namespace
}  // namespace hybridgen
