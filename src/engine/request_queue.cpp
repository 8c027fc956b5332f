// SPDX-License-Identifier: Apache-2.0
#include "engine/request_queue.h"

#include <algorithm>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {

std::int64_t RequestQueue::add(std::unique_ptr<Request> request) {
  const std::int64_t id = next_id_;
  request->id = id;
  const auto [place, is_new] = waiting_.emplace(id, request.get());
  try {
    requests_.emplace(id, std::move(request));
  } catch (...) {
    waiting_.erase(place);
    throw;
  }
  next_id_ += 1;
  return id;
}

Request& RequestQueue::find(std::int64_t id) const {
  const auto found = requests_.find(id);
  if (found == requests_.end()) {
    throw ConfigError(
        message("[engine] request ", id, " is not known; it was released or never added"));
  }
  return *found->second;
}

Request* RequestQueue::first_waiting() const {
  return waiting_.empty() ? nullptr : waiting_.begin()->second;
}

std::vector<const Request*> RequestQueue::started() const {
  std::vector<const Request*> started(running_.begin(), running_.end());
  started.insert(started.end(), prefilling_.begin(), prefilling_.end());
  return started;
}

void RequestQueue::start_prefill(Request& request) {
  waiting_.erase(request.id);
  prefilling_.push_back(&request);
}

void RequestQueue::start_running(Request& request) {
  std::erase(prefilling_, &request);
  // Ascending ids, so that the composition of batches does not depend on who finished when.
  running_.insert(std::ranges::upper_bound(running_, request.id, {}, &Request::id), &request);
  changed_ = true;
}

void RequestQueue::end(Request& request) {
  waiting_.erase(request.id);
  std::erase(prefilling_, &request);
  if (std::erase(running_, &request) > 0) {
    changed_ = true;
  }
}

bool RequestQueue::take_changed() { return std::exchange(changed_, false); }

}  // namespace hybridgen
