import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lrgenome.errors import UsageError
from lrgenome.io.resources import available_memory, free_disk, peak_rss, scratch_dir

MIB = 1 << 20


def cgroup(tmp_path: Path, line: str, files: dict[str, str]) -> dict[str, Path]:
    of_process = tmp_path / "self_cgroup"
    of_process.write_text(line)
    for name, text in files.items():
        place = tmp_path / "cgroup" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return {"cgroup_root": tmp_path / "cgroup", "cgroup_of_process": of_process}


def test_without_cgroups_it_is_at_most_what_the_machine_has(tmp_path):
    here = {"cgroup_root": tmp_path, "cgroup_of_process": tmp_path / "absent"}
    assert 0 < available_memory(**here) <= psutil.virtual_memory().total


def test_cgroup_v2_limit_minus_usage_without_reclaimable_cache(tmp_path):
    where = cgroup(
        tmp_path,
        "0::/job/step\n",
        {
            "job/step/memory.max": f"{64 * MIB}\n",
            "job/step/memory.current": f"{50 * MIB}\n",
            "job/step/memory.stat": f"anon 1\ninactive_file {20 * MIB}\nactive_file 5\n",
        },
    )
    assert available_memory(**where) == (64 - 50 + 20) * MIB


def test_cgroup_v2_limit_of_an_ancestor_counts(tmp_path):
    where = cgroup(
        tmp_path,
        "0::/job/step\n",
        {
            "job/step/memory.max": "max\n",
            "job/step/memory.current": "0\n",
            "job/memory.max": f"{8 * MIB}\n",
            "job/memory.current": f"{3 * MIB}\n",
        },
    )
    assert available_memory(**where) == 5 * MIB


def test_cgroup_v2_seen_from_inside_a_container(tmp_path):
    where = cgroup(
        tmp_path, "0::/../host/path\n", {"memory.max": f"{9 * MIB}", "memory.current": f"{2 * MIB}"}
    )
    assert available_memory(**where) == 7 * MIB


def test_cgroup_v1(tmp_path):
    where = cgroup(
        tmp_path,
        "5:cpu,cpuacct:/x\n4:memory:/slurm/job\n",
        {
            "memory/slurm/job/memory.limit_in_bytes": f"{32 * MIB}\n",
            "memory/slurm/job/memory.usage_in_bytes": f"{30 * MIB}\n",
            "memory/slurm/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {4 * MIB}\n",
        },
    )
    assert available_memory(**where) == 6 * MIB


def test_usage_above_the_limit_is_zero_not_negative(tmp_path):
    where = cgroup(tmp_path, "0::/a\n", {"a/memory.max": "10", "a/memory.current": "20"})
    assert available_memory(**where) == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not enforce RLIMIT_AS")
def test_address_space_limit():
    limit = 2 << 30
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "from lrgenome.io.resources import available_memory; print(available_memory())"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert 0 <= int(done.stdout) < limit


def test_free_disk_of_a_path_yet_to_be_made(tmp_path):
    assert free_disk(tmp_path / "not" / "yet.h5") > 0


def test_peak_rss_is_in_bytes():
    assert peak_rss() > 5 * MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_rss() >= peak


def test_scratch_dir(tmp_path, monkeypatch):
    assert scratch_dir(tmp_path) == tmp_path
    assert scratch_dir().is_dir()
    with pytest.raises(UsageError, match="expected an existing directory"):
        scratch_dir(tmp_path / "absent")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="cannot be written"):
        scratch_dir(tmp_path)
