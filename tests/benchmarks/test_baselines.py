"""Count-based baselines against sequences whose probabilities can be worked out by hand."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import baselines
import numpy as np
import pysam
import pytest

from lrgenome import dna

ALL_MODELS = [
    lambda: baselines.InterpolatedMarkov(5),
    lambda: baselines.TwoSidedKmer(2),
    lambda: baselines.TwoSidedMarkov(baselines.InterpolatedMarkov(4)),
    lambda: baselines.MarkovField(baselines.InterpolatedMarkov(4)),
]
MODEL_NAMES = baselines.MODELS
TWO_SIDED = ALL_MODELS[1:]


def bases(rng, n):
    """Return n independent uniform bases as ids."""
    return rng.integers(dna.FIRST_BASE, dna.FIRST_BASE + 4, size=n).astype(np.uint8)


def with_n(rng, n):
    ids = bases(rng, n)
    ids[rng.random(n) < 0.05] = dna.N
    return ids


def markov_chain(rng, transition, n):
    """Draw n ids from transition[previous bases..., next base]."""
    order = transition.ndim - 1
    cumulative = transition.cumsum(axis=-1).reshape(-1, 4)
    draws = rng.random(n)
    out = np.zeros(n, dtype=np.uint8)
    state = 0
    for i in range(n):
        base = min(int(np.searchsorted(cumulative[state], draws[i])), 3)
        out[i] = base
        state = (state * 4 + base) % 4**order
    return out + np.uint8(dna.FIRST_BASE)


def symmetric_chain():
    """Return p(next | previous), 0.7 for A<->C and G<->T: even in the long run, the same on both strands."""
    transition = np.full((4, 4), 0.1)
    for previous in range(4):
        transition[previous, previous ^ 1] = 0.7
    return transition


def kmers(sequence, k):
    return [sequence[i : i + k] for i in range(len(sequence) - k + 1) if "N" not in sequence[i : i + k]]


# Counts


@pytest.mark.parametrize("strands", [1, 2])
def test_counts_are_those_of_every_clean_kmer(strands):
    sequences = ["AACANGATTACA", "CC", "", "N", "ACGTACGTTGCAN"]
    counts = baselines.KmerCounts([dna.encode(s) for s in sequences], width=4, strands=strands)
    for k in range(1, 5):
        words = [word for sequence in sequences for word in kmers(sequence, k)]
        if strands == 2:
            words += [dna.decode(dna.reverse_complement(dna.encode(word))) for word in words]
        expected = np.zeros(4**k, dtype=int)
        for word in words:
            expected[sum("ACGT".index(base) * 4**j for j, base in enumerate(reversed(word)))] += 1
        np.testing.assert_array_equal(counts.table(k), expected)


def test_both_strands_leave_the_counts_of_one_as_they_were():
    sequences = [dna.encode("AACANGATTACA")]
    one, two = (baselines.KmerCounts(sequences, width=3, strands=strands) for strands in (1, 2))
    before = one.flat.copy()
    np.testing.assert_array_equal(one.both_strands().flat, two.flat)
    assert (one.strands, one.both_strands().strands) == (1, 2)
    np.testing.assert_array_equal(one.flat, before)


def test_counts_refuse_what_they_do_not_have():
    counts = baselines.KmerCounts([dna.encode("ACGT")], width=2)
    with pytest.raises(ValueError, match="got k=3, expected 1 to 2"):
        counts.table(3)
    with pytest.raises(ValueError, match="got counts of both strands"):
        counts.both_strands()
    with pytest.raises(ValueError, match="got strands=3"):
        baselines.KmerCounts([], width=2, strands=3)
    with pytest.raises(ValueError, match="expected at least 4-mers on 2"):
        baselines.InterpolatedMarkov(3).fit_counts(counts)
    with pytest.raises(ValueError, match="expected at least 3-mers on 2"):
        baselines.TwoSidedKmer(1).fit_counts(counts)
    for model in (baselines.TwoSidedMarkov, baselines.MarkovField):
        with pytest.raises(ValueError, match="got a chain of 1 strand"):
            model(baselines.InterpolatedMarkov(3, strands=1))


# Smoothing


def test_smoothing_by_hand():
    # A is 3 in 4 of AAAC and 1 in 4 a priori: p(A) = 1/4 + w/2. C is 1 in 4 in both, whatever the weight w.
    # AACC is likeliest, with the prior on w, where 1/(1/4 + w/2) + 1/(2w) = 1/(2(1 - w)).
    counts = baselines.KmerCounts([dna.encode("AAAC")], width=1, strands=1)
    prior = np.array([0.25, 0.25, 0.25, 0.25], dtype=np.float32)
    loss = baselines.smooth_level(counts, prior, 0, 0, dna.encode("AACC"))
    weight = 1 - prior[2] / 0.25
    np.testing.assert_allclose(prior, weight * np.array([0.75, 0.25, 0, 0]) + (1 - weight) * 0.25, rtol=1e-5)
    assert loss == pytest.approx(-(math.log(prior[0]) + math.log(prior[1])) / 2, rel=1e-5)
    assert 1 / (0.25 + weight / 2) + 0.5 / weight == pytest.approx(0.5 / (1 - weight), rel=1e-2)


def test_an_unseen_context_keeps_the_lower_order():
    counts = baselines.KmerCounts([dna.encode("AAAA")], width=2, strands=1)
    prior = np.tile(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32), 4)
    baselines.smooth_level(counts, prior, 1, 0, dna.encode("ACGTACGT"))
    np.testing.assert_array_equal(prior[4:], np.tile(np.float32([0.4, 0.3, 0.2, 0.1]), 3))
    assert prior[0] > 0.4


# Known sources


def test_a_periodic_sequence_is_certain_once_one_base_is_known():
    sequence = dna.encode("AC" * 2000)
    model = baselines.InterpolatedMarkov(2, strands=1).fit([sequence]).tune(sequence)
    assert model.orders[0] == pytest.approx(math.log(2), abs=1e-3)
    assert model.orders[1] < 0.01
    assert model.losses(sequence)[1:].max() < 0.01


def test_an_order_2_chain_costs_its_entropy_rate():
    rng = np.random.default_rng(1)
    transition = rng.dirichlet(np.full(4, 0.5), size=(4, 4))
    train, validation, test = (markov_chain(rng, transition, n) for n in (200_000, 30_000, 30_000))
    model = baselines.InterpolatedMarkov(5, strands=1).fit([train]).tune(validation)
    pairs = (test[:-2].astype(int) - dna.FIRST_BASE, test[1:-1].astype(int) - dna.FIRST_BASE)
    truth = -np.log(transition[pairs[0], pairs[1], test[2:] - dna.FIRST_BASE])
    losses = model.losses(test)[2:]
    assert losses.mean() == pytest.approx(truth.mean(), abs=0.005)
    # And the source's own entropy rate, from the stationary distribution of its 16 states.
    states = np.zeros((16, 16))
    for state in range(16):
        for base in range(4):
            states[state, state * 4 % 16 + base] = transition[state // 4, state % 4, base]
    stationary = np.linalg.matrix_power(states, 1000)[0]
    entropy = -(stationary[:, None] * transition.reshape(16, 4) * np.log(transition.reshape(16, 4))).sum()
    assert losses.mean() == pytest.approx(entropy, abs=0.03)
    assert model.orders[1] > entropy + 0.05


@pytest.mark.parametrize("make", TWO_SIDED, ids=MODEL_NAMES[1:])
def test_two_sided_models_reach_the_entropy_of_a_chain_given_both_neighbours(make):
    rng = np.random.default_rng(2)
    transition = symmetric_chain()
    train, validation, test = (markov_chain(rng, transition, n) for n in (150_000, 20_000, 20_000))
    model = make().fit([train]).tune(validation)
    # p(left, x, right) = 1/4 P[left, x] P[x, right]
    joint = 0.25 * transition[:, :, None] * transition[None]
    conditional = joint / joint.sum(axis=1, keepdims=True)
    entropy = -(joint * np.log(conditional)).sum()
    assert model.losses(test).mean() == pytest.approx(entropy, abs=0.015)
    left, right = test[:-2] - dna.FIRST_BASE, test[2:] - dna.FIRST_BASE
    error = np.abs(model.probabilities(test)[1:-1] - conditional[left, :, right])
    assert error.mean() < 0.01
    assert np.quantile(error, 0.99) < 0.1


def test_a_centre_fixed_by_both_neighbours_is_found_by_the_two_sided_kmer_only():
    # Triplets between Ns whose centre is the exclusive or of its neighbours (A C G T = 0 1 2 3).
    rng = np.random.default_rng(3)

    def triplets(n):
        ids = np.full((n, 4), dna.N, dtype=np.uint8)
        ids[:, 0], ids[:, 2] = bases(rng, n), bases(rng, n)
        ids[:, 1] = ((ids[:, 0] - dna.FIRST_BASE) ^ (ids[:, 2] - dna.FIRST_BASE)) + dna.FIRST_BASE
        return ids.ravel()

    train, validation, test = triplets(20_000), triplets(5_000), triplets(5_000)
    one = baselines.TwoSidedKmer(1, strands=1).fit([train]).tune(validation).losses(test)
    assert one[1::4].mean() < 0.02
    # The other strand's triplets give the complementary centre: a fair coin between the two.
    two = baselines.TwoSidedKmer(1, strands=2).fit([train]).tune(validation).losses(test)
    assert two[1::4].mean() == pytest.approx(math.log(2), abs=0.02)
    markov = baselines.InterpolatedMarkov(2).fit([train]).tune(validation).losses(test)
    assert markov[1::4].mean() == pytest.approx(math.log(4), abs=0.02)
    assert np.isnan(one[3::4]).all()


# Laws that hold for every model


@pytest.mark.parametrize("make", ALL_MODELS, ids=MODEL_NAMES)
def test_probabilities_sum_to_one_and_losses_are_theirs(make):
    rng = np.random.default_rng(4)
    model = make().fit([bases(rng, 5_000), with_n(rng, 500)]).tune(with_n(rng, 2_000))
    ids = with_n(rng, 1_000)
    probabilities, losses = model.probabilities(ids), model.losses(ids)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert probabilities.min() > 0
    assert losses.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(losses), ids == dna.N)
    known = np.flatnonzero(ids != dna.N)
    expected = -np.log(probabilities[known, ids[known] - dna.FIRST_BASE])
    np.testing.assert_allclose(losses[known], expected, rtol=1e-6)


@pytest.mark.parametrize("make", ALL_MODELS, ids=MODEL_NAMES)
def test_the_base_itself_is_never_in_its_context(make):
    rng = np.random.default_rng(5)
    model = make().fit([bases(rng, 3_000)]).tune(bases(rng, 2_000))
    ids = with_n(rng, 200)
    probabilities = model.probabilities(ids)
    for i in range(len(ids)):
        for other in (dna.A, dna.C, dna.G, dna.T, dna.N):
            changed = ids.copy()
            changed[i] = other
            np.testing.assert_array_equal(model.probabilities(changed)[i], probabilities[i])


@pytest.mark.parametrize("make", ALL_MODELS, ids=MODEL_NAMES)
def test_an_n_is_as_the_end_of_the_sequence(make):
    rng = np.random.default_rng(6)
    model = make().fit([bases(rng, 3_000)]).tune(bases(rng, 2_000))
    left, right = bases(rng, 50), bases(rng, 50)
    whole = model.losses(np.concatenate([left, np.uint8([dna.N]), right]))
    np.testing.assert_array_equal(whole, np.concatenate([model.losses(left), [np.nan], model.losses(right)]))


def test_the_field_with_weights_of_one_is_bayes_rule():
    rng = np.random.default_rng(7)
    chain = baselines.InterpolatedMarkov(2).fit([markov_chain(rng, symmetric_chain(), 5_000)])
    field = baselines.MarkovField(chain.tune(bases(rng, 2_000)))
    field.log_p, field.order, field.weights = np.log(chain.flat), 2, np.repeat([1.0, 0.0], 3)
    chain.order = 2
    ids = bases(rng, 12)
    for i in range(len(ids)):
        likelihood = np.zeros(4)
        for x in range(4):
            changed = ids.copy()
            changed[i] = dna.FIRST_BASE + x
            likelihood[x] = -chain.losses(changed).sum(dtype=np.float64)
        expected = np.exp(likelihood - likelihood.max())
        np.testing.assert_allclose(field.probabilities(ids)[i], expected / expected.sum(), rtol=1e-4)
    field.weights = np.repeat([0.0, 1.0], 3)
    mirrored = field.probabilities(dna.reverse_complement(ids))[::-1, ::-1]
    field.weights = np.repeat([1.0, 0.0], 3)
    np.testing.assert_allclose(mirrored, field.probabilities(ids), rtol=1e-4)


def test_log_linear_weights_recover_those_that_made_the_data():
    rng = np.random.default_rng(8)
    scores = rng.normal(size=(50_000, 4, 3)).astype(np.float32)
    truth = np.array([1.0, -0.5, 0.25])
    p = np.exp(scores @ truth)
    p /= p.sum(axis=1, keepdims=True)
    target = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1).clip(max=3)
    np.testing.assert_allclose(baselines.fit_log_linear(scores, target), truth, atol=0.03)


# Measurement


def test_the_interval_is_that_of_blocks():
    losses = np.repeat(np.arange(200, dtype=np.float32), 10)
    losses[::7] = np.nan
    low, high = baselines.bootstrap_interval(losses, block=10)
    error = np.arange(200).std() / math.sqrt(200)
    mean = baselines.mean_loss(losses)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error + 0.5)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error + 0.5)
    constant = np.full(95, 1.5, dtype=np.float32)
    assert baselines.bootstrap_interval(constant, block=10) == (1.5, 1.5)


def toy_plan(folder):
    """Write two FASTA files with a repeated motif each; return their species."""
    rng = np.random.default_rng(9)
    species = []
    for name in ("one", "two"):
        motif = dna.decode(bases(rng, 40))
        contigs = {c: motif + dna.decode(bases(rng, 3_000)) + motif * 20 for c in ("a", "b", "c")}
        path = folder / f"{name}.fa"
        path.write_text("".join(f">{contig}\n{sequence}\n" for contig, sequence in contigs.items()))
        pysam.faidx(str(path))
        held_out = (baselines.Region("a", 0, 1_000), baselines.Region("b"))
        species.append(
            baselines.Species(
                name,
                path.name,
                (baselines.Source(path.name, held_out),),
                validation=baselines.Region("b"),
                test=baselines.Region("a", 0, 1_000),
            )
        )
    return species


def test_training_never_reads_what_is_held_out(tmp_path):
    species = toy_plan(tmp_path)[0]
    contigs = [dna.decode(ids) for ids in species.sources[0].read(tmp_path)]
    with pysam.FastaFile(str(tmp_path / "one.fa")) as fasta:
        assert contigs == [fasta.fetch("a", 1_000), fasta.fetch("c")]
        assert dna.decode(species.read(tmp_path, species.validation)) == fasta.fetch("b")
        assert dna.decode(species.read(tmp_path, species.test)) == fasta.fetch("a", 0, 1_000)


def test_the_real_plan_holds_out_validation_and_test():
    for species in baselines.SPECIES:
        for region in (species.validation, species.test):
            held_out = [r for source in species.sources for r in source.held_out if r.contig == region.contig]
            assert any(r.start <= region.start and (r.end is None or region.end <= r.end) for r in held_out)
    human = baselines.SPECIES[0]
    assert (human.test, human.validation) == (("20", 0, 10_000_000), ("20", 10_000_000, 12_000_000))


def test_a_run_is_whole_and_is_taken_up_where_it_ended(tmp_path):
    species = toy_plan(tmp_path)
    cache = tmp_path / "cache"

    def run(**settings):
        return baselines.Benchmark(
            tmp_path, cache, species, (), **{"max_order": 3, "flank": 1, **settings}
        ).run()

    rows = run()
    assert len(rows) == 2 * 4 * 2
    assert sum(row.quoted for row in rows) == 2 * 4
    for row in rows:
        assert row.test_low <= row.test <= row.test_high
        assert row.validation == pytest.approx(row.orders[row.order], abs=1e-9)
        assert row.training_bases == {"species": 6_680, "pooled": 13_360}[row.training]
        if row.quoted:
            losses = np.load(cache / f"{row.species}.{row.model}.npy")
            assert losses.shape == (1_000,)
            assert baselines.mean_loss(losses) == pytest.approx(row.test)
    assert len(baselines.table(rows).splitlines()) == 17
    json.dumps([asdict(row) for row in rows])

    lost = cache / "two.TwoSidedMarkov.pooled.json"
    kept = cache / "two.TwoSidedMarkov.species.json"
    before = lost.read_text(), kept.stat().st_mtime_ns
    lost.unlink()
    assert run() == rows
    assert (lost.read_text(), kept.stat().st_mtime_ns) == before
    assert run(max_order=2) != rows


def test_the_command_runs_from_anywhere_and_is_quiet_when_nobody_reads(tmp_path):
    command = [sys.executable, str(Path(baselines.__file__).parent), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--max-order" in done.stdout
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
