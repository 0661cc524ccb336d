"""Readers of checkpoints, published weights, snapshots, embeddings and journals."""

import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import oracles
from .mutate import BYTES, TEXT, change_field, change_lines, zero_span
from .mutate_formats import change_json, change_safetensors
from .targets import Files, Target
from .targets_text import vcf_texts


def _nothing(files: Files) -> Any:
    raise oracles.Unchecked


def _all(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@functools.cache
def tiny_hawk() -> Any:
    """Make a small Hawk with weights that are not zero."""
    import torch

    from lrgenome.config import HawkConfig
    from lrgenome.models.families import build

    model = build(
        HawkConfig(layers=2, width=16, recurrent_width=32, heads=2, mlp_width=24, half_life_max=200.0), seed=5
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(0.25)
    return model


def _weights(named: Any) -> dict[str, bytes]:
    return {name: p.detach().float().contiguous().numpy().tobytes() for name, p in named}


def _head() -> Any:
    from lrgenome.config.head import HeadConfig
    from lrgenome.models.heads import Head

    return Head(
        HeadConfig(
            kind="labels",
            outputs=("a", "b"),
            width=16,
            variants=True,
            context=100,
            hidden=(8,),
            pool="attention",
            bin_size=10,
            tissue="embedding",
            tissues=("x", "y"),
            distance=True,
        )
    )


def checkpoints(shared: Path | None) -> Iterator[Target]:
    """Folders of our own, tuned ones, published ones and snapshots of training."""
    import torch
    from caduceus_reference import published_settings, published_state
    from nucleotide_transformer_published import make_settings, random_tensors
    from safetensors.torch import save_file

    from lrgenome.models.checkpoint import load_model, save_model
    from lrgenome.models.heads import save_head
    from lrgenome.training.snapshot import load_snapshot, load_weights, save_snapshot

    def read(folder: Path) -> dict[str, bytes]:
        loaded = load_model(folder)
        return _weights(loaded.model.named_parameters())

    def expect(files: Files) -> dict[str, bytes]:
        found = {}
        for name, (kind, _shape, data) in oracles.safetensors(files["model.safetensors"]).items():
            if kind != "F32":
                raise oracles.Unchecked
            if not np.isfinite(np.frombuffer(data, np.float32)).all():
                raise oracles.Refused("not finite")
            found[name] = data
        return found

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_model(tiny_hawk(), folder / "own", {"training": {"step": 3}})
        own = _all(folder / "own")
        torch.manual_seed(0)
        save_head(_head(), folder / "own")
        tuned = _all(folder / "own")
        published, transformer = (
            published_settings(8, 2, rcps=True),
            make_settings(layers=2, width=24, heads=3, mlp_width=20),
        )
        state = published_state(published, 0, dtype=torch.float32)
        made_of: dict[str, Files] = {}
        for name, settings, tensors in (
            ("caduceus", published, state),
            ("transformer", transformer, random_tensors(transformer)),
        ):
            (folder / name).mkdir()
            save_file({key: t.contiguous() for key, t in tensors.items()}, folder / name / "model.safetensors")
            (folder / name / "config.json").write_text(json.dumps(settings))
            made_of[name] = _all(folder / name)
        torch.save(state, folder / "pytorch_model.bin")
        pickled = {
            "config.json": made_of["caduceus"]["config.json"],
            "pytorch_model.bin": (folder / "pytorch_model.bin").read_bytes(),
        }
        names = sorted(state)
        parts = {f"model-{i + 1:05}-of-00002.safetensors": names[i::2] for i in range(2)}
        split: Files = {"config.json": pickled["config.json"]}
        for file, some in parts.items():
            save_file({name: state[name] for name in some}, folder / file)
            split[file] = (folder / file).read_bytes()
        index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
        split["model.safetensors.index.json"] = json.dumps(index).encode()

        model = tiny_hawk()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.grad = None
                parameter.copy_(before[name])
        identity = {"model": model.config.to_json(), "settings": {"lr": 1e-3, "window": 64}}
        save_snapshot(folder / "run", model, optimizer, identity, 7)
        snapshot = _all(folder / "run")

    tensors_too = (*[change_safetensors] * 8, *BYTES)
    settings_too = (*[change_json] * 12, *BYTES)
    yield Target(
        "checkpoint",
        "own",
        own,
        {"model.safetensors": tensors_too, "config.json": settings_too},
        read,
        expect,
    )
    yield Target(
        "checkpoint",
        "tuned",
        tuned,
        {"head.safetensors": tensors_too, "config.json": settings_too},
        lambda f: _weights(load_model(f).head.state_dict().items()) if load_model(f).head else {},
        _nothing,  # type: ignore[union-attr]
    )
    for name, files in made_of.items():
        yield Target(
            "published", name, files, {"model.safetensors": tensors_too, "config.json": settings_too}, read, _nothing
        )
    yield Target("published", "pickle", pickled, {"pytorch_model.bin": (*BYTES, zero_span)}, read, _nothing)
    yield Target(
        "published",
        "several files",
        split,
        {"model.safetensors.index.json": settings_too, **dict.fromkeys(parts, tensors_too)},
        read,
        _nothing,
    )
    inside = "snapshot-000000007/"

    def resume(folder: Path) -> int:
        import copy

        other = copy.deepcopy(model)
        stepper = torch.optim.AdamW(other.parameters(), lr=1e-3)
        step = load_snapshot(folder, other, stepper, identity)
        # A step, so that a state of another shape or kind would show.
        for parameter in other.parameters():
            parameter.grad = torch.zeros_like(parameter)
        stepper.step()
        return step

    kinds = {f"{inside}state.safetensors": tensors_too, f"{inside}identity.json": settings_too}
    yield Target("snapshot", "resume", snapshot, kinds, resume, _nothing)
    yield Target(
        "snapshot", "weights", snapshot, kinds, lambda f: _weights(load_weights(f).named_parameters()), _nothing
    )


ATTRS = {
    "model": "toy",
    "sha256": "0" * 64,
    "layer": 3,
    "pool": "mean",
    "bin_size": 1024,
    "context": 100_000,
    "stride": 0,
}
ROWS = 60


def _rows(low: int, high: int) -> dict[str, Any]:
    number = np.arange(low, high)
    values = np.sin(number[:, None] + np.arange(4) / 7).astype(np.float32)
    return {
        "embeddings": values,
        "chrom": [("chr1", "chr2")[i // 30] for i in number],
        "start": number * 1024,
        "end": number * 1024 + 1024,
        "strand": ["."] * len(number),
        "name": [f"r{i}" for i in number],
        "n_frac": number / 1000,
    }


def _write_rows(path: Path, *, resume: bool, stop: int = ROWS) -> None:
    from lrgenome.io import hdf5

    hdf5.CHUNK_BYTES = 256  # 16 rows of 4 values a block
    try:
        writer = hdf5.EmbeddingWriter(
            path, width=4, rows=ROWS, attrs=ATTRS, contigs={"chr1": 10**6, "chr2": 5 * 10**5}, resume=resume
        )
        try:
            for low in range(writer.rows_done, stop, 20):
                writer.append(**_rows(low, min(stop, low + 20)))
        except BaseException:
            writer.close(complete=False)
            raise
        writer.close(complete=stop == ROWS)
    finally:
        hdf5.CHUNK_BYTES = 1 << 20


def _read_rows(path: Path, **more: Any) -> dict[str, Any]:
    from lrgenome.io.hdf5 import read_embeddings

    with read_embeddings(path, **more) as rows:
        n = len(rows)
        columns = {
            name: getattr(rows, name)[:n].tolist() for name in ("chrom", "start", "end", "strand", "name", "n_frac")
        }
        return {"embeddings": rows.embeddings[:n].tobytes(), **columns, "attrs": rows.attrs, "contigs": rows.contigs}


def embeddings(shared: Path | None) -> Iterator[Target]:
    """Files of embeddings, whole and to be resumed."""
    with tempfile.TemporaryDirectory() as made:
        whole, half = Path(made) / "e.h5", Path(made) / "h.h5"
        _write_rows(whole, resume=False)
        _write_rows(half, resume=False, stop=40)
        data, partial, expected = whole.read_bytes(), Path(f"{half}.partial").read_bytes(), _read_rows(whole)

    def same(given: Any) -> Any:
        # HDF5 keeps no checksum of columns that are not compressed: other values may be read.
        if given != expected:
            raise oracles.Unchecked
        return expected

    answers: dict[str, Any] = {}

    def read(folder: Path) -> Any:
        answers["last"] = _read_rows(folder / "e.h5")
        return answers["last"]

    def resume(folder: Path) -> Any:
        _write_rows(folder / "e.h5", resume=True)
        assert not (folder / "e.h5.partial").exists()
        answers["last"] = _read_rows(folder / "e.h5")
        return answers["last"]

    def judge(files: Files) -> Any:
        return same(answers.pop("last", None))

    # Slices are h5py's own, and so are errors of damaged chunks.
    yield Target("hdf5", "read", {"e.h5": data}, {"e.h5": BYTES}, read, judge, raises=(OSError,))
    yield Target("hdf5", "resume", {"e.h5.partial": partial}, {"e.h5.partial": BYTES}, resume, judge, raises=(OSError,))


def journals(shared: Path | None) -> Iterator[Target]:
    """Score tables, and journals to be resumed."""
    from lrgenome.io.scores import ScoreJournal, ScoreRow, format_rows, header_text, publish_scores, read_scores
    from lrgenome.io.vcf import open_variants

    text = vcf_texts(shared)["demo"]
    header = header_text({"model": "toy", "context": 12_000}, no_version=True)

    def rows_of(record: Any) -> str:
        score = record.pos % 97 / 7
        return format_rows(record, [ScoreRow(score, 1e-6, 0.5, -score, None, ("OK",)) for _ in record.alts or "."])

    def run(folder: Path, *, resume: bool, stop: int | None = None) -> None:
        with open_variants(folder / "v.vcf") as source:
            with ScoreJournal(folder / "o.tsv.partial", header, resume=resume) as journal:
                done = journal.resume_from(source.records()) if resume else 0
                for record in source.records(done):
                    if record.number == stop:
                        return
                    journal.append(rows_of(record))
            publish_scores(folder / "o.tsv.partial", folder / "o.tsv", source)

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "v.vcf").write_bytes(text)
        run(folder, resume=False, stop=9)
        partial = (folder / "o.tsv.partial").read_bytes()
        run(folder, resume=False)
        table = (folder / "o.tsv").read_bytes()

    def resumed(folder: Path) -> bytes:
        run(folder, resume=True)
        return (folder / "o.tsv").read_bytes()

    def expect(files: Files) -> bytes:
        # Of a row that belongs to its record other numbers cannot be told from these.
        keys = [line.split(b"\t")[:5] for line in table.splitlines()]
        # A line without an end is done again.
        lines = files["o.tsv.partial"].split(b"\n")[:-1]
        if [line.split(b"\t")[:5] for line in lines] == keys[: len(lines)] and lines != table.splitlines()[
            : len(lines)
        ]:
            for line in lines[5:]:
                for cell in line.split(b"\t")[5:10]:
                    if cell != b".":
                        try:
                            float(cell)
                        except ValueError as error:
                            raise oracles.Refused("a score that is no number") from error
            raise oracles.Unchecked
        return table

    yield Target(
        "journal",
        "resume",
        {"o.tsv.partial": partial, "v.vcf": text},
        {"o.tsv.partial": (*TEXT, *[zero_span] * 3, change_field, change_lines)},
        resumed,
        expect,
    )
    yield Target(
        "journal", "read", {"s.tsv": table}, {"s.tsv": TEXT}, lambda f: len(list(read_scores(f / "s.tsv"))), _nothing
    )
