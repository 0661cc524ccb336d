"""The model as a torch module, alone and in the hands of tangermeme."""

import numpy as np
import pytest
import torch

import lrgenome as api
from lrgenome.api.module import one_hot_ids
from lrgenome.dna import encode
from lrgenome.errors import InputError


@pytest.fixture
def model(tiny_model):
    with api.load(tiny_model, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture
def sequences(toy_sequences):
    return [toy_sequences["chr1"][low : low + 60].upper() for low in (700, 1010, 2900)]


def one_hot(sequences):
    X = torch.zeros(len(sequences), 4, len(sequences[0]))
    for row, sequence in enumerate(sequences):
        for at, base in enumerate(sequence):
            if base in "ACGT":
                X[row, "ACGT".index(base), at] = 1
    return X


def test_outputs_are_those_of_the_sequences(model, sequences):
    X = one_hot(sequences)
    assert np.array_equal(one_hot_ids(X), np.stack([encode(sequence) for sequence in sequences]))
    means, sums = model.as_module()(X), model.as_module("log_likelihood")(X)
    assert means.shape == (3, model.width) and sums.shape == (3, 1)
    for row, sequence in enumerate(sequences):
        (states,) = model.stream(sequence, log_p=True)
        assert np.allclose(means[row], states.hidden.mean(0), atol=1e-5)
        own = states.log_p[np.arange(60), ["ACGT".index(base) for base in sequence]]
        assert float(sums[row]) == pytest.approx(own.sum(), rel=1e-5)


def test_both_strands_are_the_mean_and_do_not_change_when_turned(model, sequences):
    module = model.as_module("log_likelihood", strand="both")
    X = one_hot(sequences)
    turned = X.flip(1, 2)
    assert torch.allclose(module(X), module(turned), rtol=1e-5)
    assert not torch.allclose(model.as_module("log_likelihood")(X), model.as_module("log_likelihood")(turned))


def test_four_zeros_are_n(model, sequences):
    sequence = sequences[0][:20] + "NNNN" + sequences[0][24:]
    (states,) = model.stream(sequence)
    assert np.allclose(model.as_module()(one_hot([sequence]))[0], states.hidden.mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (torch.zeros(2, 5, 9), "expected (b, 4, t)"),
        (torch.zeros(4, 9), "expected (b, 4, t)"),
        (torch.full((1, 4, 3), 0.25), "sequence 0, position 0: got [0.25"),
        (torch.ones(1, 4, 3), "expected one 1 or none"),
        (torch.full((1, 4, 3), float("nan")), "expected one 1 or none"),
    ],
)
def test_what_is_not_one_hot(model, X, message):
    with pytest.raises(InputError) as caught:
        model.as_module()(X)
    assert message in str(caught.value)


def test_in_the_hands_of_tangermeme(model, sequences):
    pytest.importorskip("tangermeme")
    from tangermeme.ersatz import substitute
    from tangermeme.marginalize import marginalize
    from tangermeme.predict import predict
    from tangermeme.saturation_mutagenesis import saturation_mutagenesis

    X, module = one_hot(sequences), model.as_module("log_likelihood")
    assert torch.equal(predict(module, X, device="cpu", batch_size=2), module(X))
    result = marginalize(module, X, "TTACGTAA", device="cpu")
    assert torch.equal(result[0], module(X)) and torch.equal(result[1], module(substitute(X, "TTACGTAA")))
    before, after = saturation_mutagenesis(module, X[:1], start=28, end=31, raw_outputs=True, device="cpu")[:2]
    changed = X[:1].clone()
    base = int(changed[0, :, 29].argmax())
    changed[0, :, 29] = 0
    changed[0, (base + 1) % 4, 29] = 1
    assert torch.equal(before, module(X[:1]))
    assert torch.allclose(after[0, (base + 1) % 4, 1], module(changed)[0])
