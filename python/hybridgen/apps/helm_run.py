# SPDX-License-Identifier: Apache-2.0
"""FlexGen's ``helm_run``, which is not here: says what to use instead."""

import sys

from ..flexgen.not_here import refuse

if __name__ == "__main__":
    sys.exit(refuse("helm_run"))
