// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/error.h"

#include <gtest/gtest.h>

namespace hybridgen {
namespace {

TEST(Message, StreamsItsArgumentsInOrder) {
  EXPECT_EQ(message("k is ", 0, "; allowed: >= ", 1.5), "k is 0; allowed: >= 1.5");
}

TEST(HumanBytes, UsesTheLargestUnitThatKeepsTheNumberAtLeastOne) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(512), "512 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(3.5 * 1024 * 1024), "3.5 MiB");
  EXPECT_EQ(human_bytes(12.0 * 1024 * 1024 * 1024), "12.0 GiB");
}

TEST(HumanBytes, NeverPrints1024OfAUnit) { EXPECT_EQ(human_bytes(1024.0 * 1024 - 1), "1.0 MiB"); }

TEST(HumanBytes, KeepsTheSign) { EXPECT_EQ(human_bytes(-2048), "-2.0 KiB"); }

TEST(Error, EveryKindIsCaughtAsTheBase) {
  EXPECT_THROW(throw ConfigError("x"), Error);
  EXPECT_THROW(throw UnsupportedModelError("x"), Error);
  EXPECT_THROW(throw CheckpointError("x"), Error);
  EXPECT_THROW(throw OutOfMemoryError("x"), Error);
  EXPECT_THROW(throw DeviceError("x"), Error);
  EXPECT_THROW(throw NumericError("x"), Error);
}

}  // namespace
}  // namespace hybridgen
