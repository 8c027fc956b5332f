# SPDX-License-Identifier: Apache-2.0
"""Tasks that say how well a model does with a cache method, and what runs them."""
