# SPDX-License-Identifier: Apache-2.0
"""Files of prompts to folders of answers: any number of lines, resumed where a run ended.

``python -m hybridgen batch IN.jsonl --out DIR --model ...``; docs/batch.md has the forms of
lines and answers. One concept per file, the data flowing down:

* ``input_file``: a file's lines, one after the other (``jsonl_input``, ``parquet_input``)
* ``line_forms``: what a line asks for, and what its answer looks like (``plain_form``,
  ``openai_form``)
* ``engine_window``: so many lines at a time through an engine
* ``shard_sink``, ``shard_folder``: answers in order, in files that appear whole
* ``fingerprint``: what a folder's answers were made of
* ``run``: all of it together; ``command``: the same from a shell
"""

from __future__ import annotations
