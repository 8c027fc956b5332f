// SPDX-License-Identifier: Apache-2.0
// Where each matrix of a layer lies. Decides only; touches no memory. Norms, biases, the token
// table and the head are always on the device.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "hybridgen/core/model_config.h"

namespace hybridgen {

enum class WeightPlace : std::uint8_t { kDevice, kHost, kDisk };

/// Shares of a layer's bytes that lie on the device and in host memory; the rest lies on disk.
struct PlaceShares {
  double device = 1.0;
  double host = 0.0;
};

/// FlexGen's rule for tensors of these sizes, in their order: none is split, and each goes where
/// the middle of its bytes falls when disk, host and device take their shares of all, in this
/// order.
std::vector<WeightPlace> places_by_middle(std::span<const std::int64_t> sizes, PlaceShares shares);

/// The matrices of a layer. kGate only where the feed-forward is gated.
enum class LayerMatrix : std::uint8_t { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown };
inline constexpr std::size_t kLayerMatrices = 7;

/// Place of each, the same in all layers.
struct LayerPlaces {
  std::array<WeightPlace, kLayerMatrices> places{};  ///< by LayerMatrix

  WeightPlace operator[](LayerMatrix matrix) const {
    return places[static_cast<std::size_t>(matrix)];
  }
  bool all_on_device() const;
  friend bool operator==(const LayerPlaces&, const LayerPlaces&) = default;
};

/// Elements of each matrix of a layer, by LayerMatrix; 0 for one that it does not have.
std::array<std::int64_t, kLayerMatrices> matrix_sizes(const ModelConfig& config);

/// places_by_middle() of a layer's attention, and of its feed-forward, as FlexGen takes them apart.
/// On a device that is the host, host memory is the device.
LayerPlaces place_layer(const ModelConfig& config, PlaceShares shares, bool device_is_host);

/// The largest share of all layers' matrices, of `element_bytes` each, of which place_layer() puts
/// no more than `bytes` there: on the device, or where `device` is given, on the host beside it.
double share_within(const ModelConfig& config,
                    double element_bytes,
                    std::int64_t bytes,
                    std::optional<double> device = {});

}  // namespace hybridgen
