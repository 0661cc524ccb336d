"""lrgenome: state-space models of DNA that are practical at long range.

The Python API is `lrgenome.api`; its names are found here too, and loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from lrgenome.version import __version__

if TYPE_CHECKING:
    from lrgenome.api import (
        EmbeddingFile,
        Fasta,
        Model,
        OneHotModule,
        States,
        VariantScore,
        decode,
        encode,
        load,
        read_embeddings,
    )

__all__ = [
    "EmbeddingFile", "Fasta", "Model", "OneHotModule", "States", "VariantScore", "__version__", "decode", "encode",
    "load", "read_embeddings",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # The commands' --help must not wait for torch.
    if name in __all__:
        from lrgenome import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
