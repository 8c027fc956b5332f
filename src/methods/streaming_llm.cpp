// SPDX-License-Identifier: Apache-2.0
// StreamingLLM (Xiao et al., ICLR 2024; mit-han-lab/streaming-llm): the first tokens ("attention
// sinks") and the newest ones, nothing between.

#include "hybridgen/core/error.h"
#include "methods/methods.h"

namespace hybridgen {
namespace {

struct StreamingLLMOptions {
  std::int64_t sinks = 4;
  std::int64_t window = 1024;
  PositionMode positions = PositionMode::kOriginal;
  Home home = Home::kDevice;
};

const OptionTable<StreamingLLMOptions>& table() {
  using O = StreamingLLMOptions;
  static const OptionTable<O> rows(
      {option("sinks", &O::sinks, Whole{}).means("first tokens that are kept"),
       option("window", &O::window, Whole{1})
           .means("newest tokens that are kept; with KVConfig(device_tokens=N), N less the sinks"),
       option("positions",
              &O::positions,
              {{"original", PositionMode::kOriginal},
               {"shift", PositionMode::kCacheIndex},
               {"clamp", PositionMode::kClamped}})
           .means("positions in the text, in the cache (\"shift\": rotary models, "
                  "home=\"device\"), or clamped to the cache's size (\"clamp\": learned "
                  "positions)"),
       home_option(&O::home)});
  return rows;
}

// Tokens on the device are sinks and window: who says how many there are need not say the window.
std::int64_t window_of(const StreamingLLMOptions& own, const EngineOptions& options) {
  const WindowSetting& device = options.device_tokens;
  if (!device.count && !device.share) {
    return own.window;
  }
  if (!device.count || *device.count <= own.sinks || own.home == Home::kHost) {
    throw ConfigError(
        message("[method streaming_llm] device_tokens is ",
                device.count ? std::to_string(*device.count) : message(*device.share),
                "; allowed: 'auto', or with home='device' an int above the number of sinks (",
                own.sinks,
                "), which is how many tokens are kept in all; or set the method's own window"));
  }
  return *device.count - own.sinks;
}

}  // namespace

MethodInfo streaming_llm_info() {
  return {.name = "streaming_llm",
          .class_name = "StreamingLLM",
          .summary = "attention sinks and a window of recent tokens",
          .attention = "device",
          .timing = "pre",
          .exact_when = "sinks + window >= tokens",
          .drops = "tokens between sinks and window",
          .link = "nothing; with home='host' K and V of the kept tokens",
          .tunables = table().described(),
          .reads = {"device_tokens", "keys", "values"}};
}

Method streaming_llm_method(const EngineOptions& options) {
  const MethodInfo info = streaming_llm_info();
  const StreamingLLMOptions own = own_options(table(), info, options);
  const std::int64_t window = window_of(own, options);
  Method method = retaining_method(info, own.home);
  method.positions = own.positions;
  method.position_modes = "original, shift, clamp";
  if (own.positions == PositionMode::kCacheIndex && own.home == Home::kHost) {
    table().refuse("method streaming_llm", own, "positions", kShiftOnDevice);
  }
  if (options.device_tokens != WindowSetting{}) {
    method.unread.emplace("window", "KVConfig(device_tokens=) says it; give one of them");
  }
  method.parts.push_back(retention_part(
      [sinks = own.sinks, window](const RetentionShape& shape, const RequestShape&) {
        return make_sinks_window_retention(shape, sinks, window);
      },
      /*wants_weights=*/false));
  return method;
}

}  // namespace hybridgen
