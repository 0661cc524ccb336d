"""Which bases of which genomes train, validate and test."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pysam

from lrgenome import dna
from lrgenome.dna import IdArray


class Region(NamedTuple):
    """A stretch of a contig, 0-based half-open; to the contig's end where ``end`` is None."""

    contig: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Source:
    """A FASTA file and the regions of it that training never sees, each from its contig's first base on."""

    file: str
    held_out: tuple[Region, ...] = ()

    def read(self, folder: Path) -> list[IdArray]:
        """Read the training bases, a contig each."""
        ends = {region.contig: region.end for region in self.held_out}
        assert all(region.start == 0 for region in self.held_out)
        with pysam.FastaFile(str(folder / self.file)) as fasta:
            return [
                dna.encode(fasta.fetch(contig, ends.get(contig, 0)))
                for contig in fasta.references
                if ends.get(contig, 0) is not None
            ]


@dataclass(frozen=True)
class Species:
    """Training sources, and the regions of ``file`` that validate and test."""

    name: str
    file: str
    sources: tuple[Source, ...]
    validation: Region
    test: Region

    def read(self, folder: Path, region: Region) -> IdArray:
        """Read a validation or test region."""
        with pysam.FastaFile(str(folder / self.file)) as fasta:
            return dna.encode(fasta.fetch(*region))


HUMAN = "homo_sapiens.GRCh37.chr20.fa.gz"
YEAST = "saccharomyces_cerevisiae.R64-1-1.fa.gz"
ARABIDOPSIS = "arabidopsis_thaliana.TAIR10.chr1.fa.gz"

SPECIES = (
    Species(
        "human",
        HUMAN,
        (Source(HUMAN, (Region("20", 0, 12_000_000),)), Source("homo_sapiens.GRCh37.loci.fa.gz")),
        validation=Region("20", 10_000_000, 12_000_000),
        test=Region("20", 0, 10_000_000),
    ),
    Species(
        "yeast",
        YEAST,
        (Source(YEAST, (Region("IV"), Region("VII"))),),
        validation=Region("VII"),
        test=Region("IV"),
    ),
    Species(
        "arabidopsis",
        ARABIDOPSIS,
        (Source(ARABIDOPSIS, (Region("1", 0, 4_000_000),)),),
        validation=Region("1", 3_000_000, 4_000_000),
        test=Region("1", 0, 3_000_000),
    ),
)

POOLED_ONLY = tuple(
    Source(file)
    for file in (
        "caenorhabditis_elegans.ce2.chrX.fa.gz",
        "plasmodium_falciparum.3D7.fa.gz",
        "dictyostelium_discoideum.fa.gz",
        "ustilago_maydis.fa.gz",
        "bacteria.fa.gz",
        "homo_sapiens.rCRS.fa.gz",
    )
)
