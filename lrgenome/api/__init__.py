"""The Python API: the functions that the commands call, on Python's own values.

`load` -> `Model`, with `Model.embed`, `Model.score`, `Model.stream` and `Model.as_module`. Everything here is also in
``lrgenome`` itself, as ``lrgenome.load``; `docs/api.md` shows it at work.
"""

from lrgenome.api.model import Model, States, VariantScore, load
from lrgenome.api.module import OneHotModule
from lrgenome.dna import decode, encode
from lrgenome.io.fasta import Fasta
from lrgenome.io.hdf5 import EmbeddingFile, read_embeddings

__all__ = [
    "EmbeddingFile", "Fasta", "Model", "OneHotModule", "States", "VariantScore", "decode", "encode", "load",
    "read_embeddings",
]  # fmt: skip
