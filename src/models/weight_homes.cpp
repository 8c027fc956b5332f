// SPDX-License-Identifier: Apache-2.0
#include "models/weight_homes.h"

#include <algorithm>
#include <numeric>

#include "core/option_tables.h"
#include "device/device_memory.h"
#include "hybridgen/core/error.h"
#include "memory/process_memory.h"

namespace hybridgen {
namespace {

using Kind = PlaceAmount::Kind;

constexpr double kShareForWeights = 0.75;
constexpr double kRounding = 1e-9;

std::int64_t fitting(std::int64_t free, std::int64_t other) {
  return std::max<std::int64_t>(
      0, static_cast<std::int64_t>(kShareForWeights * static_cast<double>(free)) - other);
}

}  // namespace

PlaceShares resolve_shares(const WeightOptions& options,
                           const ModelConfig& config,
                           double element_bytes,
                           std::int64_t other_bytes,
                           FreeBytes free) {
  PlaceShares shares;
  switch (options.device.kind) {
    case Kind::kUnsaid:
      shares.device = options.host.kind == Kind::kUnsaid ? 1.0 : 0.0;
      break;
    case Kind::kFitting:
      shares.device = share_within(config, element_bytes, fitting(free.device, other_bytes));
      break;
    case Kind::kPart:
      shares.device = options.device.share;
      break;
    case Kind::kBytes:
      shares.device = share_within(config, element_bytes, options.device.bytes);
      break;
  }
  switch (options.host.kind) {
    case Kind::kUnsaid:
    case Kind::kFitting:
      shares.host = share_within(config, element_bytes, fitting(free.host, 0), shares.device);
      break;
    case Kind::kPart:
      shares.host = options.host.share;
      break;
    case Kind::kBytes:
      shares.host = share_within(config, element_bytes, options.host.bytes, shares.device);
      break;
  }
  if (shares.device + shares.host > 1.0 + kRounding) {
    weight_table().refuse("WeightConfig",
                          options,
                          "host",
                          message("device is ",
                                  shares.device,
                                  ", and together they are more than all; lower one of them"));
  }
  return shares;
}

WeightHomes weight_homes(const WeightFormats& formats,
                         const ModelConfig& config,
                         DType dtype,
                         const DeviceContext& device) {
  const WeightOptions& options = formats.made;
  WeightHomes homes{
      .folder = options.folder, .reads_direct = options.direct, .device_is_host = device.is_cpu()};
  const bool is_unsaid = options.device.kind == Kind::kUnsaid && options.host.kind == Kind::kUnsaid;
  if (options.shared) {
    const auto refuse_beside = [&](const char* what) {
      weight_table().refuse("WeightConfig", options, "shared", what);
    };
    if (!device.is_cpu()) refuse_beside("only a CPU reads weights in the page cache");
    if (!is_unsaid)
      refuse_beside("all matrices lie in the checkpoint's files; leave device and host out");
    if (options.direct == true) refuse_beside("direct reads past the page cache; leave it out");
    homes.layers = place_layer(config, {.device = 0.0, .host = 0.0}, /*device_is_host=*/true);
    homes.reads_direct = false;
    homes.are_shared = true;
    return homes;
  }
  if (is_unsaid) return homes;
  const Weights all(config, dtype, at::kMeta, {}, formats);
  std::int64_t bytes = 0;
  for (const LayerWeights& layer : all.layers) {
    for (const Projection* projection : {&layer.qkv, &layer.output, &layer.up, &layer.down}) {
      for (const LinearWeight& part : projection->parts) bytes += part.bytes();
    }
  }
  const auto sizes = matrix_sizes(config);
  const auto elements =
      config.num_layers * std::accumulate(sizes.begin(), sizes.end(), std::int64_t{});
  FreeBytes free{.host = available_host_bytes()};
  free.device = device.is_cpu() ? free.host : available_device_bytes(device.device());
  if (device.is_cpu() && options.device.kind == Kind::kFitting) {
    free.host = 0;  // the same memory
  }
  const PlaceShares shares =
      resolve_shares(options,
                     config,
                     static_cast<double>(bytes) / static_cast<double>(elements),
                     all.bytes() - bytes,
                     free);
  homes.layers = place_layer(config, shares, device.is_cpu());
  return homes;
}

}  // namespace hybridgen
