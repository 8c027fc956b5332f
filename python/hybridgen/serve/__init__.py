# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server around one engine; see ``python -m hybridgen serve --help``.

Nothing is imported here: all but `command` needs what ``pip install hybridgen[serve]`` installs.
"""
