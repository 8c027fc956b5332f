// SPDX-License-Identifier: Apache-2.0
// Blocks of old tokens on a disk: whatever goes there, everybody gets what DRAM alone gives, bit by
// bit; and what a disk refuses ends the request that needs it, and no other.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "hybridgen/core/error.h"
#include "support/method_settings.h"
#include "support/run_to_end.h"
#include "support/tier_use.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::Ended;
using testing::Generated;
using testing::message_of;
using testing::run_to_end;
using testing::Setting;
using testing::used_of;

constexpr int kSteps = 4;

std::shared_ptr<DecoderModel> model() {
  static const std::shared_ptr<DecoderModel> shared = [] {
    ModelConfig config = testing::tiny_config();
    config.num_layers = 2;
    config.head_dim = 8;  // prompts of several blocks of 256 tokens cost little
    config.max_positions = 4096;
    return testing::tiny_model(config);
  }();
  return shared;
}

/// Four whole blocks, none, and five.
std::vector<std::vector<std::int64_t>> prompts() {
  return {testing::prompt(1100, 1), testing::prompt(40, 2), testing::prompt(1500, 3)};
}

SamplingOptions few_tokens() {
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  return sampling;
}

struct Outcome {
  std::vector<Generated> generated;
  std::int64_t peak_dram = 0;
  DiskStatistics disk;
};

Outcome run(const EngineOptions& options) {
  Engine engine(model(), options);
  Outcome outcome;
  outcome.generated = testing::generate(engine, prompts(), kSteps, [&](const auto& outputs) {
    outcome.peak_dram = std::max(outcome.peak_dram, used_of(engine, "dram"));
    if (testing::is_any_at(outputs, kSteps / 2)) testing::wait_for_a_write(engine);
  });
  EXPECT_EQ(used_of(engine, "dram"), 0);
  EXPECT_EQ(used_of(engine, "disk"), 0);
  outcome.disk = engine.run_statistics().disk;
  return outcome;
}

EngineOptions with_disk(EngineOptions options, const TestFolder& folder, std::int64_t dram_bytes) {
  options.dram_bytes = dram_bytes;
  options.tiers.disk_path = folder.string();
  options.tiers.disk_bytes = std::int64_t{32} << 20;
  return options;
}

bool writes_over_old_tokens(const Setting& setting) {
  for (const char* name : {"streaming_llm", "h2o", "keyformer", "infinigen_pool", "full"}) {
    if (setting.name.starts_with(name)) return true;
  }
  return setting.options.method == "infinigen" &&
         setting.options.method_config.contains("capacity");
}

std::vector<Setting> settings() {
  std::vector<Setting> all;
  const auto add = [&](std::vector<Setting> some, const std::string& kind) {
    for (Setting& each : some) {
      if (writes_over_old_tokens(each)) continue;
      each.name += kind;
      each.options.prefill_chunk = 96;
      all.push_back(each);
    }
  };
  add(testing::exact_settings(), "_exact");
  add(testing::approximate_settings(), "_approximate");
  return all;
}

class OnDisk : public ::testing::TestWithParam<Setting> {};

INSTANTIATE_TEST_SUITE_P(Methods, OnDisk, ::testing::ValuesIn(settings()), [](const auto& each) {
  return each.param.name;
});

TEST_P(OnDisk, EverybodyGetsWhatDramAloneGivesWhateverDramThereIs) {
  const Outcome expected = run(GetParam().options);
  bool has_used_disk = false;
  int runs = 0;
  for (int percent = 70; percent < 100 && runs < 2; percent += 4) {
    SCOPED_TRACE(percent);
    const TestFolder folder;
    const std::int64_t dram = expected.peak_dram * percent / 100;
    Outcome on_disk;
    try {
      on_disk = run(with_disk(GetParam().options, folder, dram));
    } catch (const OutOfMemoryError&) {
      continue;  // too little even with a disk
    }
    ++runs;
    EXPECT_EQ(on_disk.generated, expected.generated);
    EXPECT_LE(on_disk.peak_dram, dram);
    has_used_disk |= on_disk.disk.read_bytes > 0 && on_disk.disk.written_bytes > 0;
    EXPECT_EQ(folder.names(), std::vector<std::string>{});
  }
  EXPECT_TRUE(has_used_disk);
}

/// HybridGen over a few of the offloaded tokens, with DRAM for a part of what it takes.
class ADiskThat : public ::testing::Test {
 protected:
  ADiskThat() : stands_in_(calls_) {
    options_.device_tokens.count = 9;
    options_.hybridgen.k = TokenCount::count(6);
    options_.prefill_chunk = 96;
    const Outcome alone = run(options_);
    expected_ = alone.generated;
    options_ = with_disk(options_, folder_, alone.peak_dram * 92 / 100);
  }

  /// The `nth` call of a kind from now on fails, or all of them from then on.
  void fail(DiskCall which, int error, int nth, bool for_good = false) {
    const auto count = std::make_shared<std::atomic<int>>(0);
    calls_.answer = [=](DiskCall call, int) -> std::optional<std::int64_t> {
      if (call != which) return std::nullopt;
      const int number = (*count)++;
      return number == nth || (for_good && number > nth) ? std::optional<std::int64_t>(-error)
                                                         : std::nullopt;
    };
  }

  /// All requests; those that no error ends say what they always do.
  std::vector<std::exception_ptr> run_all(Engine& engine) {
    std::vector<std::int64_t> ids;
    for (const auto& prompt : prompts()) ids.push_back(engine.add(prompt, few_tokens()));
    const Ended ended = run_to_end(engine);
    std::vector<std::exception_ptr> errors;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ended.errors.contains(ids[i])) {
        errors.push_back(ended.errors.at(ids[i]));
      } else {
        EXPECT_EQ(ended.generated.at(ids[i]), expected_[i]);
      }
    }
    EXPECT_EQ(used_of(engine, "dram"), 0);
    EXPECT_EQ(used_of(engine, "disk"), 0);
    return errors;
  }

  FaultyDisk calls_;
  DiskCallsForTest stands_in_;
  TestFolder folder_;
  EngineOptions options_ = testing::options("hybridgen");
  std::vector<Generated> expected_;
};

TEST_F(ADiskThat, FailsToReadEndsOneRequestAndWorksAgainForTheNext) {
  Engine engine(model(), options_);
  EXPECT_TRUE(run_all(engine).empty());
  for (int nth = 0; nth < 200; nth = 2 * nth + 1) {
    SCOPED_TRACE(nth);
    fail(DiskCall::kRead, EIO, nth);
    const std::vector<std::exception_ptr> errors = run_all(engine);
    ASSERT_LE(errors.size(), 1U);
    for (const std::exception_ptr& error : errors) {
      const std::string text = message_of<DeviceError>(error);
      EXPECT_NE(text.find("Input/output error"), std::string::npos) << text;
      EXPECT_NE(text.find(folder_.string()), std::string::npos) << text;
    }
    EXPECT_TRUE(nth > 60 || !errors.empty()) << "the disk was not read so often";
  }
  calls_.answer = nullptr;
  EXPECT_TRUE(run_all(engine).empty());
}

TEST_F(ADiskThat, IsFullEndsWhoeverCannotGoOn) {
  Engine engine(model(), options_);
  for (const DiskCall call : {DiskCall::kWrite, DiskCall::kReserve}) {
    for (const int nth : {0, 2}) {
      fail(call, ENOSPC, nth, /*for_good=*/true);
      for (const std::exception_ptr& error : run_all(engine)) {
        EXPECT_NE(message_of<OutOfMemoryError>(error), "another exception");
      }
    }
  }
  fail(DiskCall::kWrite, ENOSPC, 0, /*for_good=*/true);
  EXPECT_FALSE(run_all(engine).empty());
  calls_.answer = nullptr;
  EXPECT_TRUE(run_all(engine).empty());
}

TEST_F(ADiskThat, FailsToWriteOnceCostsNobodyAnythingThatHasRoomElsewhere) {
  Engine engine(model(), options_);
  for (const int nth : {0, 1, 5}) {
    fail(DiskCall::kWrite, EIO, nth);
    for (const std::exception_ptr& error : run_all(engine)) {
      EXPECT_NE(message_of<DeviceError>(error).find("Input/output error"), std::string::npos);
    }
  }
  calls_.answer = nullptr;
  EXPECT_TRUE(run_all(engine).empty());
}

TEST_F(ADiskThat, MayNotBeWrittenToOrIsTooSmallIsRefusedAtOnce) {
  fail(DiskCall::kOpen, EACCES, 0, /*for_good=*/true);
  EXPECT_THROW(Engine(model(), options_), ConfigError);
  calls_.answer = [](DiskCall call, int) -> std::optional<std::int64_t> {
    return call == DiskCall::kFreeBytes ? std::optional<std::int64_t>(1 << 20) : std::nullopt;
  };
  EXPECT_THROW(Engine(model(), options_), ConfigError);
  calls_.answer = nullptr;
  options_.tiers.disk_path += "/none";
  EXPECT_THROW(Engine(model(), options_), ConfigError);
}

TEST(RequestHome, IsEachRequestsOwnAndChangesNothingThatIsSaid) {
  EngineOptions options = testing::options("flexgen");
  options.device_tokens.count = 1;
  options.prefill_chunk = 96;
  const std::vector<Generated> expected = run(options).generated;
  const TestFolder folder;
  Engine engine(model(), with_disk(options, folder, std::int64_t{64} << 20));
  std::vector<std::int64_t> ids{
      engine.add(prompts()[0], few_tokens(), {}, 0, {.device_tokens = kMaxTokens}),
      engine.add(prompts()[1], few_tokens()),
      engine.add(prompts()[2], few_tokens(), {}, 0, {.on_disk = true})};
  Ended ended;
  std::int64_t on_disk = 0;
  while (engine.has_work()) {
    testing::step(engine, ended);
    on_disk = std::max(on_disk, used_of(engine, "disk"));
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ASSERT_FALSE(ended.errors.contains(ids[i]));
    EXPECT_EQ(ended.generated.at(ids[i]).tokens, expected[i].tokens);
  }
  EXPECT_EQ(ended.generated.at(ids[2]), expected[2]);
  EXPECT_EQ(engine.request_statistics(ids[0]).offloaded_tokens, 0);
  EXPECT_GT(engine.request_statistics(ids[1]).offloaded_tokens, 0);
  EXPECT_GT(on_disk, 0);
  const DiskStatistics disk = engine.run_statistics().disk;
  // The third request's whole blocks, of keys and of values, each once; the last ones may be on
  // their way when it ends.
  const std::int64_t row = model()->config().kv_row_bytes(DType::kFloat32);
  const std::int64_t blocks = 2 * row * model()->config().num_layers * 5 * 256;
  EXPECT_GT(disk.written_bytes, blocks / 2);
  EXPECT_LE(disk.written_bytes, blocks);
  EXPECT_GT(disk.read_bytes, disk.written_bytes);  // in every step
  EXPECT_EQ(used_of(engine, "disk"), 0);
  EXPECT_EQ(used_of(engine, "dram"), 0);
}

TEST(RequestHome, OnTheDiskNeedsLittleMemoryHoweverManyThereAre) {
  EngineOptions options = testing::options("flexgen");
  options.device_tokens.count = 1;
  options.prefill_chunk = 96;
  const Outcome alone = run(options);
  const TestFolder folder;
  Engine engine(model(), with_disk(options, folder, alone.peak_dram * 8 / 10));
  std::map<std::int64_t, std::size_t> index;
  for (int round = 0; round < 2; ++round) {
    for (std::size_t i = 0; i < prompts().size(); ++i) {
      index[engine.add(prompts()[i], few_tokens(), {}, 0, {.on_disk = true})] = i;
    }
  }
  const Ended ended = run_to_end(engine);
  for (const auto& [id, i] : index) EXPECT_EQ(ended.generated.at(id), alone.generated[i]);
}

TEST(RequestHome, ThatThereIsNotIsRefused) {
  Engine without_window(model(), testing::options("moe_lightning"));
  EXPECT_THROW(without_window.add({1, 2}, few_tokens(), {}, 0, {.device_tokens = 9}), ConfigError);
  Engine without_disk(model(), testing::options("flexgen"));
  EXPECT_THROW(without_disk.add({1, 2}, few_tokens(), {}, 0, {.on_disk = true}), ConfigError);
  EXPECT_THROW(without_disk.add({1, 2}, few_tokens(), {}, 0, {.device_tokens = -1}), ConfigError);
  EngineOptions options = testing::options("hybridgen");
  options.tiers.shrink_windows = true;
  Engine shrinking(model(), options);
  EXPECT_THROW(shrinking.add({1, 2}, few_tokens(), {}, 0, {.device_tokens = 9}), ConfigError);
}

TEST(DiskTier, IsRefusedByMethodsThatHaveNoUseForIt) {
  const TestFolder folder;
  EngineOptions full = with_disk(testing::options("full"), folder, std::int64_t{1} << 30);
  EXPECT_THROW(Engine(model(), full), ConfigError);
  EngineOptions rewriting = with_disk(testing::options("h2o"), folder, std::int64_t{1} << 30);
  rewriting.method_config = {{"home", std::string("host")}};
  EXPECT_THROW(Engine(model(), rewriting), ConfigError);
}

}  // namespace
}  // namespace hybridgen
