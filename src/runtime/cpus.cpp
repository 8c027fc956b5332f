// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpus.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <set>
#include <string>
#include <system_error>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "hybridgen/core/error.h"
#include "runtime/control_group.h"

// Of the OpenMP that the program has, if it has one; programs without the engine need none.
extern "C" {
[[gnu::weak]] int omp_get_proc_bind();
[[gnu::weak]] int omp_get_num_places();
[[gnu::weak]] int omp_get_place_num_procs(int place);
[[gnu::weak]] void omp_get_place_proc_ids(int place, int* ids);
[[gnu::weak]] int omp_get_num_procs();
}

namespace hybridgen {
namespace {

/// A CPU set of any size; cpu_set_t itself ends at 1024.
class CpuSet {
 public:
  explicit CpuSet(std::size_t num_cpus) : num_cpus_(num_cpus), set_(CPU_ALLOC(num_cpus)) {
    if (set_ == nullptr) throw std::bad_alloc();
    CPU_ZERO_S(size_bytes(), set_);
  }
  ~CpuSet() { CPU_FREE(set_); }
  CpuSet(const CpuSet&) = delete;
  CpuSet& operator=(const CpuSet&) = delete;

  std::size_t num_cpus() const { return num_cpus_; }
  std::size_t size_bytes() const { return CPU_ALLOC_SIZE(num_cpus_); }
  cpu_set_t* get() { return set_; }
  void add(int cpu) { CPU_SET_S(static_cast<std::size_t>(cpu), size_bytes(), set_); }
  bool contains(int cpu) const {
    return CPU_ISSET_S(static_cast<std::size_t>(cpu), size_bytes(), set_) != 0;
  }

 private:
  std::size_t num_cpus_;
  cpu_set_t* set_;
};

std::vector<int> mask_of_this_thread() {
  constexpr std::size_t kMostCpus = std::size_t{1} << 20;
  for (std::size_t num_cpus = 1024; num_cpus <= kMostCpus; num_cpus *= 2) {
    CpuSet set(num_cpus);
    if (sched_getaffinity(0, set.size_bytes(), set.get()) == 0) {
      std::vector<int> cpus;
      for (int cpu = 0; cpu < static_cast<int>(set.num_cpus()); ++cpu) {
        if (set.contains(cpu)) cpus.push_back(cpu);
      }
      return cpus;
    }
    if (errno != EINVAL) break;  // EINVAL: the kernel's own mask is larger
  }
  throw DeviceError(message("[available_cpus] reading the affinity mask failed: ",
                            std::generic_category().message(errno),
                            "; allowed: a readable mask; pass CPUs explicitly"));
}

std::vector<int> cpus_of_place(int place) {
  std::vector<int> cpus(static_cast<std::size_t>(omp_get_place_num_procs(place)));
  omp_get_place_proc_ids(place, cpus.data());
  std::ranges::sort(cpus);
  return cpus;
}

/// All CPUs that the system would let this process have; empty if that cannot be tried.
std::vector<int> largest_possible_mask() {
  std::vector<int> cpus;
  try {
    std::thread([&cpus] {
      try {
        constexpr int kMostCpus = 8192;
        CpuSet everything(kMostCpus);
        for (int cpu = 0; cpu < kMostCpus; ++cpu) everything.add(cpu);
        if (sched_setaffinity(0, everything.size_bytes(), everything.get()) == 0) {
          cpus = mask_of_this_thread();
        }
      } catch (const std::exception&) {
        cpus.clear();  // lack of memory, or a mask that cannot be read
      }
    }).join();
  } catch (const std::exception&) {
    cpus.clear();  // no thread to try with
  }
  return cpus;
}

}  // namespace

bool openmp_binds_threads() {
  return omp_get_proc_bind != nullptr && omp_get_num_places != nullptr &&
         omp_get_place_num_procs != nullptr && omp_get_place_proc_ids != nullptr &&
         omp_get_num_procs != nullptr && omp_get_proc_bind() != 0 && omp_get_num_places() > 0;
}

std::vector<int> available_cpus() {
  std::vector<int> mask = mask_of_this_thread();
  if (!openmp_binds_threads()) return mask;
  bool is_place = false;
  std::set<int> of_places;
  for (int place = 0; place < omp_get_num_places(); ++place) {
    const std::vector<int> cpus = cpus_of_place(place);
    is_place = is_place || cpus == mask;
    of_places.insert(cpus.begin(), cpus.end());
  }
  if (!is_place) return mask;  // narrowed by somebody else, who had a reason
  // OpenMP made its places of the mask that the process had then, unless the user named CPUs; it
  // remembers how many the mask had.
  const auto original = static_cast<std::size_t>(omp_get_num_procs());
  if (of_places.size() < original) {
    std::vector<int> possible = largest_possible_mask();
    if (possible.size() == original) return possible;
  }
  return {of_places.begin(), of_places.end()};
}

void pin_thread(pthread_t thread, const std::vector<int>& cpus, const char* operation) {
  std::string listed;
  int largest = 0;
  int smallest = 0;
  for (const int cpu : cpus) {
    listed += (listed.empty() ? "" : ", ") + std::to_string(cpu);
    largest = std::max(largest, cpu);
    smallest = std::min(smallest, cpu);
  }
  constexpr int kMostCpus = 1 << 20;  // bounds the allocation; far above any kernel's limit
  int error = EINVAL;
  if (smallest >= 0 && largest < kMostCpus) {
    CpuSet set(static_cast<std::size_t>(largest) + 1);
    for (const int cpu : cpus) set.add(cpu);
    error = pthread_setaffinity_np(thread, set.size_bytes(), set.get());
  }
  if (error == 0) return;

  std::string usable;
  for (const int cpu : available_cpus()) {
    usable += (usable.empty() ? "" : ", ") + std::to_string(cpu);
  }
  throw DeviceError(message("[",
                            operation,
                            "] pinning to CPUs {",
                            listed,
                            "} failed: ",
                            std::generic_category().message(error),
                            "; allowed: non-empty subsets of {",
                            usable,
                            "}; choose among these or do not pin"));
}

int available_parallelism() {
  const auto cpus = static_cast<std::int64_t>(available_cpus().size());
  return static_cast<int>(
      std::max<std::int64_t>(1, std::min(cpus, control_group_cpus().value_or(cpus))));
}

void pin_current_thread(const std::vector<int>& cpus) {
  pin_thread(pthread_self(), cpus, "pin_current_thread");
}

void flush_denormals_in_current_thread() {
#if defined(__x86_64__) || defined(__i386__)
  constexpr unsigned kFlushToZero = 0x8000;
  constexpr unsigned kDenormalsAreZero = 0x0040;
  _mm_setcsr(_mm_getcsr() | kFlushToZero | kDenormalsAreZero);
#elif defined(__aarch64__)
  constexpr std::uint64_t kFlushToZero = std::uint64_t{1} << 24;
  std::uint64_t control = 0;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" : : "r"(control | kFlushToZero));
#endif
}

}  // namespace hybridgen
