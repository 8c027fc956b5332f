// SPDX-License-Identifier: Apache-2.0
// Every method, in every setting, gives on a device of its own memory and streams what it gives on
// the CPU, whenever the device's operations run.
#include <gtest/gtest.h>

#include <map>

#include "device/driver_thread.h"
#include "support/emulated_cuda.h"
#include "support/method_settings.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using emulated::Mode;
using testing::approximate_settings;
using testing::EmulatedCuda;
using testing::exact_settings;
using testing::generate;
using testing::Generated;
using testing::ragged_prompts;
using testing::Setting;
using testing::tiny_model;

constexpr int kSteps = 12;

std::vector<Setting> all_settings() {
  std::vector<Setting> settings = {{"full", testing::options("full")}};
  for (Setting& each : exact_settings()) {
    each.name = "exact_" + each.name;
    settings.push_back(std::move(each));
  }
  for (Setting& each : approximate_settings()) {
    settings.push_back(std::move(each));
  }
  return settings;
}

std::vector<Generated> run_on(const std::string& device, EngineOptions options) {
  options.math = Math::kAten;
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

TEST_P(MethodsOnDevice, EqualTheCpuWhenWorkRunsAtOnce) {
  const EmulatedCuda device(Mode::kEager);
  expect_equal(run_on(device.name(), GetParam().options), on_cpu(GetParam()));
}

TEST_P(MethodsOnDevice, EqualTheCpuWhenWorkRunsOnlyIfItIsWaitedFor) {
  const EmulatedCuda device(Mode::kLazy);
  expect_equal(run_on(device.name(), GetParam().options), on_cpu(GetParam()));
}

TEST_P(MethodsOnDevice, EqualTheCpuWhenEachStreamHasAThread) {
  const EmulatedCuda device(Mode::kThreads);
  expect_equal(run_on(device.name(), GetParam().options), on_cpu(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Methods, MethodsOnDevice, ::testing::ValuesIn(all_settings()), kName);

}  // namespace
}  // namespace hybridgen
