// SPDX-License-Identifier: Apache-2.0
// The switch for processors without one of their own: slow, since it also saves the signal mask.
#include <ucontext.h>

#include <cstdint>

#include "support/cuda_emulator/fiber_switch.h"

namespace hybridgen::cuda_emulator {

namespace {

struct Place {
  ucontext_t context;
  void (*entry)(void*) = nullptr;
  void* argument = nullptr;
};

// makecontext passes integers only: the pointer comes in two halves.
void enter(unsigned high, unsigned low) {
  const std::uint64_t bits = (std::uint64_t{high} << 32) | low;
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  const auto* place = reinterpret_cast<const Place*>(static_cast<std::uintptr_t>(bits));
  place->entry(place->argument);
}

}  // namespace

void* prepare_stack(void* bottom, void* top, void (*entry)(void*), void* argument) {
  auto* place = new Place{.context = {}, .entry = entry, .argument = argument};
  getcontext(&place->context);
  place->context.uc_stack.ss_sp = bottom;
  place->context.uc_stack.ss_size =
      static_cast<std::size_t>(static_cast<char*>(top) - static_cast<char*>(bottom));
  place->context.uc_link = nullptr;
  const auto bits = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(place));
  makecontext(&place->context,
              reinterpret_cast<void (*)()>(&enter),
              2,
              static_cast<unsigned>(bits >> 32),
              static_cast<unsigned>(bits));
  return place;
}

void switch_stack(void** from, void* to) {
  if (*from == nullptr) *from = new Place{};
  swapcontext(&static_cast<Place*>(*from)->context, &static_cast<Place*>(to)->context);
}

void release_place(void* place) { delete static_cast<Place*>(place); }

}  // namespace hybridgen::cuda_emulator
