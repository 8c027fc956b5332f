// SPDX-License-Identifier: Apache-2.0
#include "kvcache/token_mapper.h"

#include "hybridgen/core/error.h"

namespace hybridgen {

void TokenMapper::append(std::int64_t count) {
  if (count < 0) {
    throw ConfigError(message("[token mapper] count of appended tokens is ",
                              count,
                              "; allowed: >= 0; tokens cannot be taken back"));
  }
  num_tokens_ += count;
}

void TokenMapper::offload(TokenRange tokens) {
  if (tokens.begin != num_offloaded_ || tokens.end < tokens.begin ||
      tokens.size() > num_resident()) {
    throw ConfigError(message("[token mapper] tokens to offload are [",
                              tokens.begin,
                              ", ",
                              tokens.end,
                              "); allowed: begin ",
                              num_offloaded_,
                              " (the oldest resident token), end at most ",
                              num_offloaded_ + num_resident(),
                              "; offload resident tokens oldest first"));
  }
  num_offloaded_ = tokens.end;
}

void TokenMapper::drop(std::int64_t count) {
  if (count < 0 || count > num_resident()) {
    throw ConfigError(message("[token mapper] tokens to drop are ",
                              count,
                              "; allowed: 0 to ",
                              num_resident(),
                              " (the resident ones)"));
  }
  num_dropped_ += count;
}

}  // namespace hybridgen
