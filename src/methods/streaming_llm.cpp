// SPDX-License-Identifier: Apache-2.0
// StreamingLLM (Xiao et al., ICLR 2024; mit-han-lab/streaming-llm): the first tokens ("attention
// sinks") and the newest ones, nothing between.

#include "hybridgen/core/error.h"
#include "methods/methods.h"

namespace hybridgen {
namespace {

// Tokens on the device are sinks and window: who says how many there are need not say the window.
std::int64_t window_of(const MethodConfig& config,
                       const EngineOptions& options,
                       std::int64_t sinks) {
  const WindowSetting& device = options.device_tokens;
  const std::int64_t window = config.integer("window", 1);
  if (!device.count && !device.share) {
    return window;
  }
  if (!device.count || *device.count <= sinks || config.choice("home", "device, host") == "host") {
    throw ConfigError(
        message("[method streaming_llm] device_tokens is ",
                device.count ? std::to_string(*device.count) : message(*device.share),
                "; allowed: 'auto', or with home='device' an int above the number of sinks (",
                sinks,
                "), which is how many tokens are kept in all; or set the method's own window"));
  }
  return *device.count - sinks;
}

}  // namespace

MethodInfo streaming_llm_info() {
  return {.name = "streaming_llm",
          .summary = "attention sinks and a window of recent tokens",
          .attention = "device",
          .timing = "pre",
          .exact_when = "sinks + window >= tokens",
          .drops = "tokens between sinks and window",
          .link = "nothing; with home='host' K and V of the kept tokens",
          .tunables =
              {{"sinks", std::int64_t{4}, "an integer >= 0", "first tokens that are kept"},
               {"window",
                std::int64_t{1024},
                "an integer >= 1",
                "newest tokens that are kept; with KVConfig(device_tokens=N), N less the sinks"},
               {"positions",
                std::string("original"),
                "'original', 'shift' (rotary models, home='device') or 'clamp' (learned positions)",
                "positions in the text, in the cache, or clamped to the cache's size"},
               home_option()},
          .reads = {"device_tokens"}};
}

Method streaming_llm_method(const EngineOptions& options) {
  const MethodInfo info = streaming_llm_info();
  const MethodConfig config(info, options);
  const std::int64_t sinks = config.integer("sinks", 0);
  const std::int64_t window = window_of(config, options, sinks);
  const std::string positions = config.choice("positions", "original, shift, clamp");
  Method method = retaining_method(info, config);
  method.positions = positions == "shift"   ? PositionMode::kCacheIndex
                     : positions == "clamp" ? PositionMode::kClamped
                                            : PositionMode::kOriginal;
  method.position_modes = "original, shift, clamp";
  if (method.positions == PositionMode::kCacheIndex && method.retained_on_host) {
    config.refuse("positions", "keep the tokens on the device (home='device') to shift them");
  }
  if (options.device_tokens != WindowSetting{}) {
    method.unread.emplace("window", "KVConfig(device_tokens=) says it; give one of them");
  }
  method.retention = [sinks, window](const RetentionShape& shape, const RequestShape&) {
    return make_sinks_window_retention(shape, sinks, window);
  };
  return method;
}

}  // namespace hybridgen
