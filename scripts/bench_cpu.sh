#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds what is missing, then measures the CPU's part of a step; see benchmarks/cpu.py.
#
#   bash scripts/bench_cpu.sh [--quick and the other options of benchmarks/cpu.py]
#
# Results go to results/cpu.json. Libraries to compare with are optional:
#   .venv/bin/pip install -r scripts/requirements-bench.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
.venv/bin/cmake --build build --target _core cpu_benchmarks torch_benchmarks
exec .venv/bin/python benchmarks/cpu.py --json results/cpu.json "$@"
