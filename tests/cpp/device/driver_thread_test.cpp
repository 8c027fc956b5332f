// SPDX-License-Identifier: Apache-2.0
#include "device/driver_thread.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "hybridgen/core/error.h"
#include "runtime/engine_thread.h"
#include "support/forked_child.h"

namespace hybridgen {
namespace {

TEST(DriverThread, RunsWorkElsewhereAndHandsItsExceptionOver) {
  DriverThread driver;
  bool is_of_engine = false;
  driver.run([&] { is_of_engine = is_engine_thread(); });
  EXPECT_TRUE(is_of_engine);
  EXPECT_FALSE(is_engine_thread());
  EXPECT_THROW(driver.run([] { throw std::domain_error("of the work"); }), std::domain_error);
  EXPECT_NO_THROW(driver.run([] {}));
}

TEST(DriverThread, ThatCannotBeStartedNamesTheLimit) {
  EXPECT_TRUE(holds_in_child([] {
    if (!forbid_threads()) return false;
    try {
      const DriverThread driver;
    } catch (const DeviceError& error) {
      const std::string text = error.what();
      return text.find("[driver thread] the thread could not be created: ") == 0 &&
             text.find("RLIMIT_NPROC (ulimit -u) is 1") != std::string::npos;
    }
    return false;
  }));
}

}  // namespace
}  // namespace hybridgen
