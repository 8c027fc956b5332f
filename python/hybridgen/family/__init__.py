# SPDX-License-Identifier: Apache-2.0
"""One file per model family: how it writes its config.json and names its tensors.

To add a family, write a file like these with a `Family` in it and list it in ``families.py``;
docs/models.md shows it by an example. There is no second transformer to write.
"""
