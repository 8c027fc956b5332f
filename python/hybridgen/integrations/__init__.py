# SPDX-License-Identifier: Apache-2.0
"""Adapters for other projects' interfaces. Each module needs that project; nothing else does."""
