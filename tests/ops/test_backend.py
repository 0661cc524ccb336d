"""Which implementation runs, and how to force one."""

import threading
from types import SimpleNamespace

import pytest
import torch

from lrgenome.ops import backend


def test_a_tensor_chooses() -> None:
    assert backend.select(torch.zeros(1)) == "cpu"
    assert backend.select(torch.zeros(1, dtype=torch.bfloat16)) == "cpu"
    assert backend.select(torch.zeros(1, dtype=torch.float64)) == "naive"
    assert backend.select(torch.zeros(1, dtype=torch.float16)) == "blocked"
    assert backend.select(torch.zeros(1, device="meta")) == "blocked"
    for dtype, name in ((torch.float32, "cuda"), (torch.bfloat16, "cuda"), (torch.float64, "naive")):
        on_a_gpu = SimpleNamespace(dtype=dtype, device=torch.device("cuda", 1))
        assert backend.select(on_a_gpu) == name  # type: ignore[arg-type]


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_forcing_nests_and_ends(name: str) -> None:
    x = torch.zeros(1)
    with backend.use(name):
        assert backend.select(x) == name
        with backend.use("naive"):
            assert backend.select(x) == "naive"
        assert backend.select(x) == name
        with pytest.raises(ZeroDivisionError), backend.use("blocked"):
            raise ZeroDivisionError
        assert backend.select(x) == name
    assert backend.select(x) == "cpu"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gpu'.*naive, cpu, blocked, cuda"), backend.use("gpu"):
        pass
    assert backend.select(torch.zeros(1)) == "cpu"


def test_forcing_does_not_reach_other_threads() -> None:
    seen = []
    with backend.use("naive"):
        other = threading.Thread(target=lambda: seen.append(backend.select(torch.zeros(1))))
        other.start()
        other.join()
    assert seen == ["cpu"]


def test_wants_grad() -> None:
    plain, leaf = torch.zeros(1), torch.zeros(1, requires_grad=True)
    assert backend.wants_grad(plain, None, leaf)
    assert not backend.wants_grad(plain, None)
    assert not backend.wants_grad()
    for silent in (torch.no_grad, torch.inference_mode):
        with silent():
            assert not backend.wants_grad(leaf)
