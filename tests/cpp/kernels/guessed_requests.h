// SPDX-License-Identifier: Apache-2.0
// Requests on the device whose guesses are there already, for kernels that count and rank them.
#pragma once

#include <deque>
#include <limits>
#include <optional>

#include "kernels/cuda_planning.h"
#include "score_rows.h"

namespace hybridgen::kernels::test {

struct GuessedRequest {
  Rows guesses;  ///< no scores: nothing is planned for it
  std::int64_t most = 0;
  std::optional<std::int64_t> count{};  ///< of the places wanted, on the device; none: `most`
  float alpha = 0.0F;
  bool takes_newer = false;
};

class GuessedRequests {
 public:
  explicit GuessedRequests(const std::vector<GuessedRequest>& requests) {
    std::vector<PlanRow> rows;
    for (const GuessedRequest& request : requests) rows.push_back(row_of(request));
    args_.batch = static_cast<std::int64_t>(rows.size());
    rows_.emplace_back(rows);
    args_.rows = rows_.front().get<PlanRow>();
  }

  const PlanTokens& args() const { return args_; }
  std::vector<std::int32_t> places(std::size_t request) const {
    return places_[request].values<std::int32_t>();
  }
  std::int64_t count(std::size_t request) const {
    return counts_[request].values<std::int64_t>().front();
  }

 private:
  /// A NaN behind each row.
  static std::vector<float> with_gaps(const Rows& rows) {
    std::vector<float> scores;
    for (std::int64_t i = 0; i < std::ssize(rows.scores); ++i) {
      scores.push_back(rows.scores[static_cast<std::size_t>(i)]);
      if ((i + 1) % rows.tokens() == 0) scores.push_back(std::numeric_limits<float>::quiet_NaN());
    }
    return scores;
  }

  PlanRow row_of(const GuessedRequest& request) {
    const std::int64_t groups = request.guesses.groups;
    PlanRow row;
    row.num_tokens = request.guesses.tokens();
    row.most = request.most;
    row.alpha = request.alpha;
    row.guess_stride = row.num_tokens + 1;
    row.guesses = guesses_.emplace_back(with_gaps(request.guesses)).get<float>();
    row.takes_newer = request.takes_newer;
    row.places = places_
                     .emplace_back(std::vector<std::int32_t>(
                         static_cast<std::size_t>(groups * request.most), -7))
                     .get<std::int32_t>();
    DeviceCopy& count = counts_.emplace_back(std::vector{request.count.value_or(-7)});
    if (request.count) row.count = count.get<std::int64_t>();
    // Full of what others left there.
    const std::size_t bytes = plan_work_bytes(groups, 1, 1, row.num_tokens);
    row.work = work_.emplace_back(std::vector<std::uint8_t>(bytes, 0xa5)).get();
    args_.groups = groups;
    args_.max_tokens = std::max(args_.max_tokens, row.num_tokens);
    return row;
  }

  PlanTokens args_;
  std::deque<DeviceCopy> guesses_;
  std::deque<DeviceCopy> places_;
  std::deque<DeviceCopy> counts_;
  std::deque<DeviceCopy> work_;
  std::deque<DeviceCopy> rows_;
};

}  // namespace hybridgen::kernels::test
