"""All families of readers."""

from pathlib import Path

from . import targets_binary, targets_command, targets_genome, targets_text
from .targets import Target

MAKERS = {
    "vcf": targets_text.variants,
    "bcf": targets_text.variants,
    "fasta": targets_genome.genomes,
    "fasta index": targets_genome.genomes,
    "bed": targets_text.intervals,
    "tables": targets_text.tables,
    "manifest": targets_text.manifests,
    "checkpoint": targets_binary.checkpoints,
    "published": targets_binary.checkpoints,
    "snapshot": targets_binary.checkpoints,
    "hdf5": targets_binary.embeddings,
    "journal": targets_binary.journals,
    "command": targets_command.commands,
}


def targets_of(family: str, shared: Path | None) -> list[Target]:
    """Make the readers of a family, with files of `shared` too where it is there."""
    return [target for target in MAKERS[family](shared) if target.family == family]
