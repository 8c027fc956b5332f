# SPDX-License-Identifier: Apache-2.0
"""Writes what is made from the tables of options: stubs of the option classes, and docs/api.md.

python scripts/build_api.py           write them
python scripts/build_api.py --check   write nothing; fail if the committed ones are out of date
"""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hybridgen as hg
from hybridgen import _core
from hybridgen._options import Options, base_of, class_rows, docstring_of

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "python/hybridgen/config.pyi"
DOCUMENT = ROOT / "docs/api.md"
CONFIG = str(ROOT / "pyproject.toml")

STUB_HEAD = """# SPDX-License-Identifier: Apache-2.0
# Made by scripts/build_stubs.sh from the tables of options in src/; not to be edited.
from dataclasses import dataclass
from typing import ClassVar

from ._options import MethodOptions as MethodOptions
from ._options import Options as Options
from ._options import SteeringOptions
from .disk import Disk

METHOD_OPTIONS: tuple[type[MethodOptions], ...]
"""

DOCUMENT_HEAD = """<!-- Made by scripts/build_stubs.sh; not to be edited. -->
# Reference of the Python API

Everything below is `hybridgen.NAME`, made from the code: signatures, first paragraphs of docstrings
(`help(...)` has all of each), and the tables that options are checked by. The command line has a
flag for every option of `CpuConfig`, `WeightConfig`, `KVConfig`, `SchedulerConfig` and
`QueryConfig`, and for the limits of an engine.
"""


def config_stub() -> str:
    """Return config.pyi: the option classes as a type checker and an editor see them."""
    text = STUB_HEAD
    for row in class_rows():
        text += f"\n@dataclass(frozen=True, kw_only=True)\nclass {row['name']}"
        text += f"({base_of(row).__name__}):\n"
        text += textwrap.indent(f'"""{docstring_of(row)}"""', "    ") + "\n"
        if row["method"]:
            text += f"    method: ClassVar[str] = {row['method']!r}\n"
        for option in row["options"]:
            text += f"    {option['name']}: {option['type']} = {option['default']!r}\n"
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--config", CONFIG, "--stdin-filename=x.pyi", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return formatted.stdout


def first_paragraph(thing: object) -> str:
    """Return the start of a docstring on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def plain_signature(thing: Any) -> str:
    """Return names and defaults of parameters; types are in the stubs."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return "(...)"
    shown, has_star = [], False
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            shown.append("*")
            has_star = True
        if parameter.kind is parameter.VAR_POSITIONAL:
            has_star = True
        marks: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        mark = marks.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        shown.append(f"{mark}{parameter.name}{default}")
    return f"({', '.join(shown)})"


def options_table(row: Mapping[str, Any]) -> str:
    """Return the options of a class as a table."""
    if not row["options"]:
        return "No options.\n"
    lines = ["| option | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for option in row["options"]:
        meaning = option["meaning"][:1].upper() + option["meaning"][1:].rstrip(".") + "."
        cells = (f"`{option['name']}`", f"`{option['default']!r}`", option["allowed"], meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def class_section(name: str, cls: type[Any]) -> str:
    """Return what there is to know about a public class that is no table of options."""
    text = f"\n### `{name}{plain_signature(cls)}`\n\n{first_paragraph(cls)}\n"
    if dataclasses.is_dataclass(cls):
        names = ", ".join(f"`{field.name}`" for field in dataclasses.fields(cls))
        text += f"\nFields: {names}.\n"
    members = []
    # Of our bases too: what LLM inherits is its own to who calls it.
    bases = [base for base in reversed(cls.__mro__) if base.__module__.startswith("hybridgen.")]
    for member, value in {n: v for base in bases for n, v in vars(base).items()}.items():
        inner = getattr(value, "__func__", value)
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            members.append(f"- `{member}`: {first_paragraph(value)}")
        elif inspect.isfunction(inner):
            members.append(f"- `{member}{plain_signature(inner)}`: {first_paragraph(inner)}")
    return text + ("\n" + "\n".join(members) + "\n" if members else "")


def api_document() -> str:
    """Return docs/api.md."""
    rows = _core.option_classes()
    text = DOCUMENT_HEAD
    public = {name: getattr(hg, name) for name in hg.__all__ if not name.startswith("_")}
    text += "\n## Classes and functions\n"
    for name, thing in public.items():
        if inspect.isclass(thing) and not issubclass(thing, Options | Exception):
            text += class_section(name, thing)
        elif inspect.isfunction(thing):
            text += f"\n### `{name}{plain_signature(thing)}`\n\n{first_paragraph(thing)}\n"
    for module in (hg.methods, hg.selectors):
        short = module.__name__.rpartition(".")[2]
        text += f"\n## `{short}`\n\n{first_paragraph(module)}\n"
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                text += f"\n- `{short}.{name}{plain_signature(thing)}`: {first_paragraph(thing)}"
        text += "\n"
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) and not issubclass(thing, Options):
                text += class_section(f"{short}.{name}", thing)
    text += "\n## Options of an engine\n"
    for row in rows:
        if not row["method"]:
            text += f"\n### `{row['name']}`\n\n{row['summary']}\n\n{options_table(row)}"
    text += "\n## Options of methods\n"
    for row in rows:
        if row["method"]:
            text += f'\n### `methods.{row["name"]}` (`method="{row["method"]}"`)\n'
            text += f"\n{row['summary']}.\n\n{options_table(row)}"
    text += "\n## Errors\n\n"
    for name, thing in public.items():
        if inspect.isclass(thing) and issubclass(thing, Exception):
            text += f"- `{name}`: {first_paragraph(thing)}\n"
    return text


def main() -> int:
    """Write the files, or say which differ."""
    found = 0
    for path, text in ((STUB, config_stub()), (DOCUMENT, api_document())):
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(
                f"build_api.py: {path.relative_to(ROOT)} is out of date; run "
                "scripts/build_stubs.sh and commit",
                file=sys.stderr,
            )
            found = 1
    return found


if __name__ == "__main__":
    sys.exit(main())
