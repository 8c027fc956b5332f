#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up and builds what is missing, then shows what the library is for; see scripts/demo.py.
#
#   bash scripts/demo.sh [--help and the other options of scripts/demo.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
exec .venv/bin/python scripts/demo.py "$@"
