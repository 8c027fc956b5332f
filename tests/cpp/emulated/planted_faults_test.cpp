// SPDX-License-Identifier: Apache-2.0
// Every wait of the event protocol is left out once, and somebody notices.
#include <gtest/gtest.h>

#include <cmath>
#include <exception>

#include "support/emulated_cuda.h"
#include "support/method_settings.h"
#include "support/order_checker.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using emulated::Fault;
using emulated::Mode;
using testing::EmulatedCuda;
using testing::Generated;
using testing::OrderChecker;
using testing::tiny_model;

EngineOptions hybridgen_method() {
  return testing::hybrid(
             "", QueryMode::kSpeculative, SelectionStrategy::kPostQkt, "topk", TokenCount::count(6))
      .options;
}

std::vector<Generated> run_on(const std::string& device, EngineOptions options) {
  options.math = Math::kAten;
  Engine engine(tiny_model(device), options);
  return testing::generate(engine, {testing::prompt(40, 1), testing::prompt(33, 2)}, 8);
}

// Whether the results with `fault` are wrong: other numbers, or numbers that are refused.
bool changes_results(Fault fault, Mode mode, const EngineOptions& options) {
  static const std::vector<Generated> right = run_on("cpu", hybridgen_method());
  emulated::DeviceOptions settings = EmulatedCuda::options(mode);
  settings.uploads_wait = false;  // a wait for something else must not hide the one that is missing
  settings.fault = fault;
  const EmulatedCuda device(settings);
  try {
    const std::vector<Generated> outputs = run_on(device.name(), options);
    for (std::size_t i = 0; i < right.size(); ++i) {
      if (outputs[i].tokens != right[i].tokens) {
        return true;
      }
      for (std::size_t t = 0; t < right[i].logprobs.size(); ++t) {
        if (std::abs(outputs[i].logprobs[t] - right[i].logprobs[t]) > 2e-4F) {
          return true;
        }
      }
    }
    return false;
  } catch (const std::exception&) {
    return true;
  }
}

// What the checker of orders says with `fault`, where timing hides nothing: all work runs at once.
std::vector<std::string> races_with(Fault fault, const EngineOptions& options) {
  emulated::DeviceOptions settings = EmulatedCuda::options(Mode::kEager);
  settings.uploads_wait = false;
  settings.fault = fault;
  EmulatedCuda device(settings);
  OrderChecker checker(device.device());
  run_on(device.name(), options);
  return checker.races();
}

TEST(PlantedFaults, NoneIsNoticedWhereThereIsNone) {
  EXPECT_FALSE(changes_results(Fault::kNone, Mode::kLazy, hybridgen_method()));
  EXPECT_FALSE(changes_results(Fault::kNone, Mode::kDelays, hybridgen_method()));
  EXPECT_EQ(races_with(Fault::kNone, hybridgen_method()), std::vector<std::string>{});
}

TEST(PlantedFaults, AMergeThatDoesNotWaitForItsPayloadIsNoticed) {
  EXPECT_TRUE(changes_results(Fault::kStreamIgnoresEvent, Mode::kLazy, hybridgen_method()));
  EXPECT_FALSE(races_with(Fault::kStreamIgnoresEvent, hybridgen_method()).empty());
}

TEST(PlantedFaults, WorkersThatDoNotWaitForTheirQueriesAreNoticed) {
  EXPECT_TRUE(changes_results(Fault::kWorkerIgnoresEvent, Mode::kLazy, hybridgen_method()));
}

TEST(PlantedFaults, AStagingSlotThatIsReusedTooEarlyIsNoticed) {
  EXPECT_TRUE(changes_results(Fault::kWorkerWaitsForOlder, Mode::kLazy, hybridgen_method()));
  EXPECT_FALSE(races_with(Fault::kWorkerWaitsForOlder, hybridgen_method()).empty());
}

TEST(PlantedFaults, LogitsThatAreReadTooEarlyAreNoticed) {
  EXPECT_TRUE(changes_results(Fault::kCopyToHostIsNotAwaited, Mode::kLazy, hybridgen_method()));
  EXPECT_TRUE(changes_results(Fault::kDriverIgnoresEvent, Mode::kLazy, hybridgen_method()));
}

TEST(PlantedFaults, WeightsThatAreUsedBeforeTheyAreThereAreNoticed) {
  EXPECT_TRUE(changes_results(Fault::kDeviceIsNotAwaited, Mode::kLazy, hybridgen_method()));
  EXPECT_FALSE(races_with(Fault::kDeviceIsNotAwaited, hybridgen_method()).empty());
}

}  // namespace
}  // namespace hybridgen
