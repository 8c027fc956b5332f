# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen.opt_config``: bring a model into FlexGen's layout of weights."""

import sys

from .flexgen.opt_config import *  # noqa: F403
from .flexgen.opt_config import main

if __name__ == "__main__":
    sys.exit(main())
