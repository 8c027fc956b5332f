# SPDX-License-Identifier: Apache-2.0
"""FlexGen's applications."""
