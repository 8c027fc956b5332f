// SPDX-License-Identifier: Apache-2.0
// A device with the clock of a machine profile: its operations take their modelled time and compute
// nothing, while the host's half is real.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "device/device_context.h"
#include "emulated/backend.h"
#include "hybridgen/core/error.h"
#include "pipeline/invented_places.h"
#include "support/method_settings.h"
#include "support/timed_device.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::Setting;
using testing::timed_device;

TEST(TimedDevice, HasTheMemoryOfItsProfile) {
  const DeviceContext context(timed_device());
  EXPECT_TRUE(context.is_timed());
  EXPECT_FALSE(DeviceContext("emulated").is_timed());
  const auto memory =
      c10::getDeviceAllocator(context.device().type())->getMemoryInfo(context.device().index());
  EXPECT_NEAR(static_cast<double>(memory.second), 4e9, 4096.0);
}

TEST(TimedDevice, TakesTheModelledTimeOfWhatItDoesNotCompute) {
  const DeviceContext context(timed_device());
  const auto compute = context.use_compute();
  const c10::impl::VirtualGuardImpl guard(context.device().type());
  // 100 MB that are never touched: written at 10 GB/s, it takes 10 ms.
  at::Tensor x = at::empty({25'000'000}, at::TensorOptions().device(context.device()));
  c10::Event begin(context.device().type(), c10::EventFlag::BACKEND_DEFAULT);
  c10::Event end(context.device().type(), c10::EventFlag::BACKEND_DEFAULT);
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  begin.record(guard.getStream(context.device()));
  x.fill_(1.0);
  end.record(guard.getStream(context.device()));
  end.synchronize();
  const double waited_ms = static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-6;
  EXPECT_GE(begin.elapsedTime(end), 10.0);
  EXPECT_GE(waited_ms, 10.0);
}

TEST(TimedDevice, AnswersThatAllValuesAreFine) {
  const DeviceContext context(timed_device());
  const at::Tensor x = at::empty({8}, at::TensorOptions().device(context.device()));
  EXPECT_TRUE(x.isfinite().all().item<bool>());
  EXPECT_FALSE(x.isnan().any().item<bool>());
  EXPECT_TRUE(x.cpu().isfinite().all().item<bool>());
}

TEST(TimedDevice, NeedsAProfileThatIsRegistered) {
  EXPECT_THROW(DeviceContext("emulated:63"), DeviceError);
  EXPECT_THROW(DeviceContext("emulated:x"), ConfigError);
  EXPECT_THROW(DeviceContext("emulated:"), ConfigError);
}

TEST(TimedDevice, IsSaidToChooseTokensAllOver) {
  const auto places = [](std::int64_t count, std::int64_t tokens) {
    const at::Tensor chosen = invented_places(count, tokens);
    return std::vector<std::int64_t>(chosen.const_data_ptr<std::int64_t>(),
                                     chosen.const_data_ptr<std::int64_t>() + chosen.numel());
  };
  EXPECT_EQ(places(3, 10), (std::vector<std::int64_t>{0, 3, 6}));
  EXPECT_EQ(places(4, 4), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_TRUE(places(0, 4).empty());
}

class MethodsInTime : public ::testing::TestWithParam<Setting> {};

TEST_P(MethodsInTime, RunToTheirEndWithAsManyTokens) {
  Engine engine(testing::tiny_model(timed_device()), GetParam().options);
  for (const testing::Generated& output : testing::generate(engine, testing::ragged_prompts(), 6)) {
    EXPECT_EQ(output.tokens.size(), 6);
  }
  EXPECT_GT(engine.run_statistics().pipeline.device_s, 0.0);
}

std::int64_t bytes_to_device(const std::string& device, double sparsity) {
  EngineOptions options = testing::options("flexgen");
  options.method_config = {{"attn_sparsity", sparsity}};
  Engine engine(testing::tiny_model(device), options);
  testing::generate(engine, testing::ragged_prompts(), 6);
  return engine.run_statistics().pipeline.h2d_bytes;
}

// Which values have a weight is not known: as many as may have one.
TEST(TimedDevice, FetchesAsManySparseValuesAsTheMethodLets) {
  const std::int64_t sparse = bytes_to_device(timed_device(), 0.3);
  EXPECT_LT(sparse, bytes_to_device(timed_device(), 1.0));
  EXPECT_GE(sparse, bytes_to_device("cpu", 0.3));
}

TEST(TimedDevice, RefusesAChoiceByWhatItDoesNotKnow) {
  const Setting setting = testing::hybrid_by_mass("", QueryMode::kExact, 0.9);
  EXPECT_THROW(Engine(testing::tiny_model(timed_device()), setting.options), ConfigError);
}

const auto kName = [](const auto& info) { return info.param.name; };

INSTANTIATE_TEST_SUITE_P(
    Methods,
    MethodsInTime,
    ::testing::ValuesIn(testing::timed_settings(testing::approximate_settings())),
    kName);

}  // namespace
}  // namespace hybridgen
