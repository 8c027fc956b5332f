# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts from the root of the clone: the tools of .venv first on PATH, and the
# function `hybridgen_build PRESET [targets]`, which configures when needed and builds.

export VIRTUAL_ENV="$PWD/.venv"
export PATH="$VIRTUAL_ENV/bin:$PATH"
unset PYTHONHOME

# CMake's own choice by name, so that the build that pip starts makes the same one, not Python's.
if [[ -z "${CXX:-}" ]] && command -v c++ >/dev/null; then
  export CXX=c++
fi

# ccache, where there is one, also for the build that pip starts. Paths in the clone are made relative
# and its place is not hashed, so that another clone, and the wheel, find the objects of this one.
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache
  export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1
  export CCACHE_SLOPPINESS=pch_defines,time_macros  # what it wants for precompiled headers
  if [[ -n "${HYBRIDGEN_CCACHE_DIR:-}" ]]; then
    export CCACHE_DIR="$HYBRIDGEN_CCACHE_DIR"
  fi
fi

# A file that includes Torch takes up to 2 GB to compile.
hybridgen_jobs() {
  local cores gigabytes
  cores="$(nproc)"
  gigabytes="$(awk '/MemAvailable/ {print int($2 / 1048576 / 2)}' /proc/meminfo)"
  ((gigabytes >= 1)) || gigabytes=1
  echo "${HYBRIDGEN_JOBS:-$((cores < gigabytes ? cores : gigabytes))}"
}

hybridgen_build() {
  local preset="$1" folder key
  shift
  folder=build
  [[ "$preset" == default ]] || folder="build-$preset"
  # Configured anew when Python, torch or ccache changed, or the clone was moved; changes
  # to CMake files are found by the build itself.
  key="$PWD ${CMAKE_CXX_COMPILER_LAUNCHER:-} $(python -c 'import sys; print(sys.version)') $(cat \
    "$(python -c 'import importlib.util as u; print(u.find_spec("torch").origin)' |
      sed 's/__init__.py$/version.py/')" | sha256sum)"
  if [[ ! -f "$folder/build.ninja" || "$(cat "$folder/.configured" 2>/dev/null)" != "$key" ]]; then
    cmake --preset "$preset" --fresh -DPython_EXECUTABLE="$VIRTUAL_ENV/bin/python" || return
    echo "$key" >"$folder/.configured"
  fi
  cmake --build "$folder" -j "$(hybridgen_jobs)" --target "${@:-all}"
}
