"""Windows drawn from genomes: where they may lie, how often, on which strand."""

import math
from pathlib import Path

import numpy as np
import pytest

from lrgenome import dna
from lrgenome.errors import FastaError, ManifestError
from lrgenome.training.data import Corpus, Window, evenly, sample_rng

WINDOW = 50
HEADER = "path\tweight\tname\tholdout\tvalidation"


def write_fasta(path: Path, contigs: dict[str, str]) -> None:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))


def write_manifest(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def random_sequence(length: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


CONTIGS = {
    "1": random_sequence(3000, 1),
    "2": random_sequence(WINDOW + 20, 2),
    "3": random_sequence(WINDOW - 1, 3),
}


@pytest.fixture
def manifest(tmp_path):
    """One genome with holdout and validation in the midst of the first contig."""
    write_fasta(tmp_path / "a.fa", CONTIGS)
    return write_manifest(tmp_path / "m.tsv", "a.fa\t1\ta\t1:501-800;1:2001-2100\t1:801-1000;1:2901-3000")


class Places:
    """Finds where in a genome a window lies, by its first 16 bases, which occur once in either strand."""

    def __init__(self, contigs: dict[str, str]) -> None:
        self.of: dict[str, tuple[str, int, bool]] = {}
        for name, sequence in contigs.items():
            flipped = dna.decode(dna.reverse_complement(dna.encode(sequence)))
            for start in range(len(sequence) - 15):
                for text, reverse in ((sequence, False), (flipped, True)):
                    seed = text[start : start + 16]
                    assert seed not in self.of, "the toy genome repeats itself"
                    self.of[seed] = (name, start, reverse)
        self.contigs = contigs

    def find(self, ids: np.ndarray) -> tuple[str, int, bool]:
        """Return contig, 0-based start on the forward strand, and whether the reverse strand was read."""
        name, start, reverse = self.of[dna.decode(ids[:16])]
        if reverse:
            start = len(self.contigs[name]) - start - len(ids)
            ids = dna.reverse_complement(ids)
        assert dna.decode(ids) == self.contigs[name][start : start + len(ids)]
        return name, start, reverse


def within(count: float, of: int, share: float) -> bool:
    return abs(count - of * share) < 5 * math.sqrt(of * share * (1 - share))


def test_windows_keep_out_of_holdout_and_validation_and_cover_the_rest(manifest):
    places, draws = Places(CONTIGS), 20_000
    forbidden = [(500, 1000), (2000, 2100), (2900, 3000)]
    starts: dict[tuple[str, int], int] = {}
    flipped, rng = 0, np.random.default_rng(0)
    with Corpus(manifest, WINDOW) as corpus:
        for _ in range(draws):
            contig, start, reverse = places.find(corpus.draw(rng))
            if contig == "1":
                assert all(start + WINDOW <= low or high <= start for low, high in forbidden), start
            starts[contig, start] = starts.get((contig, start), 0) + 1
            flipped += reverse
    assert within(flipped, draws, 0.5)
    free = [(0, 500), (1000, 2000), (2100, 2900)]
    possible = {("1", s) for low, high in free for s in range(low, high - WINDOW + 1)} | {
        ("2", s) for s in range(21)
    }
    # Every start is possible and equally likely; the last contig is shorter than a window.
    assert set(starts) == possible
    counts = np.array(list(starts.values()))
    expected = draws / len(possible)
    spread = ((counts - expected) ** 2 / expected).sum()
    assert abs(spread - len(possible)) < 6 * math.sqrt(2 * len(possible))


def test_weights_of_genomes_are_respected_whatever_their_size(tmp_path):
    # Each genome is one repeated base, so that a window says where it comes from.
    write_fasta(tmp_path / "a.fa", {"1": "A" * 500})
    write_fasta(tmp_path / "c.fa", {"1": "C" * 5000})
    path = write_manifest(tmp_path / "m.tsv", "a.fa\t3\ta\t.\t.", "c.fa\t0.5\tc\t.\t.")
    draws, rng = 4000, np.random.default_rng(0)
    with Corpus(path, WINDOW) as corpus:
        assert corpus.names == ["a", "c"]
        seen = [set(corpus.draw(rng).tolist()) for _ in range(draws)]
    assert all(len(one) == 1 for one in seen)
    counts = {base: sum(one == {base} for one in seen) for base in (dna.A, dna.C, dna.G, dna.T)}
    assert within(counts[dna.A] + counts[dna.T], draws, 6 / 7)
    assert within(counts[dna.T], draws, 3 / 7) and within(counts[dna.G], draws, 0.5 / 7)


def test_windows_that_are_mostly_n_are_drawn_again(tmp_path):
    write_fasta(tmp_path / "a.fa", {"1": "N" * 1000 + "ACGTT" * 100 + "n" * 1000})
    path, rng = write_manifest(tmp_path / "m.tsv", "a.fa\t1\ta\t.\t."), np.random.default_rng(0)
    with Corpus(path, WINDOW) as corpus:
        shares = [float((corpus.draw(rng) == dna.N).mean()) for _ in range(1000)]
    assert max(shares) == 0.5 and min(shares) == 0.0 and 0 < np.mean(shares) < 0.1


def test_a_genome_of_n_is_an_error(tmp_path):
    write_fasta(tmp_path / "a.fa", {"1": "N" * 1000})
    with Corpus(write_manifest(tmp_path / "m.tsv", "a.fa\t1\ta\t.\t."), WINDOW) as corpus:
        with pytest.raises(ManifestError, match="windows in a row were mostly N"):
            corpus.draw(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("line", "window", "message"),
    [
        ("a.fa\t1\ta\t.\t.", 3001, "no training interval of a is as long as the window of 3001 bp"),
        ("a.fa\t1\ta\t1;2;3\t.", 10, "no training interval of a"),
        ("a.fa\t1\ta\t9:1-10\t.", 10, "9"),
        ("a.fa\t1\ta\t1:1-10\t1:10-20", 10, "validation and holdout overlap"),
        ("b.fa\t1\ta\t.\t.", 10, "no FASTA file"),
    ],
)
def test_manifests_that_cannot_be_trained_on(manifest, line, window, message):
    write_manifest(manifest, line)
    with pytest.raises(ManifestError) as caught:
        Corpus(manifest, window)
    assert message in str(caught.value)


def test_a_window_as_long_as_the_contig_has_one_place(tmp_path):
    write_fasta(tmp_path / "a.fa", {"1": CONTIGS["2"]})
    with Corpus(write_manifest(tmp_path / "m.tsv", "a.fa\t1\ta\t.\t."), len(CONTIGS["2"])) as corpus:
        drawn = {dna.decode(corpus.draw(np.random.default_rng(i))) for i in range(20)}
    assert drawn == {CONTIGS["2"], dna.decode(dna.reverse_complement(dna.encode(CONTIGS["2"])))}


def test_validation_windows_lie_in_validation_side_by_side(manifest):
    with Corpus(manifest, WINDOW) as corpus:
        every = [Window(0, "1", s, s + WINDOW) for s in (800, 850, 900, 950, 2900, 2950)]
        assert corpus.validation_windows(100) == every
        assert corpus.validation_windows(3) == [every[0], every[2], every[5]]
        assert corpus.validation_windows(1) == every[:1]
        assert dna.decode(corpus.fetch(every[4])) == CONTIGS["1"][2900:2950]
    with Corpus(manifest, 101) as corpus:
        assert corpus.validation_windows(100) == [Window(0, "1", 800, 901)]


def test_a_genome_without_validation_gives_none(manifest):
    write_manifest(manifest, "a.fa\t1\ta\t1:1-100\t")
    with Corpus(manifest, WINDOW) as corpus:
        assert corpus.validation_windows(5) == []


def test_fingerprint_follows_the_data_and_not_the_folder(tmp_path, manifest):
    def fingerprint(path):
        with Corpus(path, WINDOW) as corpus:
            return corpus.fingerprint()

    first = fingerprint(manifest)
    (tmp_path / "moved").mkdir()
    write_fasta(tmp_path / "moved" / "a.fa", CONTIGS)
    moved = tmp_path / "moved" / "other.tsv"
    moved.write_text(manifest.read_text())
    assert fingerprint(moved) == first
    for line in ("a.fa\t2\ta\t1:501-800;1:2001-2100\t1:801-1000;1:2901-3000",
                 "a.fa\t1\tb\t1:501-800;1:2001-2100\t1:801-1000;1:2901-3000",
                 "a.fa\t1\ta\t1:501-801;1:2001-2100\t1:901-1000;1:2901-3000",
                 "a.fa\t1\ta\t1:501-800;1:2001-2100\t1:801-1000;1:2901-2999"):  # fmt: skip
        assert fingerprint(write_manifest(moved, line)) != first
    write_fasta(tmp_path / "moved" / "a.fa", {**CONTIGS, "4": "ACGT"})
    moved.write_text(manifest.read_text())
    assert fingerprint(moved) != first


def test_the_files_are_closed(manifest):
    with Corpus(manifest, WINDOW) as corpus:
        window = Window(0, "1", 0, 10)
        assert dna.decode(corpus.fetch(window)) == CONTIGS["1"][:10]
        with pytest.raises(FastaError):
            corpus.fetch(Window(0, "1", 2990, 3001))
    with pytest.raises(ValueError, match="closed"):
        corpus.fetch(window)


@pytest.mark.parametrize(
    ("count", "wanted"), [(0, 5), (3, 5), (5, 5), (6, 5), (1000, 7), (1000, 999), (9, 1), (2, 1)]
)
def test_evenly(count, wanted):
    chosen = list(evenly(count, wanted))
    assert len(chosen) == len(set(chosen)) == min(count, wanted)
    assert chosen == sorted(chosen) and all(0 <= i < count for i in chosen)
    if 1 < wanted < count:
        gaps = np.diff(chosen)
        assert chosen[0] == 0 and chosen[-1] == count - 1 and gaps.max() - gaps.min() <= 1


def test_random_numbers_belong_to_seed_step_and_index_alone():
    def number(*key):
        return int(sample_rng(*key).integers(1 << 62))

    keys = [(seed, step, index) for seed in (0, 1) for step in (0, 1, (1 << 39) - 1) for index in (0, 1, 95)]
    assert [number(*key) for key in keys] == [number(*key) for key in keys]
    assert len({number(*key) for key in keys}) == len(keys)
    # Neighbours are no shifted copies of one another.
    assert (
        len({x for i in range(50) for x in sample_rng(0, 0, i).integers(1 << 62, size=50).tolist()}) == 2500
    )
