// SPDX-License-Identifier: Apache-2.0
// All requests of an engine, and where each stands: waiting, prefilling, running or ended. Says
// what comes next; runs nothing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "engine/request.h"

namespace hybridgen {

class RequestQueue {
 public:
  /// Gives the request an id and lets it wait; returns the id. Ids rise.
  std::int64_t add(std::unique_ptr<Request> request);
  /// ConfigError for an id that was released or never given.
  Request& find(std::int64_t id) const;
  /// Forgets an ended request.
  void release(std::int64_t id) { requests_.erase(id); }

  bool has_work() const { return !waiting_.empty() || !prefilling_.empty() || !running_.empty(); }
  /// The request that has waited longest; null: none waits.
  Request* first_waiting() const;
  /// Those whose prompts are being read, in the order of their coming.
  const std::vector<Request*>& prefilling() const { return prefilling_; }
  /// Those that have memory: those being read and those in decode steps.
  std::vector<const Request*> started() const;
  /// Those in decode steps, by ascending id.
  const std::vector<Request*>& running() const { return running_; }

  void start_prefill(Request& request);  ///< from waiting
  void start_running(Request& request);  ///< from prefilling
  void end(Request& request);            ///< from anywhere; it stays known until release()

  /// Whether running() has changed since this was last asked.
  bool take_changed();

 private:
  std::map<std::int64_t, std::unique_ptr<Request>> requests_;
  std::map<std::int64_t, Request*> waiting_;  ///< by id, which is the order of their coming
  std::vector<Request*> prefilling_;
  std::vector<Request*> running_;
  bool changed_ = true;
  std::int64_t next_id_ = 0;
};

}  // namespace hybridgen
