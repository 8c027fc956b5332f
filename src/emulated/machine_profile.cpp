// SPDX-License-Identifier: Apache-2.0
#include "emulated/machine_profile.h"

#include <cmath>
#include <deque>
#include <mutex>

#include "hybridgen/core/error.h"

namespace hybridgen::emulated {
namespace {

using M = MachineProfile;

constexpr const char* kOperation = "machine profile";
constexpr Interval kRate{0.0, 1e9, /*low_open=*/true};
constexpr Interval kMicroseconds{0.0, 1e6};

bool read_pair(const OptionValue& value, MemoryShare& pair) {
  const auto* terms = value.as<OptionValue::List>();
  return terms != nullptr && terms->size() == 2 &&
         read_number((*terms)[0], kRate, pair.megabytes) &&
         read_number((*terms)[1], kPositiveShare, pair.share);
}

// Ascending, and a larger operation never takes less time.
bool read_shares(const OptionValue& value, std::vector<MemoryShare>& shares) {
  const auto* list = value.as<OptionValue::List>();
  if (list == nullptr) return false;
  std::vector<MemoryShare> found(list->size());
  for (std::size_t i = 0; i < list->size(); ++i) {
    if (!read_pair((*list)[i], found[i])) return false;
    if (i == 0) continue;
    const MemoryShare& before = found[i - 1];
    if (found[i].megabytes <= before.megabytes ||
        found[i].megabytes * before.share < before.megabytes * found[i].share) {
      return false;
    }
  }
  shares = std::move(found);
  return true;
}

OptionValue value_of(const std::vector<MemoryShare>& shares) {
  OptionValue::List list;
  for (const MemoryShare& pair : shares) {
    list.emplace_back(OptionValue::List{pair.megabytes, pair.share});
  }
  return list;
}

struct Registry {
  std::mutex mutex;
  std::deque<MachineProfile> machines;  // references stay valid
};

Registry& registry() {
  static Registry registry;
  return registry;
}

}  // namespace

const OptionTable<MachineProfile>& machine_table() {
  static const OptionTable<M> table(
      {option("name", &M::name, "text that is not empty").means("Whose GPU and link."),
       option("gpu.tflops", &M::tflops, kRate).means("TFLOP/s of dense 16-bit products."),
       option("gpu.tflops_fp32", &M::tflops_fp32, kRate)
           .means("TFLOP/s of float32 products and of other arithmetic."),
       option("gpu.hbm_gbs", &M::hbm_gbs, kRate).means("GB/s of device memory, large operations."),
       option("gpu.hbm_eff",
              &M::hbm_eff,
              "list",
              "pairs [MB, share in (0, 1]] by ascending size, MB / share not falling",
              read_shares,
              [](const std::vector<MemoryShare>& shares) { return value_of(shares); })
           .means("Shares of that rate by the size of an operation."),
       option("gpu.mem_gb", &M::mem_gb, kRate).means("GB of device memory."),
       option("link.h2d_gbs", &M::h2d_gbs, kRate).means("GB/s from pinned host memory."),
       option("link.d2h_gbs", &M::d2h_gbs, kRate).means("GB/s to pinned host memory."),
       option("link.duplex_factor", &M::duplex_factor, kPositiveShare)
           .means("Share of both rates while both directions run."),
       option("link.setup_us", &M::setup_us, kMicroseconds).means("us of a copy without bytes."),
       option("overhead.launch_us", &M::launch_us, kMicroseconds)
           .means("us of the host to issue an operation."),
       option("overhead.sync_us", &M::sync_us, kMicroseconds)
           .means("us of the host to notice that a wait is over.")});
  return table;
}

void MachineProfile::check() const { machine_table().check(kOperation, *this); }

int register_machine(const MachineProfile& profile) {
  profile.check();
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const int count = static_cast<int>(all.machines.size());
  for (int i = 0; i < count; ++i) {
    if (all.machines[static_cast<std::size_t>(i)] == profile) return i + 1;
  }
  if (count == kMaxMachines) {
    throw ConfigError(message("[",
                              kOperation,
                              "] the number of profiles is ",
                              count + 1,
                              "; allowed: ",
                              kMaxMachines,
                              " different ones in a process; start another process"));
  }
  all.machines.push_back(profile);
  return count + 1;
}

const MachineProfile& machine(int index) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  const int count = static_cast<int>(all.machines.size());
  if (index < 1 || index > count) {
    throw ConfigError(message("[",
                              kOperation,
                              "] index is ",
                              index,
                              "; allowed: 1 to ",
                              count,
                              "; register the profile first"));
  }
  return all.machines[static_cast<std::size_t>(index - 1)];
}

int num_machines() {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  return static_cast<int>(all.machines.size());
}

}  // namespace hybridgen::emulated
