// SPDX-License-Identifier: Apache-2.0
// Layers that are not always there: whoever uses one takes it, and gives it back. While one is used
// the next ones come.
#pragma once

#include <cstdint>

#include "hybridgen/models/weight_statistics.h"
#include "models/weights.h"

namespace hybridgen {

/// Of one engine, whose driver thread alone uses it. Layers are used in their order, again and
/// again; any other order works, and waits.
class LayerSource {
 public:
  virtual ~LayerSource() = default;
  LayerSource(const LayerSource&) = delete;
  LayerSource& operator=(const LayerSource&) = delete;

  /// A layer's weights once they are there: for the work that is queued from now on. They stay
  /// until give_back(), to be called once as often. DeviceError if the disk fails; the next call
  /// tries again.
  virtual const LayerWeights& take(std::int64_t layer) = 0;
  virtual void give_back(std::int64_t layer) = 0;
  /// A layer of which the query's projection is there, and nothing else need be. It stays until the
  /// layer has been taken and given back, if there is room for a layer more than are held.
  virtual const LayerWeights& take_query(std::int64_t layer) = 0;
  /// Before the first weight of a pass over the layers is used, tables included.
  virtual void begin_pass() = 0;
  /// DeviceError if numbers were lost since begin_pass() while they were used: what was computed is
  /// nothing.
  virtual void check_pass() = 0;

  /// What came since the last reset, without the bytes that lie where. What the device has yet to
  /// reach is not in it.
  virtual WeightStatistics statistics() = 0;
  virtual void reset_statistics() = 0;

 protected:
  LayerSource() = default;
};

}  // namespace hybridgen
