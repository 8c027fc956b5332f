// SPDX-License-Identifier: Apache-2.0
// Every method, in every setting, gives on a device of its own memory and streams what it gives on
// the CPU, whenever the device's operations run.
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "device/driver_thread.h"
#include "support/emulated_cuda.h"
#include "support/kernels_on_device.h"
#include "support/method_settings.h"
#include "support/order_checker.h"
#include "support/run_to_end.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using emulated::Mode;
using testing::all_settings;
using testing::EmulatedCuda;
using testing::generate;
using testing::Generated;
using testing::OrderChecker;
using testing::ragged_prompts;
using testing::Setting;
using testing::tiny_model;

constexpr int kSteps = 12;

std::vector<Generated> run_on(const std::string& device,
                              EngineOptions options,
                              Math math = Math::kAten) {
  options.math = math;
  Engine engine(tiny_model(device), options);
  return generate(engine, ragged_prompts(), kSteps);
}

// What the CPU gives, computed once per setting.
const std::vector<Generated>& on_cpu(const Setting& setting) {
  static std::map<std::string, std::vector<Generated>> known;
  const auto found = known.find(setting.name);
  return found != known.end() ? found->second
                              : known[setting.name] = run_on("cpu", setting.options);
}

const auto kName = [](const auto& info) { return info.param.name; };

// Bits; but prefilling on the CPU with more OpenMP threads than the device has sums in another
// order.
void expect_equal(const std::vector<Generated>& actual, const std::vector<Generated>& expected) {
  if (default_intra_op_threads() == 1) {
    EXPECT_EQ(actual, expected);
  } else {
    testing::expect_same(actual, expected);
  }
}

class MethodsOnDevice : public ::testing::TestWithParam<Setting> {};

TEST_P(MethodsOnDevice, EqualTheCpuAndHaveNoRaceWhenWorkRunsAtOnce) {
  auto options = EmulatedCuda::options(Mode::kEager);
  options.uploads_wait = false;
  EmulatedCuda device(options);
  const OrderChecker checker(device.device());
  expect_equal(run_on(device.name(), GetParam().options), on_cpu(GetParam()));
  EXPECT_EQ(checker.races(), std::vector<std::string>{});
}

TEST_P(MethodsOnDevice, EqualTheCpuWhenWorkRunsOnlyIfItIsWaitedFor) {
  auto options = EmulatedCuda::options(Mode::kLazy);
  options.uploads_wait = false;
  const EmulatedCuda device(options);
  expect_equal(run_on(device.name(), GetParam().options), on_cpu(GetParam()));
}

TEST_P(MethodsOnDevice, EqualTheCpuWhenEachStreamHasAThread) {
  const EmulatedCuda device(Mode::kThreads);
  expect_equal(run_on(device.name(), GetParam().options), on_cpu(GetParam()));
}

// Random delays take long: of each stream's operations one in eight sleeps 300 us on average. The
// long form has them for all settings.
TEST_P(MethodsOnDevice, EqualTheCpuWhenStreamsAreDelayedAtRandom) {
  const std::set<std::string> usual = {"h2o", "hgca", "hybridgen_h2o", "hybridgen_partial_keys"};
  if (std::getenv("HYBRIDGEN_LONG") == nullptr && !usual.contains(GetParam().name)) {
    GTEST_SKIP() << "set HYBRIDGEN_LONG=1";
  }
  auto options = EmulatedCuda::options(Mode::kDelays);
  options.uploads_wait = false;
  const EmulatedCuda device(options);
  expect_equal(run_on(device.name(), GetParam().options), on_cpu(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Methods, MethodsOnDevice, ::testing::ValuesIn(all_settings()), kName);

#if !HYBRIDGEN_TORCH_HAS_CUDA
// The same by our CUDA kernels, which the emulator carries out on the device's streams. They sum in
// an order of their own.
class MethodsByKernels : public ::testing::TestWithParam<Setting> {
 protected:
  void expect_cpu_on(emulated::DeviceOptions options) const {
    options.uploads_wait = false;
    EmulatedCuda device(options);
    const testing::KernelsOnDevice kernels(device.device());
    testing::expect_same(run_on(device.name(), GetParam().options, Math::kKernels),
                         on_cpu(GetParam()));
  }
};

TEST_P(MethodsByKernels, GiveWhatTheCpuGivesWhenWorkRunsOnlyIfItIsWaitedFor) {
  expect_cpu_on(EmulatedCuda::options(Mode::kLazy));
}

TEST_P(MethodsByKernels, GiveWhatTheCpuGivesWhenEachStreamHasAThread) {
  const std::set<std::string> usual = {"full", "h2o", "hgca", "hybridgen_h2o", "infinigen"};
  if (std::getenv("HYBRIDGEN_LONG") == nullptr && !usual.contains(GetParam().name)) {
    GTEST_SKIP() << "set HYBRIDGEN_LONG=1";
  }
  expect_cpu_on(EmulatedCuda::options(Mode::kThreads));
}

// Log-sum-exps of rows with and without payloads, of two micro-batches, cross once per step.
TEST(LostMassByKernels, IsThatOfTheCpu) {
  const auto lost_on = [](const std::string& device, Math math, QueryMode query) {
    EngineOptions options =
        testing::hybrid("", query, testing::kPost, "topk", TokenCount::count(6)).options;
    options.math = math;
    options.micro_batch = 2;
    Engine engine(tiny_model(device), options);
    SamplingOptions sampling;
    sampling.max_tokens = kSteps;
    std::vector<std::int64_t> ids;
    for (const auto& prompt : ragged_prompts()) {
      ids.push_back(engine.add(prompt, sampling));
    }
    ids.push_back(engine.add(testing::prompt(5), sampling));
    testing::run_to_end(engine);
    std::vector<RequestStatistics> found;
    for (const std::int64_t id : ids) {
      found.push_back(engine.request_statistics(id));
    }
    return found;
  };
  for (const QueryMode query : {QueryMode::kExact, QueryMode::kRescore, QueryMode::kSpeculative}) {
    const auto expected = lost_on("cpu", Math::kAten, query);
    auto device_options = EmulatedCuda::options(Mode::kLazy);
    device_options.uploads_wait = false;
    EmulatedCuda device(device_options);
    const testing::KernelsOnDevice kernels(device.device());
    const auto check = [&](Math math) {
      const auto found = lost_on(device.name(), math, query);
      ASSERT_EQ(found.size(), expected.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        ASSERT_TRUE(expected[i].lost_mass && found[i].lost_mass);
        EXPECT_NEAR(*found[i].lost_mass, *expected[i].lost_mass, 1e-5);
        EXPECT_NEAR(*found[i].largest_lost_mass, *expected[i].largest_lost_mass, 1e-5);
        EXPECT_EQ(found[i].lost_mass_kind, expected[i].lost_mass_kind);
        EXPECT_EQ(found[i].lost_mass_steps, expected[i].lost_mass_steps);
      }
    };
    check(Math::kKernels);
    check(Math::kAten);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, MethodsByKernels, ::testing::ValuesIn(all_settings()), kName);
#endif

// What does not depend on a method's arithmetic, on the device that gives most away: work is late.
class EngineOnDevice : public ::testing::Test {
 protected:
  EngineOnDevice() : device_(late()) {}

  static emulated::DeviceOptions late() {
    auto options = EmulatedCuda::options(Mode::kLazy);
    options.uploads_wait = false;
    return options;
  }
  static EngineOptions hybrid() {
    return testing::hybrid("",
                           QueryMode::kSpeculative,
                           SelectionStrategy::kPostQkt,
                           "topk",
                           TokenCount::count(6))
        .options;
  }

  EmulatedCuda device_;
};

TEST_F(EngineOnDevice, PrefillsInChunksAsTheCpuDoes) {
  for (const char* method : {"full", "flexgen", "h2o", "keyformer"}) {
    EngineOptions options = testing::options(method);
    options.prefill_chunk = 13;
    expect_equal(run_on(device_.name(), options), run_on("cpu", options));
  }
  EngineOptions options = hybrid();
  options.prefill_chunk = 13;
  expect_equal(run_on(device_.name(), options), run_on("cpu", options));
}

TEST_F(EngineOnDevice, GivesTheSameInAnyBatch) {
  EngineOptions options = hybrid();
  const auto together = run_on(device_.name(), options);
  for (const std::int64_t micro_batch : {1, 2}) {
    options.micro_batch = micro_batch;
    testing::expect_same(run_on(device_.name(), options), together);
  }
  const auto prompts = ragged_prompts();
  Engine engine(tiny_model(device_.name()), options);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    testing::expect_same(generate(engine, {prompts[i]}, kSteps), {together[i]});
  }
}

TEST_F(EngineOnDevice, FeedsPromptTokensThroughDecodeStepsAsTheCpuDoes) {
  const auto decoded = [](const std::string& device, const char* method) {
    EngineOptions options = testing::options(method);
    options.math = Math::kAten;
    Engine engine(tiny_model(device), options);
    SamplingOptions sampling;
    sampling.max_tokens = kSteps;
    engine.add(testing::prompt(40), sampling, {}, /*decode_prompt_tokens=*/9);
    std::vector<std::int64_t> tokens;
    while (engine.has_work()) {
      for (const TokenEvent& event : engine.step()) {
        tokens.push_back(event.token_id);
      }
    }
    return tokens;
  };
  for (const char* method : {"full", "h2o", "streaming_llm", "keyformer", "flexgen"}) {
    EXPECT_EQ(decoded(device_.name(), method), decoded("cpu", method)) << method;
  }
}

TEST_F(EngineOnDevice, TakesNoMoreMemoryWithEveryRequest) {
  Engine engine(tiny_model(device_.name()), hybrid());
  generate(engine, ragged_prompts(), kSteps);
  const std::size_t after_one = device_.device().memory().use().now;
  generate(engine, ragged_prompts(), kSteps);
  generate(engine, ragged_prompts(), kSteps);
  EXPECT_LE(device_.device().memory().use().now, after_one);
}

#if HYBRIDGEN_TORCH_HAS_CUDA
// A GPU rounds and sums in its own order: greedy tokens equal, log-probabilities as those of
// another implementation of the same mathematics.
class MethodsOnGpu : public ::testing::TestWithParam<Setting> {};

TEST_P(MethodsOnGpu, AgreeWithTheCpu) {
  if (c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount() == 0) {
    GTEST_SKIP() << "torch sees no CUDA device";
  }
  testing::expect_same(run_on("cuda", GetParam().options), on_cpu(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Methods, MethodsOnGpu, ::testing::ValuesIn(all_settings()), kName);
#else
TEST(MethodsOnGpu, NeedACudaBuildOfTorch) {
  GTEST_SKIP() << "the installed torch is a CPU build; docs/cuda.md says how to run these on a GPU";
}
#endif

}  // namespace
}  // namespace hybridgen
