// SPDX-License-Identifier: Apache-2.0
// Finds operations of a device that use the same bytes, at least one of them writing, without an
// order between their streams: with a vector clock per stream, so that it needs no unlucky timing.
//
//   EmulatedCuda device(Mode::kEager);
//   OrderChecker checker(device.device());
//   ... work ...
//   EXPECT_EQ(checker.races(), std::vector<std::string>{});
//
// The host counts as one thread: what any of its threads has waited for is in order with all that
// is queued afterwards. What host threads do to each other is for the thread sanitizer.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "emulated/device.h"

namespace hybridgen::testing {

class OrderChecker final : public emulated::Observer {
 public:
  /// Observes `device` while it lives.
  explicit OrderChecker(emulated::Device& device);
  ~OrderChecker() override;
  OrderChecker(const OrderChecker&) = delete;
  OrderChecker& operator=(const OrderChecker&) = delete;

  /// One text per pair of operations: "aten::copy_ writes on stream 33 what aten::bmm reads on
  /// stream 1".
  const std::vector<std::string>& races() const { return races_; }

  void on_operation(const emulated::QueuedOperation& operation, emulated::Ticket ticket) override;
  void on_device_wait(emulated::StreamIndex stream, emulated::Ticket ticket) override;
  void on_host_wait(emulated::Ticket ticket) override;

 private:
  /// Of each stream: operations that are in order before. Missing: none.
  using Clock = std::map<emulated::StreamIndex, std::uint64_t>;
  struct Access {
    emulated::StreamIndex stream = 0;
    std::uint64_t number = 0;
    std::string_view name;
  };
  struct Cell {
    std::uintptr_t end = 0;
    Access write;  ///< number 0: none yet
    std::map<emulated::StreamIndex, Access> reads;
  };
  struct StreamClock {
    Clock now;
    std::map<std::uint64_t, Clock> since;  ///< clocks by the first operation that had them
  };

  Clock clock_at(emulated::Ticket ticket) const;
  static void join(Clock& clock, const Clock& other);
  void split(std::uintptr_t at);
  void read(const emulated::ByteRange& range, const Access& access, const Clock& clock);
  void write(const emulated::ByteRange& range, const Access& access, const Clock& clock);
  void check(const Access& earlier,
             bool earlier_writes,
             const Access& later,
             bool later_writes,
             const Clock& clock);

  emulated::Device& device_;
  Clock host_;
  std::map<emulated::StreamIndex, StreamClock> streams_;
  std::map<std::uintptr_t, Cell> cells_;  ///< by their first byte
  std::vector<std::string> races_;
};

}  // namespace hybridgen::testing
