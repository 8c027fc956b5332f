// SPDX-License-Identifier: Apache-2.0
// Which CPUs this process may use, and how a thread is kept to some of them.
#pragma once

#include <pthread.h>

#include <vector>

namespace hybridgen {

/// CPUs the calling thread may use (affinity mask), ascending. Where OpenMP has bound the thread to
/// one of its places (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY): those that the process was
/// started with, as far as they can be known, else those of all places.
std::vector<int> available_cpus();

/// Whether OpenMP binds threads to places, and so narrows the mask of any thread that uses it.
bool openmp_binds_threads();

/// CPUs' worth of time this process may use: min(available_cpus(), cgroup v1/v2 quota rounded up),
/// >= 1.
int available_parallelism();

/// Restricts a thread, or the calling one, to `cpus`. Throws DeviceError with errno text, naming
/// `operation`.
void pin_thread(pthread_t thread, const std::vector<int>& cpus, const char* operation);
void pin_current_thread(const std::vector<int>& cpus);

/// Sets FTZ and DAZ for the calling thread: denormals cost 2-4x in the scan (microcode assists).
void flush_denormals_in_current_thread();

}  // namespace hybridgen
