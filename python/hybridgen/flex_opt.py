# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen.flex_opt``: FlexGen's main program; its names are in "
"`hybridgen.flexgen.flex_opt`."""

import sys

from .flexgen.flex_opt import *  # noqa: F403
from .flexgen.flex_opt import main

if __name__ == "__main__":
    sys.exit(main())
