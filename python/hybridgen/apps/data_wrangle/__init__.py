# SPDX-License-Identifier: Apache-2.0
"""FlexGen's data wrangling, which is not here."""
