// SPDX-License-Identifier: Apache-2.0
#include "support/order_checker.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen::testing {

using emulated::ByteRange;
using emulated::QueuedOperation;
using emulated::StreamIndex;
using emulated::Ticket;

OrderChecker::OrderChecker(emulated::Device& device) : device_(device) {
  device_.set_observer(this);
}

OrderChecker::~OrderChecker() { device_.set_observer(nullptr); }

void OrderChecker::join(Clock& clock, const Clock& other) {
  for (const auto& [stream, number] : other) {
    std::uint64_t& own = clock[stream];
    own = std::max(own, number);
  }
}

OrderChecker::Clock OrderChecker::clock_at(Ticket ticket) const {
  Clock clock;
  if (const auto found = streams_.find(ticket.stream); found != streams_.end()) {
    const auto after = found->second.since.upper_bound(ticket.number);
    if (after != found->second.since.begin()) {
      clock = std::prev(after)->second;
    }
  }
  clock[ticket.stream] = ticket.number;
  return clock;
}

void OrderChecker::on_operation(const QueuedOperation& operation, Ticket ticket) {
  StreamClock& stream = streams_[operation.stream];
  Clock joined = stream.now;
  join(joined, host_);
  if (stream.since.empty() || joined != stream.now) {
    stream.now = joined;
    stream.since[ticket.number] = joined;
  }
  joined[operation.stream] = ticket.number - 1;
  const Access access{operation.stream, ticket.number, operation.name};
  for (const ByteRange& range : operation.reads) {
    read(range, access, joined);
  }
  for (const ByteRange& range : operation.writes) {
    write(range, access, joined);
  }
}

void OrderChecker::on_device_wait(StreamIndex stream, Ticket ticket) {
  join(streams_[stream].now, clock_at(ticket));
  streams_[stream].since[device_.end_of(stream).number] = streams_[stream].now;
}

void OrderChecker::on_host_wait(Ticket ticket) { join(host_, clock_at(ticket)); }

// No cell reaches over `at` afterwards.
void OrderChecker::split(std::uintptr_t at) {
  const auto after = cells_.upper_bound(at);
  if (after == cells_.begin()) {
    return;
  }
  const auto cell = std::prev(after);
  if (cell->first < at && at < cell->second.end) {
    cells_[at] = cell->second;
    cell->second.end = at;
  }
}

void OrderChecker::read(const ByteRange& range, const Access& access, const Clock& clock) {
  const auto begin = reinterpret_cast<std::uintptr_t>(range.begin);
  const std::uintptr_t end = begin + range.bytes;
  split(begin);
  split(end);
  std::uintptr_t covered = begin;
  for (auto cell = cells_.lower_bound(begin); covered < end; ++cell) {
    const std::uintptr_t next = cell == cells_.end() ? end : std::min(cell->first, end);
    if (covered < next) {  // nobody has used these bytes
      cell = cells_.insert({covered, {.end = next, .write = {}, .reads = {}}}).first;
    }
    check(cell->second.write, true, access, false, clock);
    cell->second.reads[access.stream] = access;
    covered = cell->second.end;
  }
}

void OrderChecker::write(const ByteRange& range, const Access& access, const Clock& clock) {
  const auto begin = reinterpret_cast<std::uintptr_t>(range.begin);
  const std::uintptr_t end = begin + range.bytes;
  split(begin);
  split(end);
  const auto first = cells_.lower_bound(begin);
  const auto last = cells_.lower_bound(end);
  for (auto cell = first; cell != last; ++cell) {
    check(cell->second.write, true, access, true, clock);
    for (const auto& [stream, reader] : cell->second.reads) {
      check(reader, false, access, true, clock);
    }
  }
  cells_.erase(first, last);
  cells_[begin] = {.end = end, .write = access, .reads = {}};
}

void OrderChecker::check(const Access& earlier,
                         bool earlier_writes,
                         const Access& later,
                         bool later_writes,
                         const Clock& clock) {
  const auto known = clock.find(earlier.stream);
  const std::uint64_t ordered = known == clock.end() ? 0 : known->second;
  if (earlier.number == 0 || earlier.stream == later.stream || earlier.number <= ordered) {
    return;
  }
  const auto verb = [](bool writes) { return writes ? " writes" : " reads"; };
  std::string race = message(later.name,
                             verb(later_writes),
                             " on stream ",
                             later.stream,
                             " what ",
                             earlier.name,
                             verb(earlier_writes),
                             " on stream ",
                             earlier.stream);
  if (std::ranges::find(races_, race) == races_.end()) {
    races_.push_back(std::move(race));
  }
}

}  // namespace hybridgen::testing
