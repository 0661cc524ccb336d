"""Every model, fitted, tuned and measured on every species."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from baselines.base import Baseline
from baselines.counting import KmerCounts, is_base
from baselines.genomes import POOLED_ONLY, SPECIES, Source, Species
from baselines.log_linear_models import MarkovField, TwoSidedMarkov
from baselines.losses import FloatArray, bootstrap_interval, mean_loss
from baselines.table_models import FLANK, MAX_ORDER, InterpolatedMarkov, TwoSidedKmer
from lrgenome.dna import IdArray
from lrgenome.io.atomic import atomic_output

MODELS = ("InterpolatedMarkov", "TwoSidedKmer", "TwoSidedMarkov", "MarkovField")


@dataclass
class Row:
    """One model of one species, trained on the species alone or on the pool."""

    species: str
    model: str
    training: str
    """``species`` or ``pooled``."""
    strands: int
    order: int
    """Markov order, or flank in bp."""
    orders: list[float]
    """Validation loss, nats/bp, of each order or flank from 0 up."""
    validation: float
    """nats/bp"""
    test: float
    """nats/bp"""
    test_low: float
    test_high: float
    """95 % block-bootstrap interval of ``test``."""
    validation_bases: int
    test_bases: int
    training_bases: int
    other_strands: dict[str, float] = field(default_factory=dict)
    """Validation loss with the other number of strands counted, where both were tried."""
    weights: list[float] = field(default_factory=list)
    """Log-linear weights: beta and alpha, or one a window."""
    quoted: bool = False
    """Whether this training set is the better on validation."""


class Benchmark:
    """Fits, tunes and measures every model; each finished row is kept in ``cache`` and not made again.

    Each species is measured with counts of its own training bases and with pooled counts, where every species
    weighs as much as it has bases. Weights and orders are tuned on the validation region of the species that
    is measured, for pooled counts too. A row is made again if this package, the settings or the data changed.

    Parameters
    ----------
    folder
        Folder of the FASTA files.
    cache
        Folder for finished rows and test losses. Defaults to none.
    species, pooled_only
        What to train and measure on, and what the pooled training set adds.
    max_order, flank
        Highest Markov order and widest flank, bp.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path | None = None,
        species: Sequence[Species] = SPECIES,
        pooled_only: Sequence[Source] = POOLED_ONLY,
        max_order: int = MAX_ORDER,
        flank: int = FLANK,
    ):
        self.folder = folder
        self.cache = cache
        self.species = species
        self.pool = [source for one in species for source in one.sources] + list(pooled_only)
        self.max_order = max_order
        self.flank = flank
        sizes = [(folder / source.file).stat().st_size for source in self.pool]
        modules = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
        settings = json.dumps([repr(species), repr(pooled_only), max_order, flank, sizes, modules])
        self.key = hashlib.sha256(settings.encode()).hexdigest()
        if cache:
            cache.mkdir(parents=True, exist_ok=True)

    def run(self) -> list[Row]:
        """Make every row that is missing and mark the ones to quote."""
        rows = self._measure("pooled", self.pool, self.species)
        for species in self.species:
            rows += self._measure("species", species.sources, [species])
        for row in rows:
            rivals = [other for other in rows if (other.species, other.model) == (row.species, row.model)]
            row.quoted = row is min(rivals, key=lambda other: other.validation)
        names = [species.name for species in self.species]
        return sorted(rows, key=lambda r: (names.index(r.species), MODELS.index(r.model), not r.quoted))

    def _measure(self, training: str, sources: Sequence[Source], targets: Sequence[Species]) -> list[Row]:
        """Return the rows of one training set, those that are missing made anew."""
        rows = {(s.name, m): self._load(s.name, m, training) for s in targets for m in MODELS}
        if None in rows.values():
            sequences = [ids for source in sources for ids in source.read(self.folder)]
            bases = sum(int(np.count_nonzero(is_base(ids))) for ids in sequences)
            one_strand = KmerCounts(sequences, max(self.max_order, 2 * self.flank) + 1, strands=1)
            del sequences
            both_strands = one_strand.both_strands()
        for species in targets:
            missing = [m for m in MODELS if rows[species.name, m] is None]
            if not missing:
                continue
            validation, test = (species.read(self.folder, r) for r in (species.validation, species.test))
            chain = InterpolatedMarkov(self.max_order).fit_counts(both_strands).tune(validation)
            for name in missing:
                rivals = self._tuned(name, chain, one_strand, validation)
                model, *others = sorted(rivals, key=lambda rival: rival.validation_loss)
                losses = model.losses(test)
                low, high = bootstrap_interval(losses)
                row = Row(
                    species=species.name,
                    model=name,
                    training=training,
                    strands=model.strands,
                    order=model.order,
                    orders=model.orders,
                    validation=model.validation_loss,
                    test=mean_loss(losses),
                    test_low=low,
                    test_high=high,
                    validation_bases=int(np.count_nonzero(is_base(validation))),
                    test_bases=int(np.count_nonzero(is_base(test))),
                    training_bases=bases,
                    other_strands={str(other.strands): other.validation_loss for other in others},
                    weights=model.weights.tolist(),
                )
                rows[species.name, name] = row
                self._save(row, losses)
                print(f"{row.species} {row.model} {row.training}: {row.validation:.4f}", file=sys.stderr)
        return [row for row in rows.values() if row]

    def _tuned(
        self, name: str, chain: InterpolatedMarkov, one_strand: KmerCounts, validation: IdArray
    ) -> list[Baseline]:
        """Tune what competes for a row: one model of both strands; for Markov one of a single strand too."""
        if name == "InterpolatedMarkov":
            single = InterpolatedMarkov(self.max_order, strands=1).fit_counts(one_strand)
            return [chain, single.tune(validation)]
        if name == "TwoSidedKmer":
            return [TwoSidedKmer(self.flank).fit_counts(chain.counts).tune(validation)]
        if name == "TwoSidedMarkov":
            return [TwoSidedMarkov(chain).tune(validation)]
        return [MarkovField(chain).tune(validation)]

    def _load(self, species: str, model: str, training: str) -> Row | None:
        path = self.cache and self.cache / f"{species}.{model}.{training}.json"
        if path is None or not path.exists():
            return None
        saved = json.loads(path.read_text())
        return Row(**saved["row"]) if saved["key"] == self.key else None

    def _save(self, row: Row, losses: FloatArray) -> None:
        """Keep the row, and its losses if no finished row of that species and model is better."""
        if self.cache is None:
            return
        others = (self._load(row.species, row.model, training) for training in ("pooled", "species"))
        if all(other is None or row.validation < other.validation for other in others):
            with atomic_output(self.cache / f"{row.species}.{row.model}.npy", "wb") as out:
                np.save(out, losses)
        with atomic_output(self.cache / f"{row.species}.{row.model}.{row.training}.json") as out:
            json.dump({"key": self.key, "row": asdict(row)}, out, indent=1)


def table(rows: Sequence[Row]) -> str:
    """Write rows as text, a ``*`` at those to quote."""
    head = ("species", "model", "training", "order", "strands", "validation", "test", "95 %", "")
    lines = [head] + [
        (
            row.species,
            row.model,
            row.training,
            f"{row.order}+{row.order}" if row.model == "TwoSidedKmer" else str(row.order),
            str(row.strands),
            f"{row.validation:.4f}",
            f"{row.test:.4f}",
            f"{row.test_low:.4f}-{row.test_high:.4f}",
            "*" if row.quoted else "",
        )
        for row in rows
    ]
    widths = [max(len(line[j]) for line in lines) for j in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
