"""Models that multiply powers of a Markov chain's probabilities, with exponents fitted to validation."""

from abc import abstractmethod
from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from baselines.base import Baseline
from baselines.counting import flanks, is_base, last, offset, reverse_complement
from baselines.losses import FloatArray, mean_loss
from baselines.table_models import InterpolatedMarkov
from lrgenome import dna
from lrgenome.dna import IdArray

TUNING_POSITIONS = 300_000
"""Validation positions, drawn at random, that log-linear weights are fitted to."""


@numba.njit(cache=True)
def _softmax_moments(scores, target, weights):
    """Mean loss of softmax(scores @ weights), its gradient and its Hessian; scores are (n, 4, f)."""
    n, _, f = scores.shape
    loss, gradient, hessian = 0.0, np.zeros(f), np.zeros((f, f))
    p, mean = np.zeros(4), np.zeros(f)
    for i in range(n):
        for x in range(4):
            p[x] = 0.0
            for j in range(f):
                p[x] += weights[j] * scores[i, x, j]
        p[:] = np.exp(p - p.max())
        p /= p.sum()
        loss -= np.log(p[target[i]])
        for j in range(f):
            mean[j] = 0.0
            for x in range(4):
                mean[j] += p[x] * scores[i, x, j]
            gradient[j] += mean[j] - scores[i, target[i], j]
        for j in range(f):
            for m in range(j + 1):
                second = 0.0
                for x in range(4):
                    second += p[x] * scores[i, x, j] * scores[i, x, m]
                hessian[j, m] += second - mean[j] * mean[m]
    for j in range(f):
        for m in range(j):
            hessian[m, j] = hessian[j, m]
    return loss / n, gradient / n, hessian / n


def fit_log_linear(scores: FloatArray, target: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Fit w in p(x) ∝ exp(sum_f w_f scores[x, f]) by Newton's method (the loss is convex).

    Parameters
    ----------
    scores : (n, 4, f) float32
        Log probabilities of each base under each of f models.
    target : (n,) int64
        The bases, 0 to 3.

    Returns
    -------
    (f,) float64
        Weights.
    """
    weights = np.zeros(scores.shape[2])
    loss, gradient, hessian = _softmax_moments(scores, target, weights)
    for _ in range(30):
        # The ridge matters only where a feature says nothing, as at order 0.
        step = np.linalg.solve(hessian + 1e-6 * np.eye(len(weights)), gradient)
        if gradient @ step < 1e-8:
            break
        size = 1.0
        while size > 1e-3:
            trial = _softmax_moments(scores, target, weights - size * step)
            if trial[0] < loss:
                break
            size /= 2
        else:
            break
        weights = weights - size * step
        loss, gradient, hessian = trial
    return weights


def _tuning_positions(ids: IdArray) -> npt.NDArray[np.int64]:
    """Up to `TUNING_POSITIONS` positions of ``ids`` that hold a base, drawn at random from a fixed seed."""
    known = np.flatnonzero(is_base(ids))
    if len(known) <= TUNING_POSITIONS:
        return known
    return np.sort(np.random.default_rng(0).choice(known, TUNING_POSITIONS, replace=False))


class LogLinearModel(Baseline):
    """p ∝ exp(scores @ weights), scores being log probabilities of a chain; weights are fitted at each order.

    Parameters
    ----------
    chain
        An `InterpolatedMarkov` of both strands, to share one that is fitted or tuned. Defaults to a new one.
    """

    log_p: FloatArray
    """Log probability of the last base of each k-mer, as `InterpolatedMarkov.flat`."""

    def __init__(self, chain: InterpolatedMarkov | None = None):
        self.chain = chain or InterpolatedMarkov()
        if self.chain.strands != 2:
            raise ValueError(f"got a chain of {self.chain.strands} strand, expected one of 2")

    def fit(self, sequences: Sequence[IdArray]) -> Self:
        self.chain.fit(sequences)
        return self

    def tune(self, validation: IdArray) -> Self:
        if not self.chain.orders:
            self.chain.tune(validation)
        self.log_p = np.log(self.chain.flat)
        at = _tuning_positions(validation)
        target = validation[at].astype(np.int64) - dna.FIRST_BASE
        fitted = []
        self.orders = []
        for order in range(len(self.chain.orders)):
            self.order = order
            self.weights = fit_log_linear(self.scores(validation, at), target)
            fitted.append(self.weights)
            self.orders.append(mean_loss(self.losses(validation)))
        self.order = int(np.argmin(self.orders))
        self.weights = fitted[self.order]
        return self

    @abstractmethod
    def scores(self, ids: IdArray, at: npt.NDArray[np.int64]) -> FloatArray:
        """Scores of each base at the positions ``at``, from `order` bases either side, (n, 4, f) float32."""


@numba.njit(cache=True)
def _combine(forward, backward, alone, beta, alpha, out):
    for i in range(len(forward)):
        total = 0.0
        for x in range(4):
            out[i, x] = (forward[i, x] * backward[i, x]) ** beta * alone[x] ** -alpha
            total += out[i, x]
        for x in range(4):
            out[i, x] /= total


class TwoSidedMarkov(LogLinearModel):
    """p ∝ (p(x_i | k bases left) p(x_i | k bases right))^beta / p(x_i)^alpha; weights are beta and alpha.

    The backward chain is the forward one on the reverse strand, so counts are those of both strands. The
    model sees the true bases on either side.
    """

    def scores(self, ids: IdArray, at: npt.NDArray[np.int64]) -> FloatArray:
        forward, backward = self._directions(ids)
        both = np.log(forward[at]) + np.log(backward[at])
        alone = self.log_p[offset(1) : offset(2)]
        return np.stack([both, np.broadcast_to(-alone, both.shape)], axis=2)

    def _directions(self, ids: IdArray) -> tuple[FloatArray, FloatArray]:
        """p(x_i | left) and p(x_i | right), the latter read off the reverse strand; (t, 4) each."""
        backward = self.chain.probabilities(dna.reverse_complement(ids), self.order)[::-1, ::-1]
        return self.chain.probabilities(ids, self.order), backward

    def probabilities(self, ids: IdArray) -> FloatArray:
        out = np.empty((len(ids), 4), dtype=np.float32)
        beta, alpha = self.weights
        _combine(*self._directions(ids), self.chain.flat[offset(1) : offset(2)], beta, alpha, out)
        return out


@numba.njit(cache=True)
def _window_scores(n_left, left, n_right, right, log_p, order, complement, out, first):
    """Write, for x in ACGT, ln p(base j to the right | the bases before it, x at the centre), j = 0 .. order.

    ``out[x, first + j]`` is 0 for every x where an N lies between the centre and j, or at j.
    """
    out[:, first : first + order + 1] = 0.0
    whole = (left << (2 * (n_right + 1))) | right
    for j in range(min(order, n_right) + 1):
        k = j + min(n_left, order - j)
        start = offset(k + 1) + last(whole >> (2 * (n_right - j)), k + 1)
        for x in range(4):
            centre = np.int64(3 - x) if complement else np.int64(x)
            out[x, first + j] = log_p[start + (centre << (2 * j))]


@numba.njit(cache=True)
def _position_scores(ids, i, log_p, order, out):
    """Scores of the windows over position i, (4, 2 (order + 1)): forward strand, then reverse strand."""
    n_left, left, n_right, right = flanks(ids, i, order)
    _window_scores(n_left, left, n_right, right, log_p, order, False, out, 0)
    left, right = reverse_complement(right, n_right), reverse_complement(left, n_left)
    _window_scores(n_right, left, n_left, right, log_p, order, True, out, order + 1)


@numba.njit(cache=True)
def _field_scores(ids, positions, log_p, order, out):
    for n in range(len(positions)):
        _position_scores(ids, positions[n], log_p, order, out[n])


@numba.njit(cache=True)
def _field_probabilities(ids, log_p, order, weights, out):
    scores, p = np.empty((4, 2 * (order + 1)), dtype=np.float32), np.empty(4)
    for i in range(len(ids)):
        _position_scores(ids, i, log_p, order, scores)
        for x in range(4):
            p[x] = 0.0
            for j in range(len(weights)):
                p[x] += weights[j] * scores[x, j]
        p[:] = np.exp(p - p.max())
        p /= p.sum()
        for x in range(4):
            out[i, x] = p[x]


class MarkovField(LogLinearModel):
    """p ∝ product over the windows that cover the base of p(last base | window so far)^weight, both strands.

    A chain's exact answer to "which base is masked here?" is Bayes' rule: p(x | left) times the probability
    of each of the next k bases given a context that holds x. That is this model with weights 1 on one strand.
    There are 2 (k + 1) weights, one for each offset of the base in the window and strand. The model sees the
    true bases on either side.
    """

    def scores(self, ids: IdArray, at: npt.NDArray[np.int64]) -> FloatArray:
        out = np.empty((len(at), 4, 2 * (self.order + 1)), dtype=np.float32)
        _field_scores(ids, at, self.log_p, self.order, out)
        return out

    def probabilities(self, ids: IdArray) -> FloatArray:
        out = np.empty((len(ids), 4), dtype=np.float32)
        _field_probabilities(ids, self.log_p, self.order, self.weights, out)
        return out
