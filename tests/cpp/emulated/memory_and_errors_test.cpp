// SPDX-License-Identifier: Apache-2.0
// On a device of its own memory and streams: what a run takes stays within the device's budget; a
// failure, wherever it happens, waits for the device before memory goes, and ends nobody else;
// nothing is queued where the compute stream does not wait for it.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <exception>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "support/emulated_cuda.h"
#include "support/method_settings.h"
#include "support/run_to_end.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using emulated::Mode;
using testing::all_settings;
using testing::EmulatedCuda;
using testing::Ended;
using testing::Generated;
using testing::message_of;
using testing::prompt;
using testing::run_to_end;
using testing::Setting;
using testing::tiny_config;
using testing::tiny_model;

const auto kName = [](const auto& info) { return info.param.name; };

SamplingOptions tokens(int count) {
  SamplingOptions sampling;
  sampling.max_tokens = count;
  return sampling;
}

// ---- Budgets

emulated::DeviceMemory::Use use_of(EmulatedCuda& cuda) { return cuda.device().memory().use(); }

TEST(DeviceBudget, IsAShareOfTheDevicesOwnMemory) {
  emulated::DeviceOptions options = EmulatedCuda::options(Mode::kEager);
  options.memory_bytes = std::size_t{1} << 30;
  EmulatedCuda cuda(options);
  const auto model = tiny_model(cuda.name());
  EngineOptions asked = testing::options("full");
  asked.device_bytes = 0;
  const auto free = static_cast<double>(options.memory_bytes - use_of(cuda).now);
  const Engine engine(model, asked);
  EXPECT_NEAR(static_cast<double>(engine.memory().front().capacity_bytes), 0.9 * free, 1.0);
}

TEST(DeviceBudget, CountsWhatTheAllocatorKeepsAsFree) {
  emulated::DeviceOptions options = EmulatedCuda::options(Mode::kEager);
  options.memory_bytes = std::size_t{1} << 30;
  EmulatedCuda cuda(options);
  const auto model = tiny_model(cuda.name());
  EngineOptions asked = testing::options("full");
  asked.device_bytes = 0;
  std::int64_t first = 0;
  {
    Engine engine(model, asked);
    first = engine.memory().front().capacity_bytes;
    testing::generate(engine, {prompt(100)}, 4);
  }
  const Engine second(model, asked);
  // The rotary table is the model's and stays.
  EXPECT_NEAR(static_cast<double>(second.memory().front().capacity_bytes),
              static_cast<double>(first),
              static_cast<double>(std::int64_t{1} << 17));
}

ModelConfig wider_config() {
  ModelConfig config = tiny_config();
  config.num_layers = 2;
  config.head_dim = 64;
  config.hidden_size = 256;
  config.embedding_size = 256;
  config.ffn_size = 320;
  config.vocab_size = 500;
  config.max_positions = 512;
  return config;
}

std::vector<std::vector<std::int64_t>> long_prompts() {
  return {prompt(280, 1), prompt(60, 2), prompt(240, 3)};
}

bool fits(const std::shared_ptr<DecoderModel>& model, EngineOptions options, std::int64_t bytes) {
  options.device_bytes = bytes;
  try {
    Engine engine(model, options);
    for (const auto& each : long_prompts()) {
      engine.add(each, tokens(4));
    }
    return true;
  } catch (const OutOfMemoryError&) {
    return false;
  }
}

class MemoryOfAMethod : public ::testing::TestWithParam<Setting> {};

INSTANTIATE_TEST_SUITE_P(Methods, MemoryOfAMethod, ::testing::ValuesIn(all_settings()), kName);

TEST_P(MemoryOfAMethod, StaysWithinTheSmallestBudgetThatAdmitsItsRequests) {
  EmulatedCuda cuda(Mode::kEager);
  // Of which operations make float32 copies.
  constexpr DType dtype = DType::kBFloat16;
  const auto model = std::make_shared<DecoderModel>(wider_config(), dtype, cuda.name());
  model->weights().load_dummy(3);
  EngineOptions options = GetParam().options;
  options.prefill_chunk = 128;
  std::int64_t too_small = 1;
  std::int64_t enough = std::int64_t{1} << 26;
  while (enough - too_small > enough / 256) {
    const std::int64_t middle = too_small + (enough - too_small) / 2;
    (fits(model, options, middle) ? enough : too_small) = middle;
  }
  const auto before = static_cast<std::int64_t>(use_of(cuda).now);
  cuda.device().memory().reset_peak();
  options.device_bytes = enough;
  Engine engine(model, options);
  for (const auto& each : long_prompts()) {
    SamplingOptions sampling = tokens(4);
    sampling.num_prompt_logprobs = 0;
    engine.add(each, sampling);
  }
  EXPECT_TRUE(run_to_end(engine).errors.empty());
  const std::int64_t taken = static_cast<std::int64_t>(use_of(cuda).peak) - before;
  EXPECT_LE(taken, enough);
  EXPECT_LE(enough, 4 * taken) << "far more is reserved than is taken";
}

// ---- Order

class AfterThePrompt : public ::testing::TestWithParam<Setting> {};

INSTANTIATE_TEST_SUITE_P(Methods, AfterThePrompt, ::testing::ValuesIn(all_settings()), kName);

TEST_P(AfterThePrompt, StepsWaitForWhatAMethodKeepsOfIt) {
  const auto generate = [&](const std::string& device) {
    EngineOptions options = GetParam().options;
    options.math = Math::kAten;
    Engine engine(tiny_model(device), options);
    // Some of the prompt passes through decode steps: nothing waits for the device before them.
    for (const std::int64_t decoded : {0, 1, 5}) {
      engine.add(prompt(60, 1), tokens(6), {}, decoded);
    }
    return run_to_end(engine).generated;
  };
  const auto expected = generate("cpu");
  const EmulatedCuda cuda(Mode::kLazy);
  const auto actual = generate(cuda.name());
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [id, output] : expected) {
    testing::expect_same({actual.at(id)}, {output});
  }
}

TEST(Weights, AreThereWhenAnEngineReadsThemWhoeverFilledThem) {
  ModelConfig config = tiny_config();
  config.position = PositionKind::kLearned;
  const auto generate = [&](const std::string& device) {
    const at::NoGradGuard no_grad;
    const auto model = std::make_shared<DecoderModel>(config, DType::kFloat32, device);
    model->weights().load_dummy(7);
    model->weights().final_norm_weight.mul_(3.0);
    EngineOptions options = testing::options("full");
    options.math = Math::kAten;
    Engine engine(model, options);
    return testing::generate(engine, {prompt(30)}, 6);
  };
  const auto expected = generate("cpu");
  const EmulatedCuda cuda(Mode::kLazy);
  testing::expect_same(generate(cuda.name()), expected);
}

TEST(LogitsOfSixteenBits, AreFloat32AsOnTheCpu) {
  const auto generate = [](const std::string& device) {
    const auto model = std::make_shared<DecoderModel>(tiny_config(), DType::kBFloat16, device);
    model->weights().load_dummy(7);
    EngineOptions options = testing::options("full");
    options.math = Math::kAten;
    Engine engine(model, options);
    return testing::generate(engine, {prompt(30)}, 6);
  };
  const auto expected = generate("cpu");
  EmulatedCuda cuda(Mode::kEager);
  testing::expect_same(generate(cuda.name()), expected);
}

// ---- Failures

/// Whether all that was ever queued has run. Asking lets it run where no thread does.
bool is_idle(EmulatedCuda& cuda) {
  for (emulated::StreamIndex stream = 0; stream < emulated::Streams::kCount; ++stream) {
    if (!cuda.device().is_done(cuda.device().end_of(stream))) {
      return false;
    }
  }
  return true;
}

class FailuresOnDevice : public ::testing::TestWithParam<Mode> {
 protected:
  EngineOptions options_ = [] {
    EngineOptions options = testing::options("hybridgen");
    options.device_tokens.count = 9;
    options.hybridgen.k = TokenCount::count(6);
    return options;
  }();
  EmulatedCuda cuda_{[] {
    emulated::DeviceOptions options = EmulatedCuda::options(GetParam());
    // Else freed memory is filled, which is work, too.
    options.poison = GetParam() != Mode::kThreads && GetParam() != Mode::kDelays;
    return options;
  }()};
  std::shared_ptr<DecoderModel> model_ = tiny_model(cuda_.name());

  Generated alone(const std::vector<std::int64_t>& text) {
    Engine engine(model_, options_);
    engine.add(text, tokens(8));
    return run_to_end(engine).generated.begin()->second;
  }
};

INSTANTIATE_TEST_SUITE_P(
    Modes,
    FailuresOnDevice,
    ::testing::Values(Mode::kEager, Mode::kThreads, Mode::kDelays, Mode::kLazy),
    [](const auto& mode) { return std::to_string(static_cast<int>(mode.param)); });

/// As top-K, but for the request that has room for so many tokens.
class FailingSelector final : public TokenSelector {
 public:
  static inline std::int64_t victims_room = -1;
  explicit FailingSelector(const SelectorShape& shape)
      : inner_(make_selector("topk", shape)), fails_(shape.max_offloaded == victims_room) {}
  std::string_view name() const override { return "failing_on_device"; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPostQkt; }
  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& scratch) const override {
    if (fails_ && layer >= 2) throw std::domain_error("no idea");
    inner_->select(layer, query_head, logits, positions, values, scratch);
  }

 private:
  std::unique_ptr<TokenSelector> inner_;
  bool fails_;
};

TEST_P(FailuresOnDevice, OfAHostJobEndTheRequestAloneAndFindTheDeviceIdle) {
  static const bool registered = [] {
    register_selector("failing_on_device",
                      SelectionStrategy::kPostQkt,
                      [](const SelectorShape& shape) -> std::unique_ptr<TokenSelector> {
                        return std::make_unique<FailingSelector>(shape);
                      });
    return true;
  }();
  ASSERT_TRUE(registered);
  options_.hybridgen.selector = "failing_on_device";
  FailingSelector::victims_room = -1;
  const Generated expected = alone(prompt(40, 1));
  FailingSelector::victims_room = 33 + 8 - 9;
  Engine engine(model_, options_);
  const std::int64_t victim = engine.add(prompt(33, 4), tokens(8));
  const std::int64_t healthy = engine.add(prompt(40, 1), tokens(8));
  Ended ended;
  while (ended.errors.empty()) {
    step(engine, ended);
  }
  EXPECT_TRUE(is_idle(cuda_));
  while (engine.has_work()) {
    step(engine, ended);
  }
  EXPECT_EQ(message_of<std::domain_error>(ended.errors.at(victim)), "no idea");
  testing::expect_same({ended.generated.at(healthy)}, {expected});  // two rows, not one
  // Only what an engine takes before it has requests.
  const Engine idle(model_, options_);
  for (std::size_t tier = 0; tier < idle.memory().size(); ++tier) {
    EXPECT_EQ(engine.memory()[tier].used_bytes, idle.memory()[tier].used_bytes);
  }
}

TEST_P(FailuresOnDevice, OfAWholeStepFindTheDeviceIdleAndLeaveTheEngineUsable) {
  const Generated expected = alone(prompt(40, 1));
  Engine engine(model_, options_);
  for (const std::uint64_t seed : {1U, 2U}) {
    engine.add(prompt(40, seed), tokens(8));
  }
  Ended ended;
  while (ended.generated.size() < 2) {
    step(engine, ended);
  }
  step(engine, ended);
  at::Tensor& weight = model_->weights().layers[3].down.parts[0].dense;
  const at::Tensor whole = weight;
  weight = whole.narrow(1, 0, whole.size(1) - 1);
  engine.reset_statistics();
  step(engine, ended);
  weight = whole;
  EXPECT_EQ(ended.errors.size(), 2U);
  EXPECT_TRUE(is_idle(cuda_));
  EXPECT_FALSE(engine.has_work());
  const std::int64_t again = engine.add(prompt(40, 1), tokens(8));
  EXPECT_EQ(run_to_end(engine).generated.at(again), expected);
  const PipelineStatistics times = engine.run_statistics().pipeline;
  EXPECT_LE(times.device_s + times.wait_s, times.decode_s);
}

TEST_P(FailuresOnDevice, OfAnAllocationEndWhoeverAskedForItAndNobodyLater) {
  const Generated expected = alone(prompt(40, 1));
  Engine engine(model_, options_);
  const std::int64_t running = engine.add(prompt(40, 1), tokens(8));
  Ended ended;
  step(engine, ended);
  step(engine, ended);
  // Enough for what a request keeps, and not for its prompt.
  emulated::DeviceMemory& memory = cuda_.device().memory();
  memory.set_capacity(memory.use().now + (std::size_t{200} << 10));
  const std::int64_t coming = engine.add(prompt(150, 3), tokens(8));
  step(engine, ended);
  memory.set_capacity(std::size_t{8} << 30);
  ASSERT_EQ(ended.errors.size(), 1U);
  EXPECT_NE(message_of<OutOfMemoryError>(ended.errors.at(coming)), "another exception");
  EXPECT_TRUE(is_idle(cuda_));
  // Nothing at all for a step.
  const std::int64_t second = engine.add(prompt(150, 3), tokens(8));
  step(engine, ended);
  memory.set_capacity(memory.use().now);
  step(engine, ended);
  memory.set_capacity(std::size_t{8} << 30);
  EXPECT_TRUE(is_idle(cuda_));
  for (const std::int64_t id : {running, second}) {
    ASSERT_TRUE(ended.errors.contains(id));
    EXPECT_NE(message_of<OutOfMemoryError>(ended.errors.at(id)), "another exception");
  }
  const std::int64_t again = engine.add(prompt(40, 1), tokens(8));
  EXPECT_EQ(run_to_end(engine).generated.at(again), expected);
}

}  // namespace
}  // namespace hybridgen
