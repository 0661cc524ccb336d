"""What the machine has left: memory, CPUs, disk, scratch space.

Memory is what this process may still take, not what the machine has: batch schedulers and containers set
limits (cgroups, ``ulimit -v``) far below it, and a process that crosses them is killed without a message.
"""

import math
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path, PurePosixPath

import psutil

from lrgenome.errors import OutputError, UsageError

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")


def available_memory(*, cgroup_root: Path = CGROUP_ROOT, cgroup_of_process: Path = CGROUP_OF_PROCESS) -> int:
    """Memory that this process may still take, in bytes.

    The least of what the machine has available, what the cgroups (v1 or v2) of the process and their
    ancestors have left, and what ``RLIMIT_AS`` leaves of the address space. Page cache that the kernel would
    drop under pressure counts as free.

    Parameters
    ----------
    cgroup_root
        Where the cgroup file system is mounted.
    cgroup_of_process
        The file that names the cgroups of the process.

    Returns
    -------
    int
        Bytes, never negative.
    """
    limits = [int(psutil.virtual_memory().available)]
    for directory in _cgroups_of("memory", cgroup_root, cgroup_of_process):
        for names in (_V2_NAMES, _V1_NAMES):
            left = _cgroup_left(directory, *names)
            if left is not None:
                limits.append(left)
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space - int(psutil.Process().memory_info().vms))
    return max(0, min(limits))


def available_cpus(*, cgroup_root: Path = CGROUP_ROOT, cgroup_of_process: Path = CGROUP_OF_PROCESS) -> int:
    """CPUs that this process may use: those it may run on, or fewer by the CPU time that its cgroups grant.

    Containers and batch systems grant a share of the time of all CPUs (``cpu.max``, ``cpu.cfs_quota_us``); more threads
    than that are stopped in the middle of their work.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for directory in _cgroups_of("cpu", cgroup_root, cgroup_of_process):
        share = _cpu_share(directory)
        if share is not None:
            allowed = min(allowed, max(1, math.ceil(share)))
    return allowed


def _cpu_share(directory: Path) -> float | None:
    """CPUs that a cgroup grants the time of, None where it has no limit."""
    try:
        if (directory / "cpu.max").is_file():
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota, period = ((directory / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max"
        return None


def used_memory() -> int:
    """Return the memory that this process holds, in bytes: its resident set."""
    return int(psutil.Process().memory_info().rss)


_V2_NAMES = ("memory.max", "memory.current", "inactive_file")
_V1_NAMES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _cgroups_of(controller: str, root: Path, of_process: Path) -> list[Path]:
    """Directories of a controller's cgroups of the process (v1 or v2), from its own up to the root.

    Inside a container the paths of `of_process` may be those of the host and not exist here; the walk up
    then ends at the mount, which is the container's own cgroup.
    """
    try:
        lines = of_process.read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers == "":
            base = root
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
        found.extend(base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
    return found


def _cgroup_left(directory: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    """Bytes left under the limit of one cgroup, None where it has no limit."""
    try:
        limit_text = (directory / limit_name).read_text().strip()
        usage = int((directory / usage_name).read_text())
    except (OSError, ValueError):
        return None
    if not limit_text.isdigit():  # "max"
        return None
    reclaimable = 0
    try:
        for line in (directory / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == cache_name:
                reclaimable = int(value)
    except (OSError, ValueError):
        pass
    return int(limit_text) - max(0, usage - reclaimable)


def free_disk(path: str | os.PathLike[str]) -> int:
    """Bytes that an unprivileged process may still write where `path` is or will be.

    Parameters
    ----------
    path
        A file or directory; where it does not exist, its nearest existing ancestor counts.

    Raises
    ------
    OutputError
        If the file system cannot be asked.
    """
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise OutputError(f"cannot tell the free space at {place}: {error.strerror or error}") from error


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # Linux and the BSDs count kB


def scratch_dir(tmpdir: str | os.PathLike[str] | None = None) -> Path:
    """Directory for temporary files: `tmpdir`, else ``TMPDIR`` and the system's usual places.

    Parameters
    ----------
    tmpdir
        What the user asked for. Default: None.

    Returns
    -------
    Path
        An existing directory that can be written to.

    Raises
    ------
    UsageError
        If `tmpdir`, or ``TMPDIR`` where it is set, is not such a directory: Python would take another, which may be too
        small.
    OutputError
        If none was asked for and the system has none.
    """
    asked = "--tmpdir"
    if tmpdir is None:
        tmpdir, asked = os.environ.get("TMPDIR") or None, "TMPDIR"
    if tmpdir is None:
        try:
            return Path(tempfile.gettempdir())
        except OSError as error:
            raise OutputError(
                f"no directory for temporary files ({error}); name one with --tmpdir"
            ) from error
    place = Path(tmpdir)
    if not place.is_dir():
        raise UsageError(f"{asked}: got {place}, expected an existing directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{asked}: {place} cannot be written to")
    return place
