"""Encoded genomes are their FASTA, base by base, and are made again when they have to be."""

import json
import os

import numpy as np
import pytest

from lrgenome.dna import decode
from lrgenome.errors import FastaError, OutputError
from lrgenome.io import encoded
from lrgenome.io.encoded import EncodedGenome, default_cache, open_genome
from lrgenome.io.fasta import Fasta
from lrgenome.training.data import Corpus, sample_rng

CONTIGS = {"odd": "ACGTNacgtnRYKM" * 7 + "A", "one": "T", "even": "GATTACA" * 10}


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "a.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in CONTIGS.items()))
    return path


def files(cache):
    return sorted(path.suffix for path in cache.iterdir())


@pytest.mark.parametrize("block", [2, 16, 1 << 24])
def test_every_interval_is_that_of_the_fasta(fasta, tmp_path, monkeypatch, block):
    monkeypatch.setattr(encoded, "_BLOCK", block)
    with Fasta(fasta) as plain, open_genome(fasta, tmp_path / "cache") as made:
        assert isinstance(made, EncodedGenome)
        assert list(made.contigs.items()) == list(plain.contigs.items()) and made.fingerprint() == plain.fingerprint()
        for contig, length in plain.contigs.items():
            for start in range(length + 1):
                for end in {start, min(length, start + 1), min(length, start + 6), length}:
                    got = made.fetch(contig, start, end)
                    assert got.dtype == np.uint8 and (got == plain.fetch(contig, start, end)).all()
        got[:] = 0  # a copy
        assert decode(made.fetch("one", 0, 1)) == "T"
    assert files(tmp_path / "cache") == [".bases", ".json"]


@pytest.mark.parametrize(("contig", "start", "end"), [("none", 0, 1), ("one", 0, 2), ("one", -1, 1), ("odd", 5, 4)])
def test_intervals_that_are_none(fasta, tmp_path, contig, start, end):
    with open_genome(fasta, tmp_path) as made, pytest.raises(FastaError, match=r"expected it inside"):
        made.fetch(contig, start, end)


def test_a_genome_is_encoded_once_and_again_when_it_changes(fasta, tmp_path, monkeypatch):
    calls = []
    real = encoded.encode
    monkeypatch.setattr(encoded, "encode", lambda *args: calls.append(args) or real(*args))
    cache = tmp_path / "cache"
    for _ in range(2):
        open_genome(fasta, cache).close()
    assert len(calls) == 1
    fasta.write_text(fasta.read_text().replace("GATTACA", "CATTACA"))
    os.utime(fasta, ns=(1, 1))
    with open_genome(fasta, cache) as made:
        assert decode(made.fetch("even", 0, 7)) == "CATTACA"
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["cut", "format", "json", "gone"])
def test_a_damaged_cache_is_made_again(fasta, tmp_path, damage):
    cache = tmp_path / "cache"
    open_genome(fasta, cache).close()
    (index,), (bases,) = cache.glob("*.json"), cache.glob("*.bases")
    if damage == "cut":
        bases.write_bytes(bases.read_bytes()[:-1])
    elif damage == "format":
        index.write_text(json.dumps({**json.loads(index.read_text()), "format": 0}))
    elif damage == "json":
        index.write_text("{")
    else:
        bases.unlink()
    with open_genome(fasta, cache) as made, Fasta(fasta) as plain:
        assert (made.fetch("odd", 0, 99) == plain.fetch("odd", 0, 99)).all()


def test_what_is_no_base_is_said_where_it_is_and_leaves_nothing(tmp_path):
    path = tmp_path / "bad.fa"
    path.write_text(">a\nACGT!CGT\n")
    with pytest.raises(FastaError, match=r"position 5: got '!'"):
        open_genome(path, tmp_path / "cache")
    assert files(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written(fasta, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        open_genome(fasta, tmp_path / "file")
    with pytest.raises(FastaError, match=r"none\.fa: cannot be read: No such file"):
        open_genome(tmp_path / "none.fa", tmp_path)


def test_a_corpus_draws_the_same_windows(fasta, tmp_path):
    manifest = tmp_path / "m.tsv"
    manifest.write_text(f"path\tweight\tname\tholdout\tvalidation\n{fasta.name}\t1\ta\t.\teven\n")
    drawn = []
    for cache in (None, tmp_path / "cache"):
        with Corpus(manifest, 20, cache=cache) as corpus:
            drawn.append([corpus.draw(sample_rng(0, step, 0)).tolist() for step in range(50)])
            (window, *_) = corpus.validation_windows(1)
            drawn[-1].append(corpus.fetch(window).tolist())
            drawn[-1].append(corpus.fingerprint())
    assert drawn[0] == drawn[1]


def test_the_default_folder_is_beside_the_manifest_or_under_tmpdir(tmp_path, monkeypatch):
    assert default_cache(tmp_path / "m.tsv") == tmp_path / ".lrgenome-cache"
    monkeypatch.setattr(os, "access", lambda *args: False)
    monkeypatch.setattr(encoded.tempfile, "gettempdir", lambda: "/scratch")
    assert str(default_cache(tmp_path / "m.tsv")) == "/scratch/lrgenome-cache"
