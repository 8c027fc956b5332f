# SPDX-License-Identifier: Apache-2.0
"""A folder on a disk for offloaded tokens: the lowest tier."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _core
from ._checks import as_path, brief
from .errors import ConfigError


def _check_files_may_be_made(folder: Path) -> None:
    """Raise OSError unless this process may make files there."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        os.close(os.open(folder, flags | os.O_TMPFILE, 0o600))
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS):
            raise
    # A file system without unnamed files. Should the process end before the next line but one, the
    # engine's next start there finds whose the file was.
    name = folder / _core.new_disk_file_name()
    os.close(os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600))
    name.unlink()


@dataclass(frozen=True)
class Disk:
    """A folder, and how many bytes of it an engine may take, for ``KVConfig(disk=...)``.

    Parameters
    ----------
    path : str or Path
        A folder that files may be made in. It must be there already, as a path that is written
        wrong would otherwise fill another disk.
    size : int or str
        Bytes, or text such as ``"500GiB"``.

    Raises
    ------
    ConfigError
        If there is no such folder, this process may make no files in it, or the size is none.

    Examples
    --------
    >>> import tempfile
    >>> Disk(tempfile.gettempdir(), "1GiB").size
    1073741824
    """

    path: str | os.PathLike[str]
    size: int | str

    def __post_init__(self) -> None:
        path = as_path("Disk", "path", self.path)
        try:
            _check_files_may_be_made(path)
        except OSError as error:
            raise ConfigError(
                f"[Disk] path is {brief(str(self.path), 300)}: {error.strerror}; allowed: a folder "
                "that files may be made in; make it first, or name another one"
            ) from error
        given = {"path": str(path.absolute()), "size": self.size}
        for name, value in _core.checked_options("Disk", given).items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return path and size, as the engine takes them."""
        return {"path": self.path, "size": self.size}
