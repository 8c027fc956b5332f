# SPDX-License-Identifier: Apache-2.0
"""Renders chat templates, in a process of its own that `chat` starts and may end at any time.

The first line of standard input has the fields path, memory_bytes, seconds and characters in JSON,
each further line template, messages and variables. Every line is answered by one with the field
text or error.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any


def _limit_memory(more_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _reply(render: Any, request: dict[str, Any], characters: int) -> dict[str, str]:
    from jinja2 import TemplateError

    try:
        (text,), _ = render(
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["variables"],
        )
    except TemplateError as error:
        return {"error": str(error) or type(error).__name__}
    except MemoryError:
        return {"error": "it needs more memory than is allowed"}
    # The template is code of the checkpoint's, and may raise whatever Python can.
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if len(text) > characters:
        return {"error": f"its text has more than {characters} characters"}
    return {"text": text}


def main() -> None:
    """Answer lines until standard input ends."""
    # Whatever else writes to standard output must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    sys.path[:] = settings["path"]
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory(settings["memory_bytes"])
    print(json.dumps({"text": "ready"}), file=answers, flush=True)
    for line in sys.stdin:
        # Ends this process even if the one that asked is gone.
        signal.alarm(settings["seconds"])
        answer = json.dumps(_reply(render_jinja_template, json.loads(line), settings["characters"]))
        signal.alarm(0)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
