// SPDX-License-Identifier: Apache-2.0
#include "memory/page_pins.h"

namespace hybridgen {
namespace {

std::optional<PagePins*>& in_its_place() {
  static std::optional<PagePins*> pins;
  return pins;
}

}  // namespace

PagePins* page_pins(PagePins* of_device) { return in_its_place().value_or(of_device); }

PagePinsForTest::PagePinsForTest(PagePins* pins) : before_(in_its_place()) {
  in_its_place() = pins;
}

PagePinsForTest::~PagePinsForTest() { in_its_place() = before_; }

}  // namespace hybridgen
