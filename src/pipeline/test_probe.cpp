// SPDX-License-Identifier: Apache-2.0
#include "pipeline/test_probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "pipeline/cpu_stage.h"

namespace hybridgen {
namespace {

// Sleeps up to `limit_us`, to show that results do not depend on timing.
void sleep_at_random(std::int64_t limit_us) {
  thread_local std::uint64_t state = std::hash<std::thread::id>{}(std::this_thread::get_id()) | 1U;
  state ^= state << 13U;
  state ^= state >> 7U;
  state ^= state << 17U;
  std::this_thread::sleep_for(std::chrono::microseconds(
      static_cast<std::int64_t>(state % static_cast<std::uint64_t>(limit_us + 1))));
}

class TestProbe final : public PipelineProbe {
 public:
  explicit TestProbe(const TestSwitches& switches) : switches_(switches) {}

  void at_seam() override {
    if (switches_.random_delay_us > 0) {
      sleep_at_random(switches_.random_delay_us);
    }
  }
  // One channel that all workers share: whoever reads waits until it has had the time for that.
  void after_cxl_read(std::int64_t bytes, std::int64_t begin_ns) override {
    if (switches_.cxl_bytes_per_second <= 0) {
      return;
    }
    const auto took = static_cast<std::int64_t>(
        1e9 * static_cast<double>(bytes) / static_cast<double>(switches_.cxl_bytes_per_second));
    std::int64_t before = channel_free_ns_.load(std::memory_order_relaxed);
    std::int64_t done = 0;
    do {
      done = std::max(before, begin_ns) + took;
    } while (!channel_free_ns_.compare_exchange_weak(before, done, std::memory_order_relaxed));
    while (TraceRecorder::now_ns() < done) {
    }
  }
  void after_submit(CpuStage& stage, HostJobBatch& batch) override {
    if (switches_.synchronous) {
      stage.wait(batch);
    }
  }
  std::int64_t guess_distance() const override { return switches_.oracle_proxy ? 0 : 1; }

 private:
  TestSwitches switches_;
  std::atomic<std::int64_t> channel_free_ns_{0};
};

}  // namespace

std::unique_ptr<PipelineProbe> make_test_probe(const TestSwitches& switches) {
  if (!switches.synchronous && switches.random_delay_us <= 0 && !switches.oracle_proxy &&
      switches.cxl_bytes_per_second <= 0) {
    return nullptr;
  }
  return std::make_unique<TestProbe>(switches);
}

}  // namespace hybridgen
