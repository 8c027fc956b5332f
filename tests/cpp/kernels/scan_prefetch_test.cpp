// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>

#include "forced_variable.h"
#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels::test {
namespace {

constexpr const char* kName = "HYBRIDGEN_PREFETCH";

std::string error_of(std::string_view name) {
  try {
    resolve_prefetch(name);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ScanPrefetch, NamesAreThoseOfTheCaches) {
  for (const Prefetch prefetch : {Prefetch::kL1, Prefetch::kL2, Prefetch::kL3}) {
    EXPECT_EQ(resolve_prefetch(name_of(prefetch)), prefetch);
  }
}

TEST(ScanPrefetch, IsMeasuredOnceUnlessTheEnvironmentForcesOne) {
  const ForcedVariable none(kName, nullptr);
  const Prefetch measured = resolve_prefetch("auto");
  {
    const ForcedVariable forced(kName, "l3");
    EXPECT_EQ(resolve_prefetch("auto"), Prefetch::kL3);
    EXPECT_EQ(resolve_prefetch("l2"), Prefetch::kL2);  // an explicit name wins
  }
  EXPECT_EQ(resolve_prefetch("auto"), measured);
}

TEST(ScanPrefetch, AnUnknownNameIsRefusedNamingThoseThereAre) {
  EXPECT_NE(error_of("l4").find("prefetch is \"l4\""), std::string::npos);
  const ForcedVariable forced(kName, "far");
  const std::string error = error_of("auto");
  for (const char* part : {"\"far\"", kName, "\"l1\"", "\"l2\"", "\"l3\""}) {
    EXPECT_NE(error.find(part), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace hybridgen::kernels::test
