# SPDX-License-Identifier: Apache-2.0
"""An emulated machine with two memory nodes, one without CPUs: qemu without KVM, Debian's kernel.

Nothing is installed: packages are fetched, checked against ``packages.txt`` and unpacked into a
folder. The root file system of the host is mounted inside, read-only, under a layer in memory, so
that programs and the Python environment of the host run there by the paths they have here. Its
time is not that of hardware: it says where memory lies, never how fast it is.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import platform
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MIRRORS = (
    "https://deb.debian.org/debian",
    "https://snapshot.debian.org/archive/debian/20260801T000000Z",
)
FETCH_SECONDS = 60.0

# Of node 1, without CPUs, about 225 MiB can be taken: the kernel keeps some back.
NODE_MIB = (1024, 256)
# What firmware tells of both (HMAT): nanoseconds, and GB/s.
LATENCY_NS = (100, 300)
BANDWIDTH_GBS = (200, 25)
DISTANCE = 20

# In the order in which they need each other: the package has no list of that.
MODULES = (
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/9p/9pnet",
    "net/9p/9pnet_virtio",
    "fs/netfs/netfs",
    "fs/fscache/fscache",
    "fs/9p/9p",
    "fs/overlayfs/overlay",
)
# Defences against other users and zeroing twice make emulation several times as slow.
KERNEL_OPTIONS = "console=ttyS0 panic=-1 quiet mitigations=off init_on_alloc=0 audit=0 apparmor=0"
RESULTS = "/numa-machine-results"  # of the guest: the host's folder for results


class CannotRun(Exception):
    """This machine cannot run the emulated one; the text says why."""


@dataclass(frozen=True)
class Run:
    """What a run of the machine took, in seconds of the clock and of CPUs."""

    wall_s: float
    cpu_s: float
    switched_off: str = ""  # why it did not end by itself; empty: it did


@dataclass(frozen=True)
class Package:
    """A package of Debian's archive: its SHA-256 and its path there."""

    sha256: str
    path: str

    @property
    def file_name(self) -> str:
        return self.path.rpartition("/")[2]


def packages() -> list[Package]:
    """Return the pinned packages."""
    lines = (HERE / "packages.txt").read_text(encoding="utf-8").splitlines()
    return [Package(*line.split()) for line in lines if line and not line.startswith("#")]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _fetch(package: Package, folder: Path) -> Path:
    """Return the package's file, fetched if it is not there or not whole."""
    file = folder / package.file_name
    if file.exists() and _sha256(file) == package.sha256:
        return file
    failures = []
    for mirror in MIRRORS:
        part = file.with_suffix(".part")
        try:
            url = f"{mirror}/{package.path}"
            with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as source:
                part.write_bytes(source.read())
        except (OSError, urllib.error.URLError) as error:
            failures.append(f"{mirror}: {error}")
            continue
        if (found := _sha256(part)) == package.sha256:
            part.replace(file)
            return file
        failures.append(f"{mirror}: SHA-256 is {found}, not {package.sha256}")
    raise CannotRun(f"{package.file_name} cannot be fetched: {'; '.join(failures)}")


def _wanted(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Leave out what takes long: modules, but for MODULES, and what is read by people."""
    name = member.name.removeprefix("./")
    if "/kernel/" in name and name.endswith(".ko"):
        wanted = name.partition("/kernel/")[2].removesuffix(".ko") in MODULES
    else:
        wanted = not name.startswith(("usr/share/doc", "usr/share/man", "usr/share/locale"))
    return tarfile.data_filter(member, folder) if wanted else None


def _unpack(files: list[Path], root: Path) -> None:
    unfinished = root.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for file in files:
        unpacking = ["dpkg-deb", "--fsys-tarfile", str(file)]
        with subprocess.Popen(unpacking, stdout=subprocess.PIPE) as process:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                archive.extractall(unfinished, filter=_wanted)
        if process.returncode != 0:
            raise CannotRun(f"dpkg-deb cannot unpack {file}")
    shutil.rmtree(root, ignore_errors=True)
    unfinished.replace(root)


def _kernel_image(boot_image: bytes) -> bytes:
    """Return the kernel inside a bzImage: without its boot code, qemu starts it twice as fast."""
    if boot_image[0x202:0x206] != b"HdrS":
        raise ValueError("no boot image of Linux")
    setup_sectors = boot_image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", boot_image, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    return lzma.LZMADecompressor().decompress(boot_image[begin : begin + length])


def _archive(entries: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """Write a cpio archive of the kind that kernels unpack: mode and content by path."""
    for number, (path, (mode, content)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))]):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        yield header + b"\0" * (-len(header) % 4)
        yield content + b"\0" * (-len(content) % 4)


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class NumaMachine:
    """The emulated machine, in a folder of the clone.

    Parameters
    ----------
    folder : Path
        Where packages are fetched to and unpacked; kept between runs.

    Raises
    ------
    CannotRun
        If this machine lacks something that it needs.
    """

    def __init__(self, folder: Path) -> None:
        if platform.machine() != "x86_64":
            raise CannotRun(f"the pinned packages are for x86_64, this is {platform.machine()}")
        if shutil.which("dpkg-deb") is None:
            raise CannotRun("dpkg-deb, which unpacks Debian's packages, is not installed")
        self.folder = folder
        self.root = folder / "root"
        pinned = (HERE / "packages.txt").read_text(encoding="utf-8")
        stamp = folder / "unpacked"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != pinned:
            (folder / "packages").mkdir(parents=True, exist_ok=True)
            files = [_fetch(package, folder / "packages") for package in packages()]
            _unpack(files, self.root)
            stamp.write_text(pinned, encoding="utf-8")

    def _only(self, pattern: str) -> Path:
        found = list(self.root.glob(pattern))
        if len(found) != 1:
            raise CannotRun(f"the packages have {len(found)} files like {pattern}")
        return found[0]

    def _write_boot_files(self, script: str) -> tuple[Path, Path]:
        kernel = self.folder / "vmlinux"
        kernel.write_bytes(_kernel_image(self._only("boot/vmlinuz-*").read_bytes()))
        busybox = self._only("bin/busybox").read_bytes()
        init = (HERE / "guest_init.sh").read_bytes()
        entries = {"bin": (0o040755, b""), "modules": (0o040755, b"")}
        entries |= {"bin/busybox": (0o100755, busybox), "init": (0o100755, init)}
        entries |= {"script": (0o100755, script.encode())}
        for number, name in enumerate(MODULES):
            content = self._only(f"lib/modules/*/kernel/{name}.ko").read_bytes()
            entries[f"modules/{number:02}.ko"] = (0o100644, content)
        archive = self.folder / "initramfs"
        archive.write_bytes(b"".join(_archive(entries)))
        return kernel, archive

    def _qemu(self, kernel: Path, archive: Path, results: Path) -> list[str]:
        arguments = [str(self._only("usr/bin/qemu-system-x86_64"))]
        for name in ("qemu", "seabios"):
            arguments += ["-L", str(self.root / "usr/share" / name)]
        arguments += ["-machine", "q35,hmat=on", "-accel", "tcg,thread=multi"]
        arguments += ["-cpu", "max,la57=off", "-smp", "2", "-m", f"{sum(NODE_MIB)}M"]
        kinds = zip(NODE_MIB, ("cpus=0-1", "initiator=0"), strict=True)
        for node, (size, more) in enumerate(kinds):
            arguments += ["-object", f"memory-backend-ram,id=m{node},size={size}M"]
            arguments += ["-numa", f"node,nodeid={node},memdev=m{node},{more}"]
        arguments += ["-numa", f"dist,src=0,dst=1,val={DISTANCE}"]
        for node, (latency, bandwidth) in enumerate(zip(LATENCY_NS, BANDWIDTH_GBS, strict=True)):
            told = f"hmat-lb,initiator=0,target={node},hierarchy=memory,data-type=access-"
            arguments += ["-numa", f"{told}latency,latency={latency}"]
            arguments += ["-numa", f"{told}bandwidth,bandwidth={bandwidth}G"]
        arguments += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        arguments += ["-serial", "stdio"]
        shared = "security_model=none,multidevs=remap"
        for tag, path, more in (("host", "/", ",readonly=on"), ("results", str(results), "")):
            arguments += ["-virtfs", f"local,path={path},mount_tag={tag},{shared}{more}"]
        arguments += ["-kernel", str(kernel), "-initrd", str(archive)]
        return [*arguments, "-append", KERNEL_OPTIONS]

    def run(self, commands: str, results: Path, cpu_seconds: int, wall_seconds: int) -> Run:
        """Boot, run shell commands as root, power off; what the guest says goes to stdout.

        Parameters
        ----------
        commands : str
            Of a POSIX shell; `RESULTS` is ``results`` there.
        results : Path
            A folder of the host, emptied first.
        cpu_seconds, wall_seconds : int
            The machine is switched off when qemu has used, or the clock shows, so many.

        Raises
        ------
        RuntimeError
            If qemu itself fails.
        """
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir(parents=True)
        kernel, archive = self._write_boot_files(commands)
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        environment = os.environ | {
            "LD_LIBRARY_PATH": f"{libraries}:{self.root / 'lib/x86_64-linux-gnu'}",
            "QEMU_MODULE_DIR": str(libraries / "qemu"),
        }
        command = self._qemu(kernel, archive, results)
        begin, cpu_before, switched_off = time.monotonic(), _cpu_seconds_of_children(), ""
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as qemu:
            resource.prlimit(qemu.pid, resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
            try:
                status = qemu.wait(wall_seconds)
            except subprocess.TimeoutExpired:
                qemu.kill()
                switched_off = f"it still ran after {wall_seconds} s"
        used = _cpu_seconds_of_children() - cpu_before
        if not switched_off and (used >= cpu_seconds or status == -signal.SIGKILL):
            switched_off = f"it took {cpu_seconds} s of CPU time"
        if not switched_off and status != 0:
            raise RuntimeError(f"qemu ended with {status}: {shlex.join(command)}")
        return Run(time.monotonic() - begin, used, switched_off)
