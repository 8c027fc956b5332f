# SPDX-License-Identifier: Apache-2.0
"""Run clang-tidy on the sources in the build's compilation database, once per content.

A file that passed is not read again until something changes that clang-tidy sees: the file, a
header of the project that the build found it to include, its compile command, the configuration or
clang-tidy's version. The names of what passed lie in ``~/.cache/hybridgen/clang-tidy``.

Example
-------
``python scripts/clang_tidy.py`` reads the sources without Torch and those that differ from the main
branch (Torch's headers take clang-tidy long); ``--all`` reads all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"

# Flags that only g++ knows may be in the database; clang must not fail on them, nor on omp.h, which
# comes with each compiler and may not be there for this one.
OPTIONS = ["--extra-arg=-Wno-unknown-warning-option", "--extra-arg=-fno-openmp"]
NOISE = ("warnings generated", "warning generated", "Suppressed ", "Use -header-filter")


def output_of(*command: str) -> str:
    """Return what a command prints; it must succeed."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def changed_sources() -> set[str]:
    """Return the sources that differ from the main branch or are not committed."""
    base = subprocess.run(
        ["git", "merge-base", "HEAD", "origin/main"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    diff = output_of("git", "diff", "--name-only", "--diff-filter=d", base or "HEAD", "--", "*.cpp")
    new = output_of("git", "ls-files", "--others", "--exclude-standard", "--", "*.cpp")
    return {*diff.split(), *new.split()}


def headers_by_object() -> dict[str, list[Path]]:
    """Return the project's files that each object of the build was made of, as Ninja knows them."""
    found: dict[str, list[Path]] = {}
    files: list[Path] = []
    for line in output_of("ninja", "-C", str(BUILD), "-t", "deps").splitlines():
        if not line.startswith(" "):
            files = found.setdefault(line.split(":")[0], [])
            continue
        path = Path(os.path.normpath(BUILD / line.strip()))
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / ".venv"):
            files.append(path)
    return found


class Source:
    """One entry of the compilation database."""

    def __init__(self, entry: dict[str, str], headers: dict[str, list[Path]]) -> None:
        self.file = Path(entry["file"])
        self.name = str(self.file.relative_to(ROOT))
        self.includes_torch = "/torch/include" in entry["command"]
        self._command = entry["command"]
        self._seen = headers.get(os.path.relpath(entry["output"], BUILD), [])

    def fingerprint(self, rules: str) -> str | None:
        """Return a name for all that clang-tidy sees, or None if the build does not know it."""
        # A header that went since the file was compiled: the record is of another time.
        if not self._seen or not all(path.exists() for path in self._seen):
            return None
        digest = hashlib.sha256(rules.encode())
        # As in ccache, the place of the clone is left out.
        digest.update(self._command.replace(str(ROOT), "").encode())
        for path in sorted({self.file, *self._seen}):
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()


def sources() -> list[Source]:
    """Return the C++ sources of the project in the compilation database."""
    headers = headers_by_object()
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    return [
        Source(entry, headers)
        for entry in entries
        if entry["file"].endswith(".cpp") and Path(entry["file"]).is_relative_to(ROOT)
    ]


def rules() -> str:
    """Return what clang-tidy was told: its version, options and configuration files."""
    files = output_of("git", "ls-files", "*.clang-tidy").split()
    texts = [(ROOT / file).read_text() for file in files]
    return "\n".join([output_of("clang-tidy", "--version"), *OPTIONS, *files, *texts])


def passes(source: Source) -> bool:
    """Run clang-tidy on a file and print what it says."""
    finished = subprocess.run(
        ["clang-tidy", "-p", str(BUILD), "--quiet", *OPTIONS, source.name],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = [line for line in finished.stderr.splitlines() if not any(n in line for n in NOISE)]
    if said := [line for line in [finished.stdout.strip(), *errors] if line]:
        print("\n".join(said), flush=True)
    return finished.returncode == 0


def main() -> int:
    """Read what has not passed yet; the exit status is 1 if clang-tidy finds something."""
    parser = argparse.ArgumentParser(description="Run clang-tidy, once per content.")
    parser.add_argument("--all", action="store_true", help="also unchanged sources with Torch")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    passed = home / "hybridgen" / "clang-tidy"
    passed.mkdir(parents=True, exist_ok=True)
    changed = changed_sources()
    wanted = [s for s in sources() if options.all or not s.includes_torch or s.name in changed]
    told = rules()
    stamps = {source.name: source.fingerprint(told) for source in wanted}
    todo = [s for s in wanted if not (stamps[s.name] and (passed / str(stamps[s.name])).exists())]
    print(f"clang-tidy: {len(todo)} files; {len(wanted) - len(todo)} have passed as they are")
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(passes, todo))
    for source, good in zip(todo, results, strict=True):
        if good and stamps[source.name]:
            (passed / str(stamps[source.name])).touch()
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
