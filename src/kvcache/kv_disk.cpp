// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_disk.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::string_view kReading = "read keys and values from the disk";

}  // namespace

KvDisk::KvDisk(const KvDiskDevice& device, KvMemory& keys, KvMemory& values)
    : device_(device),
      num_layers_(keys.shape().num_layers),
      num_kv_heads_(keys.shape().num_kv_heads),
      loads_(static_cast<std::size_t>(num_layers_) * 2) {
  sides_[0].memory = &keys;
  sides_[1].memory = &values;
  for (Side& side : sides_) {
    side.blocks.resize(
        static_cast<std::size_t>(side.memory->blocks_for(side.memory->shape().capacity)));
  }
}

KvDisk::~KvDisk() { release_all(); }

// A block's own memory of a layer and KV head.
std::byte* KvDisk::memory_of(const Side& side,
                             std::int64_t block,
                             std::int64_t layer,
                             std::int64_t kv_head) {
  KvMemory& memory = *side.memory;
  return memory.head(layer, kv_head) + block * memory.block_tokens() * memory.shape().row_bytes;
}

void KvDisk::append_unit(const Side& side,
                         std::int64_t block,
                         const DiskSlot& slot,
                         std::int64_t layer,
                         std::int64_t kv_head,
                         std::byte* memory,
                         std::vector<DiskRange>& ranges) const {
  const std::int64_t unit = disk_unit_bytes(*side.memory, block);
  slot.append_ranges((layer * num_kv_heads_ + kv_head) * unit, unit, memory, ranges);
}

void KvDisk::write(KvSide which, std::int64_t block) {
  Side& side = side_of(which);
  Block& written = block_of(which, block);
  {
    const std::scoped_lock lock(mutex_);
    if (written.state == State::kBack) written.state = State::kCopied;  // nothing has changed since
    if (written.state != State::kInMemory) return;
  }
  DiskSlot slot =
      device_.file->take(num_layers_ * num_kv_heads_ * disk_unit_bytes(*side.memory, block));
  DiskTransfer transfer;
  transfer.direction = DiskTransfer::Direction::kWrite;
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
      append_unit(side, block, slot, layer, g, memory_of(side, block, layer, g), transfer.ranges);
    }
  }
  device_.queue->submit(transfer);
  device_.queue->wait(transfer);
  const std::scoped_lock lock(mutex_);
  written.is_out.assign(static_cast<std::size_t>(num_layers_), 0);
  written.slot = std::move(slot);
  written.state = State::kCopied;
}

void KvDisk::leave(KvSide which, std::int64_t block) noexcept {
  Side& side = side_of(which);
  Block& leaving = block_of(which, block);
  const std::scoped_lock lock(mutex_);
  if (leaving.state == State::kCopied) {
    leaving.state = State::kOut;
    ++side.num_out;
  }
  if (leaving.state != State::kOut) return;
  std::ranges::fill(leaving.is_out, std::uint8_t{1});
  side.memory->give_back({block, block + 1});
}

bool KvDisk::bring_back(KvSide which, std::int64_t block, const PagePlace& place) {
  Block& coming = block_of(which, block);
  {
    const std::scoped_lock lock(mutex_);
    if (coming.state == State::kCopied) coming.state = State::kBack;
    if (coming.state != State::kOut) return false;
  }
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    bring_layer_back(which, block, layer, place);
  }
  const std::scoped_lock lock(mutex_);
  coming.state = State::kBack;
  --side_of(which).num_out;
  return true;
}

void KvDisk::bring_layer_back(KvSide which,
                              std::int64_t block,
                              std::int64_t layer,
                              const PagePlace& place) {
  Side& side = side_of(which);
  Block& coming = block_of(which, block);
  std::uint8_t& is_out = coming.is_out[static_cast<std::size_t>(layer)];
  {
    const std::scoped_lock lock(mutex_);
    if (is_out == 0) return;  // since an earlier try
  }
  try {
    side.memory->take({block, block + 1}, place, kReading, layer);
    DiskTransfer transfer;
    transfer.layer = static_cast<std::int32_t>(layer);
    for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
      append_unit(
          side, block, coming.slot, layer, g, memory_of(side, block, layer, g), transfer.ranges);
    }
    device_.queue->submit(transfer);
    device_.queue->wait(transfer);
  } catch (...) {
    side.memory->give_back({block, block + 1}, layer);
    throw;
  }
  // Who has begun to read the layer goes on with what the disk has.
  const std::scoped_lock lock(mutex_);
  is_out = 0;
}

void KvDisk::arrive(KvSide which, std::int64_t block) noexcept {
  Block& arrived = block_of(which, block);
  const std::scoped_lock lock(mutex_);
  if (arrived.state == State::kBack) {
    arrived = {};
    // Nobody reads now, so that nobody waits for the lock meanwhile.
    side_of(which).memory->pin_again({block, block + 1});
  }
  if (num_blocks(which) == 0) {
    std::erase_if(side_of(which).landings, [](const auto& each) { return each->is_free(); });
  }
}

void KvDisk::report(PlacedBytes& bytes) const {
  const std::scoped_lock lock(mutex_);
  for (const Side& side : sides_) {
    for (const auto& landing : side.landings) landing->report(bytes);
  }
}

// What the disk has now, until the layer is released.
DiskLanding& KvDisk::land(std::int64_t layer, KvSide which) {
  Side& side = side_of(which);
  Load& load = load_of(layer, which);
  if (load.landing != nullptr) return *load.landing;
  std::vector<std::uint8_t> is_out;
  for (const Block& block : side.blocks) {
    const bool is_on_disk =
        block.state == State::kOut && block.is_out[static_cast<std::size_t>(layer)] != 0;
    is_out.push_back(is_on_disk ? 1 : 0);
  }
  load.is_in.assign(side.blocks.size() * static_cast<std::size_t>(num_kv_heads_), 0);
  auto found =
      std::ranges::find_if(side.landings, [](const auto& each) { return each->is_free(); });
  if (found == side.landings.end()) {
    side.landings.push_back(std::make_unique<DiskLanding>(*side.memory, device_.place));
    found = std::prev(side.landings.end());
  }
  load.landing = found->get();
  load.landing->begin(std::move(is_out));
  return *load.landing;
}

void KvDisk::append_landed(const Side& side,
                           std::int64_t block,
                           std::int64_t layer,
                           std::int64_t kv_head,
                           DiskLanding& landing,
                           std::vector<DiskRange>& ranges) const {
  const DiskSlot& slot = side.blocks[static_cast<std::size_t>(block)].slot;
  append_unit(side, block, slot, layer, kv_head, landing.unit(block, kv_head), ranges);
}

void KvDisk::begin(std::int64_t layer, KvSide which) {
  Side& side = side_of(which);
  Load& load = load_of(layer, which);
  if (load.all != nullptr) return;
  DiskLanding& landing = land(layer, which);
  std::vector<std::int64_t> blocks;
  for (std::int64_t block = 0; block < std::ssize(side.blocks); ++block) {
    if (landing.has(block)) blocks.push_back(block);
  }
  landing.take(blocks);
  auto all = std::make_unique<DiskTransfer>();
  all->layer = static_cast<std::int32_t>(layer);
  for (const std::int64_t block : blocks) {
    for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
      if (load.is_in[static_cast<std::size_t>(block * num_kv_heads_ + g)] != 0) continue;
      append_landed(side, block, layer, g, landing, all->ranges);
    }
  }
  load.all = std::move(all);
  device_.queue->submit(*load.all);
}

void KvDisk::expect(std::int64_t layer, KvSide side) {
  if (num_blocks(side) == 0) return;
  const std::scoped_lock lock(mutex_);
  begin(layer, side);
}

const DiskLanding* KvDisk::bring_all(std::int64_t layer, KvSide side) {
  Load& load = load_of(layer, side);
  {
    const std::scoped_lock lock(mutex_);
    begin(layer, side);
  }
  device_.queue->wait(*load.all);
  return load.landing;
}

const DiskLanding* KvDisk::bring_tokens(std::int64_t layer,
                                        KvSide which,
                                        std::int64_t kv_head,
                                        std::span<const std::int32_t> tokens) {
  Side& side = side_of(which);
  Load& load = load_of(layer, which);
  DiskTransfer some;
  some.layer = static_cast<std::int32_t>(layer);
  std::vector<std::int64_t> blocks;
  {
    std::unique_lock lock(mutex_);
    if (load.all != nullptr) {
      lock.unlock();
      device_.queue->wait(*load.all);
      return load.landing;
    }
    DiskLanding& landing = land(layer, which);
    const std::int64_t each = side.memory->block_tokens();
    std::int64_t seen = -1;
    for (const std::int32_t token : tokens) {
      const std::int64_t block = token / each;
      if (block == seen) continue;
      seen = block;
      if (!landing.has(block)) continue;
      if (load.is_in[static_cast<std::size_t>(block * num_kv_heads_ + kv_head)] != 0) continue;
      blocks.push_back(block);
    }
    landing.take(blocks);
    for (const std::int64_t block : blocks) {
      append_landed(side, block, layer, kv_head, landing, some.ranges);
    }
  }
  device_.queue->submit(some);
  device_.queue->wait(some);
  const std::scoped_lock lock(mutex_);
  for (const std::int64_t block : blocks) {
    load.is_in[static_cast<std::size_t>(block * num_kv_heads_ + kv_head)] = 1;
  }
  return load.landing;
}

void KvDisk::release(std::int64_t layer,
                     KvSide which,
                     std::unique_lock<std::mutex>& lock) noexcept {
  Load& load = load_of(layer, which);
  if (load.landing == nullptr) return;
  if (load.all != nullptr) {
    // Not under the lock, which the threads of others' reads do not need but their readers do.
    lock.unlock();
    device_.queue->cancel(*load.all);
    lock.lock();
  }
  load.landing->end();
  load = {};
}

void KvDisk::release(std::int64_t layer) noexcept {
  std::unique_lock lock(mutex_);
  release(layer, KvSide::kKeys, lock);
  release(layer, KvSide::kValues, lock);
}

void KvDisk::release_all() noexcept {
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) release(layer);
}

std::int64_t KvDisk::num_layers_read() const {
  const std::scoped_lock lock(mutex_);
  std::int64_t count = 0;
  for (std::size_t i = 0; i < loads_.size(); i += 2) {
    count += loads_[i].landing != nullptr || loads_[i + 1].landing != nullptr ? 1 : 0;
  }
  return count;
}

}  // namespace hybridgen
