# SPDX-License-Identifier: Apache-2.0
"""FlexGen's modules and names on the one engine; docs/flexgen.md is for who switches."""
