"""Count-based baselines that a masked language model of DNA must be compared with.

Sequences -> `KmerCounts` (every k-mer up to 13 bp, one flat table) -> smoothed tables -> `losses`, in nats at
each position. Four models read the same counts:

* `InterpolatedMarkov`: p(x_i | k bases to the left).
* `TwoSidedKmer`: p(x_i | l bases left, r bases right), the (l + 1 + r)-mer normalised over its centre.
* `TwoSidedMarkov`: p ∝ (p(x_i | left) p(x_i | right))^beta / p(x_i)^alpha.
* `MarkovField`: p ∝ the weighted product of the Markov probabilities of *every* window that covers the base,
  on both strands. Weights of one, on one strand, make it Bayes' rule for a Markov chain.

All four see the true, unmasked context, which a masked language model does not: an advantage for the
baselines. A context with an N shrinks to its longest clean part; only where the base itself is N is the loss
NaN. Counts come from training bases only, weights and orders from validation bases only.

``python tests/benchmarks/baselines --data DIR -o OUT.json [--cache DIR]`` prints the table. Entry i of
``CACHE/<species>.<model>.npy`` is the test loss at 0-based offset i of the species' test region.
"""

from baselines.base import Baseline
from baselines.counting import KmerCounts
from baselines.genomes import POOLED_ONLY, SPECIES, Region, Source, Species
from baselines.log_linear_models import MarkovField, TwoSidedMarkov, fit_log_linear
from baselines.losses import bootstrap_interval, mean_loss
from baselines.measuring import MODELS, Benchmark, Row, table
from baselines.smoothing import smooth_level
from baselines.table_models import FLANK, MAX_ORDER, InterpolatedMarkov, TwoSidedKmer

__all__ = [
    "FLANK",
    "MAX_ORDER",
    "MODELS",
    "POOLED_ONLY",
    "SPECIES",
    "Baseline",
    "Benchmark",
    "InterpolatedMarkov",
    "KmerCounts",
    "MarkovField",
    "Region",
    "Row",
    "Source",
    "Species",
    "TwoSidedKmer",
    "TwoSidedMarkov",
    "bootstrap_interval",
    "fit_log_linear",
    "mean_loss",
    "smooth_level",
    "table",
]
