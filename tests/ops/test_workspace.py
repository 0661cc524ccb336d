"""Scratch buffers that are used again."""

import torch

from lrgenome.ops.workspace import Workspace

CPU = torch.device("cpu")


def test_one_name_is_one_memory() -> None:
    ws = Workspace()
    first = ws.get("norm", (4, 6), torch.float32, CPU)
    assert first.shape == (4, 6) and first.is_contiguous() and first.dtype == torch.float32
    first.fill_(3.0)
    again = ws.get("norm", (4, 6), torch.float32, CPU)
    assert again.data_ptr() == first.data_ptr() and (again == 3.0).all()
    smaller = ws.get("norm", (2, 5), torch.float32, CPU)
    assert smaller.shape == (2, 5) and smaller.data_ptr() == first.data_ptr()


def test_names_dtypes_and_devices_are_apart() -> None:
    ws = Workspace()
    buffers = [
        ws.get("a", (8,), torch.float32, CPU),
        ws.get("b", (8,), torch.float32, CPU),
        ws.get("a", (8,), torch.bfloat16, CPU),
    ]
    assert len({b.data_ptr() for b in buffers}) == 3
    assert ws.get("a", (8,), torch.float32, torch.device("meta")).device.type == "meta"


def test_it_grows_to_the_largest_and_counts_its_bytes() -> None:
    ws = Workspace()
    assert ws.nbytes() == 0
    ws.get("a", (10,), torch.float32, CPU)
    assert ws.nbytes() == 40
    large = ws.get("a", (5, 20), torch.float32, CPU)
    assert large.shape == (5, 20) and ws.nbytes() == 400
    ws.get("a", (3,), torch.float32, CPU)
    assert ws.nbytes() == 400
    ws.get("b", (3,), torch.bfloat16, CPU)
    assert ws.nbytes() == 406


def test_empty_and_scalar_shapes() -> None:
    ws = Workspace()
    assert ws.get("a", (0, 7), torch.float32, CPU).shape == (0, 7)
    assert ws.get("a", (), torch.float32, CPU).shape == ()


def test_a_disabled_one_gives_nothing() -> None:
    ws = Workspace(enabled=False)
    assert ws.get("a", (4,), torch.float32, CPU) is None and ws.nbytes() == 0
