import pytest
import torch

from lrgenome.config import PRESETS
from lrgenome.engine import chunking
from lrgenome.models.hawk import build


def caches(folder, *entries):
    for number, (kind, size) in enumerate(entries):
        index = folder / f"index{number}"
        index.mkdir()
        (index / "type").write_text(kind + "\n")
        (index / "size").write_text(size + "\n")
    return folder


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([("Data", "32K"), ("Instruction", "64M"), ("Unified", "1024K"), ("Unified", "32768K")], 32 << 20),
        ([("Data", "48K"), ("Unified", "2M")], 2 << 20),
        ([("Unified", "1G")], 1 << 30),
        ([("Unified", "what?"), ("Unified", "")], 16 << 20),
        ([], 16 << 20),
    ],
)
def test_the_largest_data_cache_is_read(tmp_path, entries, expected):
    assert chunking.read_cache_bytes(caches(tmp_path, *entries)) == expected


def test_a_cache_that_cannot_be_read_is_passed_over(tmp_path):
    caches(tmp_path, ("Unified", "8M"))
    (tmp_path / "index7").mkdir()
    assert chunking.read_cache_bytes(tmp_path) == 8 << 20
    assert chunking.read_cache_bytes(tmp_path / "nothing") == 16 << 20


@pytest.mark.parametrize(
    ("preset", "dtype", "cache", "expected"),
    [
        # The sizes that timings on a processor with 32 MiB found best.
        ("hawk-50m", torch.bfloat16, 32 << 20, 4096),
        ("hawk-50m", torch.float32, 32 << 20, 2048),
        ("hawk-mini", torch.bfloat16, 32 << 20, 8192),
        ("hawk-mini", torch.float32, 32 << 20, 4096),
        ("hawk-mini", torch.float32, 1 << 10, 256),
        ("hawk-mini", torch.float32, 1 << 40, 16_384),
    ],
)
def test_the_widest_step_fits_into_the_cache(monkeypatch, preset, dtype, cache, expected):
    monkeypatch.setattr(chunking, "cache_bytes", lambda: cache)
    with torch.device("meta"):
        model = build(PRESETS[preset]).set_compute_dtype(dtype)
    assert chunking.default_chunk(model, "cpu") == expected
    assert chunking.default_chunk(model, "cuda") == chunking.GPU_CHUNK
