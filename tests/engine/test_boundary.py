"""Regions run from boundary states against whole windows."""

import numpy as np
import pytest
import torch
from sweep_reference import STRANDS, make, run, windows

from lrgenome import dna
from lrgenome.config import CaduceusConfig
from lrgenome.engine.boundary import Anchor, Passes, outside, reference_pass, run_region
from lrgenome.engine.boundary_states import Boundaries, boundary_bytes
from lrgenome.engine.sweep import stream
from lrgenome.errors import OutputError, UsageError
from lrgenome.models.caduceus import build
from lrgenome.ops import backend, jit

T = 400
AT = [0, 60, 100, 150, 210, 260, 340, T]
KINDS = ("hawk", "caduceus-ph", "caduceus-ps")


@pytest.fixture(autouse=True)
def one_thread():
    """Barriers between threads would cost more than these small sums."""
    before = torch.get_num_threads(), jit.numba.get_num_threads()
    jit.set_threads(1)
    yield
    torch.set_num_threads(before[0])
    jit.numba.set_num_threads(before[1])


def any_model(kind: str, dtype: torch.dtype = torch.float64, layers: int = 3):
    if kind == "hawk":
        return make(layers, dtype=dtype).requires_grad_(False)
    config = CaduceusConfig(layers=layers, width=12, equivariant=kind.endswith("ps"), state=4, dt_rank=2)
    model = build(config, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        model.embedding.mul_(3.0)
    if dtype == torch.float64:
        model.double()
    return model.set_compute_dtype(dtype).requires_grad_(False)


def region(model, ids, kept, lefts, rights, strand, *, echo=False, **options):
    """Run regions between boundaries given as numbers; with the echo, the second half of the rows has it."""
    passes = kept if isinstance(kept, Passes) else Passes(kept)
    left, right = ([edge if isinstance(edge, Anchor) else Anchor(edge) for edge in of] for of in (lefts, rights))
    reference = outside(model, passes, left, right) if echo else None
    return run_region(model, ids, passes, left, right, strand=strand, reference=reference, **options)[0]


def whole(model, ids, strand):
    return run(model, ids, chunk=ids.shape[1], strand=strand, width=model.hidden_width())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
def test_an_unedited_region_is_the_whole_pass(kind, strand, dtype, limit):
    model, ids = any_model(kind, dtype), windows(T, batch=1)
    expected = whole(model, ids, strand)
    for chunk in (1, 50, 77, T):
        kept = reference_pass(model, ids, AT, chunk=chunk, strand=strand)
        for left, right in ((60, 210), (0, 100), (260, T), (0, T), (150, 210)):
            got = region(model, ids[:, left:right], kept, [left], [right], strand)
            off = (got - expected[:, left:right]).abs().max() / expected.abs().max()
            assert off < limit, (chunk, left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_regions_of_one_length_run_together(kind):
    model, ids = any_model(kind), windows(T, batch=1)
    kept = reference_pass(model, ids, AT, chunk=64, strand=0)
    spans = [(60, 100), (210, 250), (100, 140)]
    kept_more = reference_pass(model, ids, sorted({p for span in spans for p in span}), chunk=64, strand=0)
    rows = torch.cat([ids[:, a:b] for a, b in spans])
    together = region(model, rows, kept_more, [a for a, _ in spans], [b for _, b in spans], 0)
    for row, (a, b) in enumerate(spans):
        alone = region(model, ids[:, a:b], kept_more, [a], [b], 0)
        assert (alone[0] - together[row]).abs().max() < 1e-12
        assert (alone[0] - whole(model, ids, 0)[0, a:b]).abs().max() < 1e-10
    assert kept.nbytes == len(AT) * boundary_bytes(model)


EDITS = {
    "substitution": lambda ids, at: np.concatenate([ids[:at], [dna.A + (ids[at] - dna.A + 1) % 4], ids[at + 1 :]]),
    "mask": lambda ids, at: np.concatenate([ids[:at], [dna.MASK], ids[at + 1 :]]),
    "insertion": lambda ids, at: np.concatenate([ids[:at], dna.encode("GATTACA"), ids[at:]]),
    "deletion": lambda ids, at: np.concatenate([ids[:at], ids[at + 9 :]]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit", EDITS)
def test_edits_come_close_to_a_whole_rerun_and_closer_with_a_wider_region(kind, edit):
    model = any_model(kind)
    ids = np.random.default_rng(0).integers(dna.A, dna.T + 1, T).astype(np.uint8)
    at, change = 200, EDITS[edit]
    edited = change(ids, at).astype(np.uint8)
    window = torch.from_numpy(ids)[None]
    radii = (16, 48, 144)
    edges = sorted({p for r in radii for p in (at - r, at + r)})
    for strand in STRANDS:
        kept = reference_pass(model, window, edges, chunk=100, strand=strand)
        before, after = (whole(model, torch.from_numpy(of)[None], strand) for of in (ids, edited))
        errors, estimates = [], []
        for r in radii:
            left, right = at - r, at + r
            stretch = torch.from_numpy(change(ids[left:right], r).astype(np.uint8))[None]
            got, again = region(model, stretch, kept, [left], [right], strand, echo=True).chunk(2)
            assert (got - region(model, stretch, kept, [left], [right], strand)).abs().max() < 1e-12
            want = after[:, left : right + len(edited) - T]
            errors.append((got - want)[:, r].abs().max().item())
            estimates.append(10 * (again - got)[:, r].abs().max().item())
        effect = (after[:, at] - before[:, at]).abs().max().item()
        assert effect > 0.01
        assert errors[0] < 0.2 * effect
        assert errors[2] < 5e-3 * effect and errors[2] < errors[0] + 1e-12
        # Of an order: what it says is not called a bound.
        for error, estimate in zip(errors, estimates, strict=True):
            assert error < estimate + 1e-12 or error < 1e-6 * effect, (strand, errors, estimates)


def test_a_region_that_is_the_window_has_no_echo():
    model, ids = any_model("hawk"), windows(T, batch=1)
    kept = reference_pass(model, ids, [0, T], chunk=64, strand=0)
    edited = ids.clone()
    edited[0, 130] = dna.MASK
    got, again = region(model, edited, kept, [0], [T], 0, echo=True).chunk(2)
    assert (got - whole(model, edited, 0)).abs().max() < 1e-10
    assert torch.equal(again, got)


@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_keeps_the_same_states(kind):
    model, ids = any_model(kind, torch.float32), windows(T, batch=1)
    expected = reference_pass(model, ids, AT, chunk=64, strand=0)
    for name in ("naive", "blocked"):
        with backend.use(name):
            got = reference_pass(model, ids, AT, chunk=64, strand=0)
        for layer in range(3):
            for way in (0, 1):
                for a, b in zip(got.states(layer, way, AT), expected.states(layer, way, AT), strict=True):
                    assert (a - b).abs().max() < 1e-4 * b.abs().max().clamp(min=1e-3)


def test_bfloat16_states_are_float32():
    model, ids = any_model("hawk", torch.float32).for_inference(torch.bfloat16), windows(T, batch=1)
    kept = reference_pass(model, ids, AT, chunk=64, strand=0)
    state = kept.states(1, 0, [100, 150])
    assert state.h.dtype == torch.float32 and state.halo.dtype == torch.bfloat16
    assert not torch.equal(state.h, state.h.bfloat16().float())
    parts = [part.hidden.float().clone() for part in stream(model, ids, chunk=64)]
    got = region(model, ids[:, 60:210], kept, [60], [210], 0)
    want = torch.cat(parts, 1)[:, 60:210]
    assert ((got.float() - want).norm() / want.norm()).item() < 0.02


@pytest.mark.parametrize("at", [[-1], [T + 1], [5, 5], [7, 3]])
def test_boundaries_rise_within_the_window(at):
    with pytest.raises(UsageError, match="boundaries: expected rising numbers from 0 to 400"):
        Boundaries(any_model("hawk"), T, at)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unedited_region_has_no_echo_and_rows_are_those_of_all(kind):
    model, ids = any_model(kind), windows(T, batch=1)
    for strand in STRANDS:
        kept = reference_pass(model, ids, AT, chunk=64, strand=strand)
        plain, echoed = region(model, ids[:, 60:210], kept, [60], [210], strand, echo=True).chunk(2)
        assert (plain - echoed).abs().max() < 1e-10
        edited = ids.clone()
        edited[0, 130] = dna.MASK
        both = region(model, edited[:, 60:210], kept, [60], [210], strand, echo=True)
        some = region(model, edited[:, 60:210], kept, [60], [210], strand, echo=True, rows=(65, 80))
        assert both.shape[0] == 2 and not torch.equal(both[0], both[1])
        assert (both[:, 65:80] - some).abs().max() < 1e-12


def test_one_layer_has_no_echo():
    model, ids = any_model("hawk", layers=1), windows(T, batch=1)
    kept = reference_pass(model, ids, AT, chunk=64, strand=0)
    edited = ids.clone()
    edited[0, 130] = dna.MASK
    got, again = region(model, edited[:, 60:210], kept, [60], [210], 0, echo=True).chunk(2)
    assert torch.equal(got, again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strand", STRANDS)
def test_what_an_event_joins_is_run_from_its_junctions(kind, strand):
    """A deletion, a tandem duplication and an inversion of a long stretch, against whole reruns."""
    # Half-lives far below the reach, so that what is left out is small.
    model = make(3, half_life_max=40.0).requires_grad_(False) if kind == "hawk" else any_model(kind)
    length, begin, end, reach = 2_600, 400, 2_200, 150
    ids = np.random.default_rng(1).integers(dna.A, dna.T + 1, length).astype(np.uint8)
    edges = [begin - reach, begin + reach, end - reach, end + reach]
    left, in_left, in_right, right = edges
    window = torch.from_numpy(ids)[None]
    kept = [reference_pass(model, window, edges, chunk=100, strand=way) for way in STRANDS]
    passes = Passes(kept[strand], kept[1 - strand])
    flipped = dna.reverse_complement(ids[begin:end])
    cases = {
        "deletion": (
            np.concatenate([ids[:begin], ids[end:]]), [ids[left:begin], ids[end:right]], begin,
            Anchor(left), Anchor(right),
        ),
        "duplication": (
            np.concatenate([ids[:end], ids[begin:]]), [ids[in_right:end], ids[begin:in_left]], end,
            Anchor(in_right), Anchor(in_left),
        ),
        "inversion, left": (
            np.concatenate([ids[:begin], flipped, ids[end:]]), [ids[left:begin], flipped[:reach]], begin,
            Anchor(left), Anchor(in_right, True),
        ),
        "inversion, right": (
            np.concatenate([ids[:begin], flipped, ids[end:]]), [flipped[-reach:], ids[end:right]], end,
            Anchor(in_left, True), Anchor(right),
        ),
    }  # fmt: skip
    for name, (edited, parts, at, first, last) in cases.items():
        want = whole(model, torch.from_numpy(edited)[None], strand)[:, at - 20 : at + 20]
        stretch = torch.from_numpy(np.concatenate(parts))[None]
        got = region(model, stretch, passes, [first], [last], strand)[:, reach - 20 : reach + 20]
        scale = (want - whole(model, window, strand)[:, at - 20 : at + 20]).abs().max()
        assert scale > 0.05
        off = ((got - want).abs().max() / scale).item()
        assert off < 0.03, (name, off)


def test_flipped_anchors_need_the_other_strand_and_company_of_their_kind():
    model, ids = any_model("hawk"), windows(T, batch=1)
    kept = reference_pass(model, ids, AT, chunk=64, strand=0)
    with pytest.raises(ValueError, match="with a pass over the other strand"):
        region(model, ids[:, 60:210], kept, [60], [Anchor(210, True)], 0)
    rows = ids[:, 60:210].repeat(2, 1)
    with pytest.raises(ValueError, match="flipped anchors go by themselves"):
        region(model, rows, Passes(kept, kept), [60, 60], [Anchor(210), Anchor(210, True)], 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_on_disk_are_those_in_memory(kind, dtype, tmp_path):
    model, ids = any_model(kind, torch.float32).for_inference(dtype), windows(T, batch=1)
    here = reference_pass(model, ids, AT, chunk=77, strand=0)
    there = Boundaries(model, T, AT, tmp_path)
    for _ in stream(model, ids, chunk=77, recorder=there):
        pass
    assert here.nbytes == there.nbytes == len(AT) * boundary_bytes(model)
    for layer in range(3):
        for way in (0, 1):
            for at in ([150, 60], [0], AT):
                for a, b in zip(here.states(layer, way, at), there.states(layer, way, at), strict=True):
                    assert a.dtype == b.dtype and torch.equal(a, b)
    assert not list(tmp_path.iterdir())
    there.close()


def test_a_folder_that_is_not_there_is_said():
    with pytest.raises(OutputError, match="/nowhere: states could not be kept there"):
        Boundaries(any_model("hawk"), T, AT, "/nowhere")
