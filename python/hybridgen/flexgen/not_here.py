# SPDX-License-Identifier: Apache-2.0
"""FlexGen's programs that are not here: what to use instead, in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_INSTEAD = {
    "helm_run": "HELM 0.2.1 is not run here; OptLM.generate is what its runner calls, and "
    "python -m hybridgen.as_flexgen runs FlexGen's own helm_run script on this engine where HELM "
    "is installed",
    "data_wrangle_run": "the data wrangling tasks are not shipped; python -m hybridgen.as_flexgen "
    "runs FlexGen's own script on this engine",
    "dist_flex_opt": "pipelines over several machines are not offered; python -m "
    "hybridgen.flex_opt runs the same model on one, with --percent for what does not fit",
}


def refuse(program: str, argv: Sequence[str] | None = None) -> int:
    """Say what to use instead of a program; returns exit code 2."""
    del argv
    print(f"error: [{program}] {_INSTEAD[program]}", file=sys.stderr)
    return 2
