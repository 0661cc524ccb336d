import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pysam
import pytest

from lrgenome.dna import decode
from lrgenome.errors import FastaError, OutputError
from lrgenome.io.fasta import Fasta


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def bgzip(path):
    packed = path.with_name(path.name + ".gz")
    pysam.tabix_compress(str(path), str(packed))
    return packed


def make_older(path, seconds=100):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


def refuse_folder(monkeypatch, *folders):
    """Act as if these folders were read-only, also for root."""
    real = tempfile.mkstemp

    def mkstemp(*args, dir=None, **kwargs):
        if Path(dir) in folders:
            raise PermissionError(13, "Permission denied", str(dir))
        return real(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


@pytest.fixture(params=["plain", "bgzf"])
def either(request, toy_fasta):
    return toy_fasta if request.param == "plain" else bgzip(toy_fasta)


# Indices


def test_index_is_built_beside_the_file_and_agrees_with_samtools(either):
    Fasta(either).close()
    names = sorted(path.name for path in either.parent.iterdir() if path.name.startswith(either.name + "."))
    ours = {name: (either.parent / name).read_bytes() for name in names if not name.endswith(".fa.gz")}
    assert f"{either.name}.fai" in ours
    assert not list(either.parent.glob(".*"))
    for name in ours:
        (either.parent / name).unlink()
    pysam.faidx(str(either))
    assert {name: (either.parent / name).read_bytes() for name in ours} == ours


def test_index_of_many_blocks_agrees_with_htslib(tmp_path):
    rng = np.random.default_rng(3)
    sequence = "".join(rng.choice(list("ACGT"), 400_000))
    path = bgzip(write(tmp_path / "a.fa", f">a\n{sequence}\n>b\nACGT\n"))
    with Fasta(path) as fasta:
        assert decode(fasta.fetch("a", 131_000, 263_000)) == sequence[131_000:263_000]
        assert decode(fasta.fetch("b", 0, 4)) == "ACGT"
    ours = (tmp_path / "a.fa.gz.gzi").read_bytes()
    os.unlink(tmp_path / "a.fa.gz.gzi")
    pysam.faidx(str(path))
    assert (tmp_path / "a.fa.gz.gzi").read_bytes() == ours


def test_good_index_is_left_alone(either):
    Fasta(either).close()
    fai = either.with_name(either.name + ".fai")
    os.utime(fai, ns=(either.stat().st_mtime_ns, either.stat().st_mtime_ns))
    before = fai.stat()
    Fasta(either).close()
    assert (fai.stat().st_ino, fai.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "garbage",
        "chr1\t5003\n",
        "chr1\t5003\t18\t60\t61\n",
        "chr9\t5003\t18\t60\t61\n",
        "chr1\t99\t0\t0\t0\n",
    ],
)
def test_wrong_index_is_replaced(either, damage, toy_sequences):
    Fasta(either).close()
    fai = either.with_name(either.name + ".fai")
    good = fai.read_text()
    fai.write_text(damage)
    with Fasta(either) as fasta:
        assert list(fasta.contigs) == ["chr1", "chr2", "MT"]
        assert decode(fasta.fetch("MT", 0, 61)) == toy_sequences["MT"]
    assert fai.read_text() == good


def test_index_with_other_names_is_seen(toy_fasta):
    Fasta(toy_fasta).close()
    fai = toy_fasta.with_name("toy.fa.fai")
    fai.write_text(fai.read_text().replace("chr2", "chrX"))
    with Fasta(toy_fasta) as fasta:
        assert "chr2" in fasta.contigs


def test_missing_or_damaged_gzi_is_replaced(toy_fasta, toy_sequences):
    path = bgzip(toy_fasta)
    Fasta(path).close()
    gzi = path.with_name("toy.fa.gz.gzi")
    good = gzi.read_bytes()
    for damaged in (None, b"", b"\x05" + bytes(7), b"\x01" + bytes(7) + b"\x07" * 16):
        gzi.unlink()
        if damaged is not None:
            gzi.write_bytes(damaged)
        with Fasta(path) as fasta:
            assert decode(fasta.fetch("MT", 0, 61)) == toy_sequences["MT"]
        assert gzi.read_bytes() == good


def test_stale_index_is_replaced(tmp_path):
    path = write(tmp_path / "a.fa", ">a\nAC\nGT\n")
    Fasta(path).close()
    write(path, ">b\nACGT\nAC\n>c\nAC\n")
    make_older(tmp_path / "a.fa.fai")
    with Fasta(path) as fasta:
        assert fasta.contigs == {"b": 6, "c": 2}


def test_longer_file_under_a_newer_index_is_seen(tmp_path):
    path = write(tmp_path / "a.fa", ">a\nACGT\n")
    Fasta(path).close()
    with open(path, "a") as handle:
        handle.write(">b\nAC\n")
    make_older(path)
    with Fasta(path) as fasta:
        assert fasta.contigs == {"a": 4, "b": 2}


def test_clock_of_the_fasta_may_be_ahead(tmp_path):
    path = write(tmp_path / "a.fa", ">a\nACGT\n")
    make_older(path, seconds=-10_000)
    Fasta(path).close()
    assert (tmp_path / "a.fa.fai").stat().st_mtime_ns >= path.stat().st_mtime_ns


def test_read_only_folder(either, toy_sequences, monkeypatch, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    refuse_folder(monkeypatch, either.parent)
    before = sorted(os.listdir(either.parent))
    with Fasta(either) as fasta:
        assert decode(fasta.fetch("MT", 0, 61)) == toy_sequences["MT"]
        assert len(os.listdir(scratch)) == 1
        assert sorted(os.listdir(either.parent)) == before
    assert os.listdir(scratch) == []
    fasta = Fasta(either)
    del fasta
    assert os.listdir(scratch) == []


def test_nowhere_to_write(either, monkeypatch, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    real = os.replace
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    before = sorted(os.listdir(either.parent))
    with pytest.raises(OutputError, match=r"\.fai: No space left"):
        Fasta(either)
    monkeypatch.setattr(os, "replace", real)
    assert os.listdir(scratch) == []
    assert sorted(os.listdir(either.parent)) == before


def test_index_dir(either, tmp_path):
    folder = tmp_path / "deep" / "indices"
    before = sorted(path.name for path in either.parent.iterdir() if path.is_file())
    with Fasta(either, index_dir=folder) as fasta:
        assert len(fasta.contigs) == 3
    made = sorted(os.listdir(folder))
    assert made[0] == f"{either.name}.fai"
    inode = (folder / made[0]).stat().st_ino
    Fasta(either, index_dir=folder).close()
    assert (folder / made[0]).stat().st_ino == inode
    assert sorted(path.name for path in either.parent.iterdir() if path.is_file()) == before
    with pytest.raises(OutputError, match="cannot write"):
        Fasta(either, index_dir=either)


def test_index_is_as_readable_as_the_fasta(toy_fasta):
    toy_fasta.chmod(0o444)
    Fasta(toy_fasta).close()
    assert toy_fasta.with_name("toy.fa.fai").stat().st_mode & 0o777 == 0o644


# Damage


@pytest.mark.parametrize("index_is_older", [False, True])
@pytest.mark.parametrize("kept", [3000, 5106, 5109, 6000, 6345, 6362, 6391, 6423])
def test_truncated_file_with_its_old_index(toy_fasta, kept, index_is_older):
    Fasta(toy_fasta).close()
    content = toy_fasta.read_bytes()
    assert len(content) == 6425
    write(toy_fasta, content[:kept])
    make_older(toy_fasta.with_name("toy.fa.fai") if index_is_older else toy_fasta)
    with pytest.raises(
        FastaError, match=r"cut short: got .* bp in all, expected 3 of 6,264 bp .*toy\.fa\.fai"
    ):
        Fasta(toy_fasta)


def test_edited_file_is_not_taken_for_a_truncated_one(toy_fasta):
    Fasta(toy_fasta).close()
    write(toy_fasta, ">chr1\nACGT\n>chr2\nAC\n")
    with Fasta(toy_fasta) as fasta:
        assert fasta.contigs == {"chr1": 4, "chr2": 2}


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("lost", [1, 28, 100, 1500])
def test_truncated_bgzf(toy_fasta, lost, indexed):
    path = bgzip(toy_fasta)
    if indexed:
        Fasta(path).close()
    write(path, path.read_bytes()[:-lost])
    with pytest.raises(FastaError, match=r"toy\.fa\.gz: the file is cut short"):
        Fasta(path)


def test_truncated_bgzf_before_it_was_packed(toy_fasta):
    packed = bgzip(toy_fasta)
    Fasta(packed).close()
    write(toy_fasta, toy_fasta.read_bytes()[:3000])
    packed.unlink()
    bgzip(toy_fasta)
    with pytest.raises(FastaError, match=r"cut short: got 1 contigs.*toy\.fa\.gz\.fai"):
        Fasta(packed)


@pytest.mark.parametrize("indexed", [False, True])
def test_damaged_bgzf_block(toy_fasta, indexed, capfd):
    path = bgzip(toy_fasta)
    if indexed:
        Fasta(path).close()
    content = bytearray(path.read_bytes())
    content[300:320] = bytes(20)
    write(path, bytes(content))
    for extra in path.parent.glob("*i"):
        make_older(extra, seconds=-100)
    with pytest.raises(FastaError, match=r"toy\.fa\.gz.*damaged"):
        with Fasta(path) as fasta:
            fasta.fetch("chr1", 0, 5003)
    assert capfd.readouterr().err == ""


def test_lost_bgzf_block(tmp_path):
    rng = np.random.default_rng(3)
    path = write(tmp_path / "a.fa", ">a\n" + "".join(rng.choice(list("ACGT"), 300_000)) + "\n")
    path = bgzip(path)
    Fasta(path).close()
    content = path.read_bytes()
    second = int.from_bytes((tmp_path / "a.fa.gz.gzi").read_bytes()[8:16], "little")
    third = int.from_bytes((tmp_path / "a.fa.gz.gzi").read_bytes()[24:32], "little")
    write(path, content[:second] + content[third:])
    make_older(path)
    with pytest.raises(FastaError, match="cut short: got 1 contigs of 234,720 bp"):
        Fasta(path)


def test_real_index_is_rebuilt_alike(shared_data, tmp_path):
    source = shared_data / "genomes" / "saccharomyces_cerevisiae.R64-1-1.fa.gz"
    path = tmp_path / source.name
    shutil.copyfile(source, path)
    with Fasta(path) as fasta:
        assert len(fasta.contigs) == 17
        assert sum(fasta.contigs.values()) == 12_157_105
    assert Path(f"{path}.fai").read_text() == Path(f"{source}.fai").read_text()
    assert Path(f"{path}.gzi").read_bytes() == Path(f"{source}.gzi").read_bytes()
