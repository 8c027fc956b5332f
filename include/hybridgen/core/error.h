// SPDX-License-Identifier: Apache-2.0
// Typed exceptions. Every message names the operation, the bad value, what is allowed and the way
// out: "[operation] argument is VALUE; allowed: ...; way out".
// Python maps them: ConfigError -> hybridgen.ConfigError (ValueError), and so on.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace hybridgen {

/// Base of all exceptions thrown on purpose by this library.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A caller's mistake: option, argument, shape or value out of range.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A model this library cannot run.
class UnsupportedModelError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint with missing, extra, misshapen, truncated or non-finite tensors.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// A memory tier cannot hold what was asked for. Nothing was lost; the engine stays usable.
class OutOfMemoryError : public Error {
 public:
  using Error::Error;
};

/// The device or the operating system refused: CUDA, NUMA, threads. Carries the system's own text.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// A computed value that must never occur (NaN logits); names layer and head.
class NumericError : public Error {
 public:
  using Error::Error;
};

/// Streams all arguments into one string: message("k is ", k, "; allowed: >= 1").
template <typename... Args>
std::string message(const Args&... args) {
  std::ostringstream stream;
  (stream << ... << args);
  return stream.str();
}

/// "512 B", "3.5 MiB", "12.0 GiB" for error texts.
std::string human_bytes(double bytes);

}  // namespace hybridgen

/// Our own bugs: checked in debug builds only.
#ifndef NDEBUG
#define HYBRIDGEN_DCHECK(condition, ...)                                                    \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      throw std::logic_error(                                                               \
          ::hybridgen::message("internal check failed: ", #condition, " ", ##__VA_ARGS__)); \
    }                                                                                       \
  } while (false)
#else
#define HYBRIDGEN_DCHECK(condition, ...) static_cast<void>(0)
#endif
