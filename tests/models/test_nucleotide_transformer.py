"""Nucleotide Transformer v2: its size, its attention against `transformers` and dense loops, memory and gradients."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrgenome.config import PRESETS, NucleotideTransformerConfig
from lrgenome.errors import UsageError
from lrgenome.models.attention import attend, score_block
from lrgenome.models.nucleotide_transformer import NucleotideTransformer, build, published_parameters
from lrgenome.ops.rope import EXTENSIONS, frequencies, group_size, neighbours, places

CPU = torch.device("cpu")
SINGLE = NucleotideTransformerConfig(
    layers=2, width=16, heads=2, mlp_width=12, kmers=False, vocab=16, max_tokens=40
)


def assert_close(got, want, tolerance, what=""):
    """Compare within `tolerance` of the largest value wanted."""
    assert got.shape == want.shape, what
    error, largest = (got.double() - want.double()).abs().max().item(), want.double().abs().max().item()
    assert error <= tolerance * largest, f"{what}: largest error {error:.3g} of {largest:.3g}"


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def scrambled(config, seed=0):
    """A model none of whose weights is 0 or 1, in float64."""
    model = build(config, seed=seed).for_inference(torch.float64)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) * 0.3)
    return model


def tokens_of(*shape, seed=0, vocab=16):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "config",
    [
        SINGLE,
        NucleotideTransformerConfig(layers=3, width=12, heads=3, mlp_width=7),
        NucleotideTransformerConfig(layers=1, width=12, heads=1, mlp_width=7, tied=True, vocab=4200),
        PRESETS["nt-v2-50m"],
    ],
)
def test_the_model_has_as_many_weights_as_its_settings_say(config):
    with torch.device("meta"):
        model = NucleotideTransformer(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters
    assert ("decoder_weight" in dict(model.named_parameters())) != config.tied


def test_published_parameters_are_counted_as_published():
    assert published_parameters(PRESETS["nt-v2-50m"]) == 55_904_972


def esm(config, **options):
    """An `EsmModel` of the same shape with our attention's weights, and MLPs that do nothing."""
    transformers = pytest.importorskip("transformers")
    model = build(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "down" in name:
                parameter.zero_()
    theirs = transformers.EsmModel(
        transformers.EsmConfig(
            vocab_size=config.vocab, hidden_size=config.width, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, intermediate_size=8, position_embedding_type="rotary", pad_token_id=1,
            mask_token_id=2, token_dropout=False, emb_layer_norm_before=False, layer_norm_eps=config.norm_eps,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=64, **options,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    with torch.no_grad():
        theirs.embeddings.word_embeddings.weight.copy_(model.embedding)
        for mine, layer in zip(model.blocks, theirs.encoder.layer, strict=True):
            heads = layer.attention.self
            for index, part in enumerate((heads.query, heads.key, heads.value)):
                part.weight.copy_(mine.qkv_weight.chunk(3)[index])
                part.bias.copy_(mine.qkv_bias.chunk(3)[index])
            layer.attention.output.dense.weight.copy_(mine.out_weight)
            layer.attention.output.dense.bias.copy_(mine.out_bias)
            copy_norm(layer.attention.LayerNorm, mine.attention_norm)
            layer.output.dense.weight.zero_()
            layer.output.dense.bias.zero_()
        copy_norm(theirs.encoder.emb_layer_norm_after, model.final_norm)
    return model.for_inference(torch.float32), theirs


def copy_norm(theirs, ours):
    theirs.weight.copy_(ours.scale)
    theirs.bias.copy_(ours.shift)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("block", [5, 64])
def test_attention_is_that_of_transformers(implementation, block):
    config = NucleotideTransformerConfig(layers=2, width=32, heads=4, mlp_width=8, kmers=False, vocab=20)
    model, theirs = esm(config, attn_implementation=implementation)
    tokens = tokens_of(3, 37, vocab=20)
    lengths = [37, 20, 1]
    mask = (torch.arange(37) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        for keep, sizes in ((None, None), (mask, lengths)):
            expected = theirs(input_ids=tokens, attention_mask=keep).last_hidden_state
            got = model.encode(tokens, sizes, block=block)
            for row, length in enumerate(lengths if sizes else [37] * 3):
                assert_close(got[row, :length], expected[row, :length], 1e-5)
        # One layer's attention alone.
        x = draw(2, 37, 32, seed=9, dtype=torch.float32)
        where = places([37, 37], 37, width=8, trained=2048, extension="none", device=CPU, dtype=torch.float32)
        position = theirs.rotary_embeddings(x, torch.arange(37)[None])
        expected = theirs.encoder.layer[0].attention(x, position_embeddings=position)
        assert_close(model.blocks[0](x, where, block=block, rows=64), expected, 1e-5)


def dense_attention(q, k, v, extension, trained, length):
    """Attention with the distance of each pair written out, one (n, n) matrix a head."""
    w = q.shape[-1]
    turns, factor = frequencies(w, extension, length, trained)
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    distance = i - j
    if extension == "self-extend":
        near, size = neighbours(trained), group_size(length, trained)
        far = (i // size - j // size).abs() + near - near // size
        distance = torch.where(distance.abs() <= near, distance, distance.sign() * far)
        assert distance.abs().max() < trained or length <= trained
    angle = distance[..., None] * turns
    q, k = (torch.complex(*x[..., :length, :].chunk(2, -1)) for x in (q, k))
    scores = torch.einsum("bhic,bhjc,ijc->bhij", q, k.conj(), torch.polar(torch.ones_like(angle), angle)).real
    weights = (scores * factor**2 / math.sqrt(w)).softmax(-1)
    return (weights @ v[..., :length, :]).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_attention_is_what_distances_say(extension, block):
    q, k, v = draw(3, 3, 2, 50, 8)
    lengths, trained = [50, 13, 31], 16
    where = places(lengths, 50, width=8, trained=trained, extension=extension, device=CPU, dtype=torch.float64)
    got = attend(q, k, v, where, block=block)
    assert got.shape == (3, 50, 16) and got.isfinite().all()
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        assert_close(got[one, :length], dense_attention(q[one], k[one], v[one], extension, trained, length), 1e-12)


def test_extensions_differ_beyond_the_trained_length_only():
    model = scrambled(SINGLE)
    short, long = tokens_of(1, 40), tokens_of(1, 41)
    outputs = [[model.encode(tokens, extension=name) for name in EXTENSIONS] for tokens in (short, long)]
    for a, other in enumerate(outputs[0][1:], 1):
        assert_close(other, outputs[0][0], 1e-13, EXTENSIONS[a])
    for a in range(len(EXTENSIONS)):
        for b in range(a):
            if {EXTENSIONS[a], EXTENSIONS[b]} == {"none", "plain"}:
                continue
            assert (outputs[1][a] - outputs[1][b]).abs().max() > 1e-5, (EXTENSIONS[a], EXTENSIONS[b])


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("grad", [True, False])
def test_blocks_and_rows_are_matters_of_speed(extension, grad):
    model, tokens, lengths = scrambled(SINGLE), tokens_of(3, 61), [61, 9, 44]
    with torch.set_grad_enabled(grad):
        whole = model.encode(tokens, lengths, extension=extension)
        for block, rows in ((1, 1), (7, 13), (60, 182), (61, 183)):
            parts = model.encode(tokens, lengths, extension=extension, block=block, rows=rows)
            for row, length in enumerate(lengths):
                assert_close(parts[row, :length], whole[row, :length], 1e-13)
                alone = model.encode(tokens[row : row + 1, :length], extension=extension, block=block, rows=rows)
                assert_close(parts[row, :length], alone[0], 1e-13)


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_no_matrix_of_all_pairs_is_made(extension):
    """Scores of a block of queries at most, and those only where a scheme cannot do without."""
    config = NucleotideTransformerConfig(
        layers=1, width=8, heads=2, mlp_width=8, kmers=False, vocab=16, max_tokens=500
    )
    model, n, block = build(config, seed=0).for_inference(torch.float32), 3_000, 100
    with Largest() as seen:
        model.encode(tokens_of(1, n), extension=extension, block=block)
    assert seen.numel <= (2 * block * n if extension == "self-extend" else 6 * n * 8)


def test_scores_are_bounded_at_any_length():
    assert score_block(1, 16, 2_000, 1_024) == 1_024
    for n in (20_000, 200_000, 10**9):
        assert score_block(1, 16, n, 1_024) * 16 * n <= max(1 << 26, 16 * n)


@pytest.mark.parametrize("extension", ["none", "yarn", "self-extend"])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_every_weight_and_are_right(extension, tied):
    config = NucleotideTransformerConfig(
        layers=2, width=8, heads=2, mlp_width=6, kmers=False, vocab=16, max_tokens=12, tied=tied
    )
    model = scrambled(config).requires_grad_(True)
    tokens, weight = tokens_of(2, 20), draw(2, 20, 16)

    def loss(**sizes):
        return (model.head(model.encode(tokens, [20, 15], extension=extension, **sizes))[:, :15] * weight[:, :15]).sum()

    names, leaves = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(), leaves)
    for name, ours, other in zip(names, gradients, torch.autograd.grad(loss(block=3, rows=7), leaves), strict=True):
        assert ours.abs().max() > 0.0, name
        assert_close(other, ours, 1e-10, name)
    direction = [draw(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
    step = 1e-6
    with torch.no_grad():
        sides = []
        for sign in (1.0, -1.0):
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.add_(d, alpha=sign * step)
            sides.append(loss().item())
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.sub_(d, alpha=sign * step)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6)


def test_inner_layers_are_raw_and_the_last_is_normed():
    model = scrambled(SINGLE)
    tokens = tokens_of(2, 12)
    first, last = model.encode(tokens, layers=1), model.encode(tokens, layers=2)
    assert torch.equal(last, model.encode(tokens))
    where = places([12, 12], 12, width=8, trained=40, extension="none", device=CPU, dtype=torch.float64)
    second = model.blocks[1](first, where, block=64, rows=64)
    assert_close(last, model.final_norm(second, torch.float64), 1e-14)
    for bad in (0, 3):
        with pytest.raises(UsageError, match=f"--layer: got {bad}, expected 1 to 2"):
            model.encode(tokens, layers=bad)
    assert model.encode(tokens[:, :0]).shape == (2, 0, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inference_freezes_and_keeps_norms_and_head_wide(dtype):
    model = scrambled(SINGLE).for_inference(torch.float64)
    tokens = tokens_of(2, 30)
    with torch.no_grad():
        states = model.encode(tokens)
        logits = model.head(states)
    other = build(SINGLE, seed=0)
    other.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    other.for_inference(dtype)
    assert not any(p.requires_grad for p in other.parameters()) and not other.training
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    block = other.blocks[0]
    assert block.qkv_weight.dtype == block.up_weight.dtype == block.out_bias.dtype == dtype
    kept = block.mlp_norm.scale, other.final_norm.shift, other.embedding, other.head_weight, other.decoder_bias
    assert {tensor.dtype for tensor in kept} == {wide}
    got = other.encode(tokens)
    assert got.dtype == dtype and other.head(got).dtype == wide
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert_close(got.double(), states, tolerance)
    assert_close(other.head(got).double(), logits, tolerance)


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, two, other = build(SINGLE, seed=1), build(SINGLE, seed=1), build(SINGLE, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.embedding, other.embedding)
    assert not torch.equal(build(SINGLE).embedding, build(SINGLE).embedding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads: got 3, expected a divisor of width 16"),
        ({"heads": 16}, "heads: got 16, expected a divisor of width 16 that leaves heads of an even width"),
        ({"vocab": 11}, "vocab: got 11, expected at least 12"),
        ({"kmers": True}, "vocab: got 16, expected at least 4107"),
        ({"norm_eps": 0.0}, r"norm_eps: got 0\.0, expected a number above 0"),
        ({"norm_eps": True}, "norm_eps: got True, expected a number above 0"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=f"model setting {message}"):
        NucleotideTransformerConfig(**(SINGLE.to_json() | change))
