# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen.as_flexgen SCRIPT``: run a script that imports FlexGen."""

import sys

from .flexgen.as_flexgen import *  # noqa: F403
from .flexgen.as_flexgen import main

if __name__ == "__main__":
    sys.exit(main())
