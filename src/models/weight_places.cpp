// SPDX-License-Identifier: Apache-2.0
#include "models/weight_places.h"

#include <algorithm>
#include <numeric>

namespace hybridgen {
namespace {

constexpr std::size_t kAttentionMatrices = 4;  // the first of LayerMatrix

/// Bytes of all layers' matrices that lie at `place`.
double bytes_at(const ModelConfig& config,
                double element_bytes,
                const LayerPlaces& places,
                WeightPlace place) {
  const auto sizes = matrix_sizes(config);
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < kLayerMatrices; ++i) {
    if (places.places[i] == place) elements += sizes[i];
  }
  return element_bytes * static_cast<double>(elements * config.num_layers);
}

}  // namespace

std::vector<WeightPlace> places_by_middle(std::span<const std::int64_t> sizes, PlaceShares shares) {
  const auto all = static_cast<double>(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{}));
  const double disk_end = 1.0 - shares.device - shares.host;
  const double host_end = 1.0 - shares.device;
  std::vector<WeightPlace> places;
  std::int64_t before = 0;
  for (const std::int64_t size : sizes) {
    const double middle = (static_cast<double>(before) + static_cast<double>(size) / 2.0) / all;
    places.push_back(middle < disk_end   ? WeightPlace::kDisk
                     : middle < host_end ? WeightPlace::kHost
                                         : WeightPlace::kDevice);
    before += size;
  }
  return places;
}

bool LayerPlaces::all_on_device() const {
  return std::ranges::all_of(places,
                             [](WeightPlace place) { return place == WeightPlace::kDevice; });
}

std::array<std::int64_t, kLayerMatrices> matrix_sizes(const ModelConfig& config) {
  const std::int64_t query = config.num_heads * config.head_dim * config.hidden_size;
  const std::int64_t key = config.num_kv_heads * config.head_dim * config.hidden_size;
  const std::int64_t ffn = config.ffn_size * config.hidden_size;
  const std::int64_t gate = config.activation == Activation::kSiluGate ? ffn : 0;
  return {query, key, key, query, gate, ffn, ffn};
}

LayerPlaces place_layer(const ModelConfig& config, PlaceShares shares, bool device_is_host) {
  const auto sizes = matrix_sizes(config);
  const std::span<const std::int64_t> all(sizes);
  LayerPlaces layer;
  auto next = layer.places.begin();
  for (const auto list : {all.first(kAttentionMatrices), all.subspan(kAttentionMatrices)}) {
    const std::vector<WeightPlace> found = places_by_middle(list, shares);
    for (std::size_t i = 0; i < list.size(); ++i, ++next) {
      const bool is_there = list[i] > 0;
      const bool is_device = device_is_host && found[i] == WeightPlace::kHost;
      *next = is_device || !is_there ? WeightPlace::kDevice : found[i];
    }
  }
  return layer;
}

double share_within(const ModelConfig& config,
                    double element_bytes,
                    std::int64_t bytes,
                    std::optional<double> device) {
  const auto fits = [&](double share) {
    const PlaceShares shares = device ? PlaceShares{*device, share} : PlaceShares{share, 0.0};
    const LayerPlaces places = place_layer(config, shares, /*device_is_host=*/false);
    const WeightPlace place = device ? WeightPlace::kHost : WeightPlace::kDevice;
    return bytes_at(config, element_bytes, places, place) <= static_cast<double>(bytes);
  };
  double fitting = 0.0;
  double beyond = 1.0 - device.value_or(0.0);
  if (fits(beyond)) return beyond;
  for (int halvings = 0; halvings < 40; ++halvings) {
    const double middle = (fitting + beyond) / 2.0;
    (fits(middle) ? fitting : beyond) = middle;
  }
  return fitting;
}

}  // namespace hybridgen
