# SPDX-License-Identifier: Apache-2.0
"""FlexGen's applications, to be run by their names there."""
