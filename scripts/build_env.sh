# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts from the root of the clone: the tools of .venv first on PATH, and the
# function `hybridgen_build PRESET [cmake options]`, which configures when needed and builds.

export VIRTUAL_ENV="$PWD/.venv"
export PATH="$VIRTUAL_ENV/bin:$PATH"
unset PYTHONHOME

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
  # Configured anew when Python, torch or the options changed, or the clone was moved; changes to
  # CMake files are found by the build itself.
  key="$PWD $* $(python -c 'import sys; print(sys.version)') $(cat \
    "$(python -c 'import importlib.util as u; print(u.find_spec("torch").origin)' |
      sed 's/__init__.py$/version.py/')" | sha256sum)"
  if [[ ! -f "$folder/build.ninja" || "$(cat "$folder/.configured" 2>/dev/null)" != "$key" ]]; then
    cmake --preset "$preset" --fresh -DPython_EXECUTABLE="$VIRTUAL_ENV/bin/python" "$@"
    echo "$key" >"$folder/.configured"
  fi
  cmake --build "$folder" -j "$(hybridgen_jobs)"
}
