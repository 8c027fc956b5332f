// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/kvcache/token_mapper.h"

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
  if (tokens.begin != num_offloaded_ || tokens.end < tokens.begin || tokens.end > num_tokens_) {
    throw ConfigError(message("[token mapper] tokens to offload are [",
                              tokens.begin,
                              ", ",
                              tokens.end,
                              "); allowed: begin ",
                              num_offloaded_,
                              " (the oldest resident token), end at most ",
                              num_tokens_,
                              "; offload resident tokens oldest first"));
  }
  num_offloaded_ = tokens.end;
}

}  // namespace hybridgen
