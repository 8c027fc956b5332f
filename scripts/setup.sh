#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up everything that tests and the demonstration need, then builds. Safe to run again: what is
# already there is kept, so a second run takes seconds.
#
#   bash scripts/setup.sh          Debian packages, .venv with pinned packages, build
#   bash scripts/setup.sh --lint   also the formatters and checkers of scripts/lint.sh
#
# All of it goes into the clone (.venv, build), except Debian packages, which are installed when
# this runs as root or sudo needs no password; otherwise the missing ones are listed.
#
# Environment:
#   HYBRIDGEN_BASE_PYTHON  Python >= 3.11 to make .venv from (default: the first one on PATH)
#   HYBRIDGEN_TORCH        what to install when .venv has no torch, e.g. "torch==2.13.0"
#   HYBRIDGEN_JOBS         compilations at a time (default: one per core, fewer if memory is small)
#   HYBRIDGEN_CCACHE_DIR   where ccache keeps objects (default: ccache's own folder of the user)
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv="$root/.venv"
default_torch="2.13.0"
# PyTorch's own index of builds without CUDA, several GB smaller than those of PyPI.
torch_cpu_index="https://download.pytorch.org/whl/cpu"

want_lint=false
for argument in "$@"; do
  case "$argument" in
    --lint) want_lint=true ;;
    *)
      echo "setup.sh: unknown argument '$argument'; allowed: --lint" >&2
      exit 2
      ;;
  esac
done

say() { echo "setup.sh: $*" >&2; }

# ---- Debian packages -------------------------------------------------------------------------------
find_python() {
  local candidate
  for candidate in "${HYBRIDGEN_BASE_PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [[ -n "$candidate" ]] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

has_header() {
  [[ -f "/usr/include/$1" ]] ||
    echo "#include <$1>" | "${CXX:-g++}" -std=c++20 -E -x c++ - >/dev/null 2>&1
}

# Prints the Debian packages that are missing, judged by what they bring, so that a compiler or a
# Python from elsewhere counts too.
missing_packages() {
  local python
  command -v "${CXX:-g++}" >/dev/null || echo g++
  python="$(find_python)"
  if [[ -z "$python" ]]; then
    echo python3 python3-dev python3-venv
  else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || echo python3-dev
  fi
  has_header gtest/gtest.h || echo libgtest-dev
  has_header numaif.h || echo libnuma-dev
  has_header benchmark/benchmark.h || echo libbenchmark-dev
  command -v ccache >/dev/null || echo ccache
}

install_packages() {
  local -a missing as_root=()
  mapfile -t missing < <(missing_packages | tr ' ' '\n')
  ((${#missing[@]} > 0)) || return 0
  if ((EUID != 0)); then
    as_root=(sudo -n)
  fi
  if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    say "installing Debian packages: ${missing[*]}"
    if ! "${as_root[@]}" apt-get update -qq ||
      ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then
      say "apt-get failed"
    fi
    mapfile -t missing < <(missing_packages | tr ' ' '\n')
    ((${#missing[@]} > 0)) || return 0
  fi
  local -a demanded=()
  local package
  for package in "${missing[@]}"; do
    case "$package" in
      libnuma-dev) say "libnuma-dev is missing: building without binding memory to NUMA nodes" ;;
      ccache) say "ccache is missing: every build compiles everything" ;;
      libbenchmark-dev) say "libbenchmark-dev is missing: building without the C++ benchmarks" ;;
      *) demanded+=("$package") ;;
    esac
  done
  ((${#demanded[@]} > 0)) || return 0
  missing=("${demanded[@]}")
  say "missing system packages (Debian names): ${missing[*]}"
  say "install them, for example: sudo apt-get install ${missing[*]}"
  exit 1
}

# ---- Python environment ----------------------------------------------------------------------------
pip_install() {
  # PIP_USER=0: nothing may go into the user's own site-packages, whatever pip is configured to do.
  PIP_USER=0 "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -q "$@"
}

make_environment() {
  if "$venv/bin/python" -c '' 2>/dev/null; then
    return
  fi
  say "making the virtual environment .venv"
  "$(find_python)" -m venv --clear "$venv"
}

install_torch() {
  if "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; then
    return
  fi
  if [[ -n "${HYBRIDGEN_TORCH:-}" ]]; then
    say "installing $HYBRIDGEN_TORCH"
    pip_install "$HYBRIDGEN_TORCH"
    return
  fi
  say "installing torch $default_torch, the CPU build where there is one"
  pip_install "torch==$default_torch+cpu" 2>/dev/null ||
    pip_install --index-url "$torch_cpu_index" "torch==$default_torch+cpu" 2>/dev/null ||
    pip_install "torch==$default_torch"
}

# Installs the requirement files of a group once; a stamp in .venv holds the hash of what they say.
# install_group NAME [--no-deps] FILE...
install_group() {
  local group="$1" stamp hash file
  local -a arguments=()
  shift
  if [[ "$1" == --no-deps ]]; then
    arguments+=(--no-deps)
    shift
  fi
  stamp="$venv/.hybridgen-$group"
  hash="$(cat "$@" | sha256sum)"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$hash" ]]; then
    return
  fi
  say "installing $*"
  for file in "$@"; do
    arguments+=(-r "$file")
  done
  pip_install "${arguments[@]}"
  echo "$hash" >"$stamp"
}

# Makes `import hybridgen` and the command `hybridgen` of .venv use the sources in this clone.
link_sources() {
  local site
  site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  echo "$root/python" >"$site/hybridgen-sources.pth"
  cat >"$venv/bin/hybridgen" <<SCRIPT
#!$venv/bin/python
import sys
from hybridgen.__main__ import main
sys.exit(main())
SCRIPT
  chmod +x "$venv/bin/hybridgen"
}

# ---- Build -----------------------------------------------------------------------------------------
build() {
  # shellcheck source=scripts/build_env.sh
  source scripts/build_env.sh
  hybridgen_build default
}

install_packages
make_environment
install_torch
install_group base scripts/requirements.txt scripts/requirements-build.txt \
  scripts/requirements-test.txt
install_group eval --no-deps scripts/requirements-eval.txt
if $want_lint; then
  install_group lint scripts/requirements-lint.txt
fi
link_sources
build
say "ready: .venv/bin/python -c 'import hybridgen'"
