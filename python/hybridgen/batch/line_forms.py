# SPDX-License-Identifier: Apache-2.0
"""The two forms of lines and answers, told apart line by line."""

from __future__ import annotations

from dataclasses import dataclass

from ..codec import Codec
from ..errors import ConfigError, text_of
from ..outputs import RequestOutput
from .asked import Asked, Form
from .line import Answer, Line
from .openai_form import OpenAiForm
from .plain_form import PlainForm


@dataclass(frozen=True)
class LineForms:
    """The forms of one batch.

    Parameters
    ----------
    model_name : str
        What lines of OpenAI's format may call the model.
    has_token_ids : bool
        Whether plain answers have token ids where they have text.
    is_table : bool
        Whether all answers have the plain form, as the rows of a table must.
    """

    model_name: str
    has_token_ids: bool = False
    is_table: bool = False

    def asked(self, line: Line) -> Asked:
        """Return what a line asks for; ConfigError if it asks for nothing that there is."""
        if line.content is None:
            raise ConfigError(f"[batch] {line.problem}")
        return self._reading(line).read(line.content)

    def answered(self, line: Line, output: RequestOutput, codec: Codec | None) -> Answer:
        """Return the answer to a line that has its text."""
        content = self._writing(line).answered(line, output, codec)
        return Answer(line.index, content, generated_tokens=output.metrics.generated_tokens)

    def failed(self, line: Line, error: BaseException) -> Answer:
        """Return the answer to a line that has none."""
        message = text_of(error) or type(error).__name__
        content = self._writing(line).failed(line, type(error).__name__, message)
        return Answer(line.index, content, f"{line.place}: {message}")

    def _reading(self, line: Line) -> Form:
        if line.content is not None and {"custom_id", "body"} & line.content.keys():
            return OpenAiForm(self.model_name)
        return PlainForm(self.has_token_ids)

    def _writing(self, line: Line) -> Form:
        return PlainForm(self.has_token_ids) if self.is_table else self._reading(line)
