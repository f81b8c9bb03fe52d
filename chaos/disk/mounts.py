"""File systems on loop devices whose power can be cut: all that the page cache held and the disk did not is gone.

Mounts live in a mount namespace of this process's own, and the image has no name: when the process ends, however
it ends, the kernel takes mount, loop device and image away.
"""

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.disk.children import Failed

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_AUTOCLEAR = 4
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
"""Not even the file system's own journal is written out: what was not synced by anybody is lost."""
LOOP_CONFIG = struct.Struct("=II QQQQQ IIII 64s64s32s QQ 64s")
UNMOUNT_TRIES = 100

MKFS = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
SIZE_BYTES = {"ext4": 512 << 20, "xfs": 512 << 20}

_libc = ctypes.CDLL(None, use_errno=True)


def unavailable(kind: str) -> str:
    """Why power cuts on this file system can't be had here; empty when they can."""
    if os.geteuid() != 0:
        return "power cuts need root"
    if not Path("/dev/loop-control").exists():
        return "power cuts need /dev/loop-control"
    if shutil.which(MKFS[kind][0]) is None:
        return f"{MKFS[kind][0]} is not installed"
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    return "" if kind in known else f"this kernel has no {kind}"


def own_mounts() -> None:
    """From here on what this thread and its children mount is seen by them alone. Raises Failed."""
    if _libc.unshare(CLONE_NEWNS) or _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise Failed(f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}")


class LoopDisk:
    """A mounted file system of `kind` with nothing on it. Call own_mounts first; see `loop_disk`.

    image_folder: where the nameless image lies; it takes as much room as is written.
    """

    def __init__(self, kind: str, where: Path, *, image_folder: Path | None = None, size_bytes: int = 0) -> None:
        self.kind = kind
        self.path = where
        self.cuts = 0
        with tempfile.TemporaryFile(dir=image_folder) as image:
            os.ftruncate(image.fileno(), size_bytes or SIZE_BYTES[kind])
            self.device, self._device_fd = _attach(image.fileno())
        try:
            _run(*MKFS[kind], self.device)
            self.mount()
        except BaseException:
            os.close(self._device_fd)
            raise

    def mount(self) -> None:
        """After a cut this is where the file system finds out what it still has. Raises Failed."""
        _run("mount", "-t", self.kind, self.device, str(self.path))

    def cut(self) -> None:
        """The power goes: from now on nothing reaches the disk, and writers get EIO."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)
        self.cuts += 1

    def unmount(self) -> None:
        """Once nobody has a file open here. Raises Failed."""
        _retry(lambda: _libc.umount2(str(self.path).encode(), 0) == 0, f"{self.path} can't be unmounted")

    def close(self) -> None:
        """The device clears itself once neither we nor a mount have it."""
        if os.path.ismount(self.path):
            self.unmount()
        os.close(self._device_fd)


@contextmanager
def loop_disk(kind: str, *, image_folder: Path | None = None, size_bytes: int = 0) -> Iterator[LoopDisk]:
    with tempfile.TemporaryDirectory(prefix="tiebreak-disk-") as where:
        disk = LoopDisk(kind, Path(where), image_folder=image_folder, size_bytes=size_bytes)
        try:
            yield disk
        finally:
            disk.close()


@contextmanager
def small_memory_disk(size_bytes: int) -> Iterator[Path]:
    """A tmpfs that is soon full."""
    with tempfile.TemporaryDirectory(prefix="tiebreak-disk-") as where:
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", where)
        try:
            yield Path(where)
        finally:
            _retry(lambda: _libc.umount2(where.encode(), 0) == 0, f"{where} can't be unmounted")


def _retry(done: Callable[[], bool], what: str) -> None:
    for _ in range(UNMOUNT_TRIES):
        if done():
            return
        time.sleep(0.05)
    raise Failed(f"{what}: {os.strerror(ctypes.get_errno())}")


def _attach(image_fd: int) -> tuple[str, int]:
    """A free loop device that shows the image, and our hold on it."""
    config = LOOP_CONFIG.pack(image_fd, 0, 0, 0, 0, 0, 0, 0, 0, 0, LO_FLAGS_AUTOCLEAR, b"", b"", b"", 0, 0, b"")
    for _ in range(16):
        with open("/dev/loop-control", "rb") as control:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
        device = f"/dev/loop{number}"
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, LOOP_CONFIGURE, config)
        except OSError:
            # Somebody else took it between the two calls.
            os.close(descriptor)
            continue
        return device, descriptor
    raise Failed("no loop device is free")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)} failed: {done.stderr.strip()}")
