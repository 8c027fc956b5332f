// SPDX-License-Identifier: Apache-2.0
// Bytes over the link between host and device, counted by whoever sends them and the same on every
// device: on a CPU device nothing is copied, and the meter says what would cross.
#pragma once

#include <cstdint>

namespace hybridgen {

class LinkMeter {
 public:
  /// Adds to three sums, which must outlive it.
  LinkMeter(std::int64_t& to_device, std::int64_t& to_host, std::int64_t& leaving)
      : to_device_(to_device), to_host_(to_host), leaving_(leaving) {}

  void to_device(std::int64_t bytes) { to_device_ += bytes; }
  void to_host(std::int64_t bytes) { to_host_ += bytes; }
  /// K and V that leave the device for good.
  void leaving(std::int64_t bytes) { leaving_ += bytes; }

 private:
  std::int64_t& to_device_;
  std::int64_t& to_host_;
  std::int64_t& leaving_;
};

}  // namespace hybridgen
