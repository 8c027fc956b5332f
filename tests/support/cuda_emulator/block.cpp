// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_emulator/block.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "support/cuda_emulator/error.h"

namespace hybridgen::cuda_emulator {

namespace {

thread_local Block* current_block = nullptr;

std::string place_of(Where where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

std::string in_this_block(const std::string& what) {
  return "[cuda_emulator] block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "): " + what;
}

bool are_same(Where a, Where b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::string_view(a.file_name()) == b.file_name();
}

/// Says which block it is for as long as it runs.
class CurrentBlock {
 public:
  explicit CurrentBlock(Block* block) : before_(std::exchange(current_block, block)) {}
  ~CurrentBlock() { current_block = before_; }
  CurrentBlock(const CurrentBlock&) = delete;
  CurrentBlock& operator=(const CurrentBlock&) = delete;

 private:
  Block* before_;
};

}  // namespace

Block& Block::current() {
  if (current_block == nullptr) {
    throw KernelError("[cuda_emulator] a device function was called on the host; launch a kernel");
  }
  return *current_block;
}

Block& Block::of_this_os_thread() {
  static thread_local Block block;
  return block;
}

void Block::run(dim3 shape,
                std::size_t dynamic_shared_bytes,
                ThreadOrder order,
                std::mt19937_64& random,
                void (*kernel)(const void* arguments),
                const void* arguments) {
  if (current_block != nullptr) {
    throw KernelError("[cuda_emulator] a kernel launches a kernel; launch from the host");
  }
  const CurrentBlock current(this);
  kernel_ = kernel;
  arguments_ = arguments;
  failure_.clear();
  thrown_ = nullptr;
  shared_.start_block(dynamic_shared_bytes);
  start_threads(shape);
  warps_.start_block(size_);
  while (live_ > 0) {
    run_round(order, random);
    throw_if_failed();
    if (ready_ > 0 || live_ == 0) continue;
    if (at_barrier_ < live_) {
      failure_ = "deadlock: " + waiting_threads();
    } else {
      end_barrier();
    }
    throw_if_failed();
  }
  end_.acquire();
}

void Block::start_threads(dim3 shape) {
  size_ = static_cast<int>(shape.x * shape.y * shape.z);
  live_ = ready_ = size_;
  at_barrier_ = 0;
  for (Ordering* ordering : {&start_, &end_, &barrier_[0], &barrier_[1]}) ordering->renew();
  start_.release();
  while (threads_.size() < index(size_)) {
    threads_.push_back(std::make_unique<Thread>(threads_.size()));
  }
  live_lanes_.fill(0);
  for (int i = 0; i < size_; ++i) {
    live_lanes_[index(i / warpSize)] |= std::uint32_t{1} << (i % warpSize);
    Thread& thread = *threads_[index(i)];
    const auto number = static_cast<unsigned>(i);
    thread.place = {number % shape.x, number / shape.x % shape.y, number / (shape.x * shape.y)};
    thread.state = State::kReady;
    thread.copies.clear();
    thread.fiber.start([](void* self) { static_cast<Block*>(self)->run_thread(); }, this);
  }
  order_.resize(index(size_));
}

void Block::run_round(ThreadOrder order, std::mt19937_64& random) {
  std::iota(order_.begin(), order_.end(), 0);
  if (order == ThreadOrder::kReverse) std::reverse(order_.begin(), order_.end());
  if (order == ThreadOrder::kRandom) std::shuffle(order_.begin(), order_.end(), random);
  for (const int i : order_) {
    Thread& thread = *threads_[index(i)];
    if (thread.state != State::kReady) continue;
    running_ = i;
    threadIdx = thread.place;
    thread.fiber.resume();
    if (!failure_.empty() || thrown_ != nullptr) return;
  }
}

// The whole life of a CUDA thread, on its fiber.
void Block::run_thread() {
  start_.acquire();
  try {
    kernel_(arguments_);
  } catch (...) {
    thrown_ = std::current_exception();
  }
  const EmulatorsOwnAccesses own;
  end_.release();
  threads_[index(running_)]->state = State::kEnded;
  --ready_;
  --live_;
  live_lanes_[index(running_ / warpSize)] &= ~(std::uint32_t{1} << lane());
  if (failure_.empty()) failure_ = warps_.thread_ended(running_);
}

int Block::thread() const { return running_; }
int Block::lane() const { return running_ % warpSize; }
SharedArena& Block::shared() { return shared_; }
AsyncCopies& Block::async_copies() { return threads_[index(running_)]->copies; }
Warps& Block::warps() { return warps_; }

void Block::synchronize(Where where) {
  Thread& thread = *threads_[index(running_)];
  Ordering& ordering = barrier_[barrier_turn_];
  thread.state = State::kAtBarrier;
  thread.operation = "__syncthreads";
  thread.where = where;
  ++at_barrier_;
  ordering.release();
  suspend_running();
  ordering.acquire();
}

void Block::wait_for_warp(const char* operation, Where where) {
  Thread& thread = *threads_[index(running_)];
  thread.state = State::kInWarp;
  thread.operation = operation;
  thread.where = where;
  suspend_running();
}

void Block::suspend_running() {
  Thread& thread = *threads_[index(running_)];
  --ready_;
  end_.release();  // in case that the block fails and the next one takes over this stack
  thread.fiber.suspend();
}

void Block::let_go(int thread) {
  threads_[index(thread)]->state = State::kReady;
  ++ready_;
}

std::uint32_t Block::live_lanes(int warp) const { return live_lanes_[index(warp)]; }

void Block::end_barrier() {
  const Thread* first = nullptr;
  for (int i = 0; i < size_; ++i) {
    Thread& thread = *threads_[index(i)];
    if (thread.state != State::kAtBarrier) continue;
    if (first == nullptr) first = &thread;
    if (!are_same(thread.where, first->where)) {
      failure_ = "threads wait at different barriers: " + waiting_threads();
      return;
    }
  }
  for (int i = 0; i < size_; ++i) {
    if (threads_[index(i)]->state == State::kAtBarrier) let_go(i);
  }
  at_barrier_ = 0;
  barrier_turn_ = 1 - barrier_turn_;
}

// Thrown, not only noted: what the thread holds is freed.
void Block::fail(const std::string& what) {
  throw KernelError(in_this_block("thread " + std::to_string(running_) + ": " + what));
}

void Block::throw_if_failed() {
  if (thrown_ == nullptr && failure_.empty()) return;
  end_.acquire();
  if (thrown_ != nullptr) std::rethrow_exception(std::exchange(thrown_, nullptr));
  throw KernelError(in_this_block(failure_));
}

// "thread 0 waits for its warp in __syncwarp (a.cu:3); threads 1 to 31 wait at ...".
std::string Block::waiting_threads() const {
  std::string text;
  for (int begin = 0, end = 0; begin < size_; begin = end) {
    const Thread& first = *threads_[index(begin)];
    for (end = begin + 1; end < size_; ++end) {
      const Thread& other = *threads_[index(end)];
      if (other.state != first.state || other.operation != first.operation ||
          !are_same(other.where, first.where)) {
        break;
      }
    }
    if (first.state == State::kEnded) continue;
    const bool is_one = end == begin + 1;
    text += text.empty() ? "" : "; ";
    text += is_one ? "thread " + std::to_string(begin)
                   : "threads " + std::to_string(begin) + " to " + std::to_string(end - 1);
    text += is_one ? " waits" : " wait";
    text += first.state == State::kAtBarrier ? " at " : " for the warp in ";
    text += std::string(first.operation) + " (" + place_of(first.where) + ")";
  }
  return text;
}

}  // namespace hybridgen::cuda_emulator
