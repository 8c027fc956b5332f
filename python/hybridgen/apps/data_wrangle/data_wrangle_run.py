# SPDX-License-Identifier: Apache-2.0
"""FlexGen's ``data_wrangle_run``, which is not here: says what to use instead."""

import sys

from ...flexgen.not_here import refuse

if __name__ == "__main__":
    sys.exit(refuse("data_wrangle_run"))
