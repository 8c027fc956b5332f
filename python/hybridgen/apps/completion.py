# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen.apps.completion``: FlexGen's completion example."""

import sys

from ..flexgen.apps.completion import *  # noqa: F403
from ..flexgen.apps.completion import main

if __name__ == "__main__":
    sys.exit(main())
