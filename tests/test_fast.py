"""Recorded work: on a CPU each call does the work once; on a GPU replays must do what plain calls
do.
"""

import threading
import warnings
from functools import partial

import pytest
import torch
from conftest import refused

from ddlib.augment import Epoch
from ddlib.support.fast import (
    Recorder,
    mixed_precision,
    products,
    set_products,
    side_by_side,
)
from ddlib.support.rng import stream

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_every_call_does_the_work_once():
    total = torch.zeros(())
    recorder = Recorder("cpu")
    for _ in range(7):
        assert recorder(total.add_, 1) is total
    assert total == 7


def test_works_side_by_side_are_all_done():
    totals = torch.zeros(3)
    side_by_side([lambda i=i: totals[i].add_(i + 1) for i in range(3)], "cpu")
    assert totals.tolist() == [1, 2, 3]


def test_each_work_has_its_share_of_the_threads():
    """And the caller has all of them again, also after an error."""
    torch.set_num_threads(4)

    def share():
        return threading.get_ident(), torch.get_num_threads()

    def fail():
        raise ValueError

    try:
        (first, one), (second, two) = side_by_side([share, share], "cpu")
        assert first == threading.get_ident() != second and one == two == 2
        assert [n for _, n in side_by_side([share], "cpu")] == [4] == [torch.get_num_threads()]
        for works in ([fail, share], [share, fail]):
            with pytest.raises(ValueError):  # noqa: PT011
                side_by_side(works, "cpu")
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


def passes(n, size, generator, count):
    """The batches that `count` passes take, one list a pass."""
    seen = []

    class Noted(Epoch):
        def step(self, images, rows):
            seen[-1].append(images.tolist())

    epoch = Noted(torch.arange(n), size)
    for _ in range(count):
        seen.append([])
        epoch.shuffle(generator)
        epoch.run()
    return seen


def test_a_set_that_fits_is_taken_whole_and_in_order():
    assert passes(5, 5, None, 2) == [[[0, 1, 2, 3, 4]]] * 2


def test_a_larger_set_is_shuffled_anew_and_every_item_comes_once():
    first, second = passes(7, 3, stream(0, "x"), 2)
    for one in (first, second):
        assert [len(batch) for batch in one] == [3, 3, 1] and sorted(
            i for batch in one for i in batch
        ) == list(range(7))
    assert first != second and [i for batch in first for i in batch] != list(range(7))
    assert [first, second] == passes(7, 3, stream(0, "x"), 2)


def tf32():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return cuda.matmul.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32"


def test_products_leave_the_flags_as_they_were():
    """Also where one lies in another, and after an error."""
    before = tf32()
    for precision, allowed in (("tf32", True), ("bfloat16", True), ("float32", False)):
        with products(precision, "cuda"):
            assert tf32() == (allowed, allowed)
        assert tf32() == before
    with products("tf32", "cuda"):
        with products("float32", "cuda"):
            assert tf32() == (False, False)
        assert tf32() == (True, True) and torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), products("tf32", "cuda"):
        raise KeyError
    assert tf32() == before


def test_no_setting_that_some_versions_of_pytorch_warn_about(monkeypatch):
    """Warnings are errors here."""

    def old(value):
        warnings.warn("Please use the new API settings to control TF32 behavior", stacklevel=2)

    for name in ("_set_cublas_allow_tf32", "_set_cudnn_allow_tf32"):
        monkeypatch.setattr(torch._C, name, old)
    with products("tf32", "cuda"):
        set_products("bfloat16", "cuda")


def test_products_of_a_gpu_are_refused_on_a_cpu():
    before = tf32()
    with refused("tf32", "GPU", "bfloat16"), products("tf32", "cpu"):
        pytest.fail("it is refused")
    with products("tf32", "cuda"):
        pass
    assert tf32() == before


def test_mixed_precision_is_bfloat16_only():
    x = torch.ones(2, 2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with mixed_precision(precision, "cpu"):
            assert (x @ x).dtype == dtype


@gpu
def test_a_recorded_training_is_the_plain_one():
    def trained(wrap):
        weights = torch.ones(4, device="cuda", requires_grad=True)
        x = torch.randn(8, 4, generator=stream(0, "x")).cuda()

        def step():
            (gradient,) = torch.autograd.grad((x @ weights).square().mean(), weights)
            with torch.no_grad():
                weights.sub_(0.1 * gradient)

        step = wrap(step)
        for _ in range(10):
            step()
        return weights.detach().cpu()

    assert torch.allclose(
        trained(lambda work: partial(Recorder("cuda"), work)), trained(lambda work: work), rtol=1e-6
    )


@gpu
def test_works_side_by_side_in_one_graph():
    totals = torch.zeros(3, device="cuda")
    works = [lambda i=i: totals[i].add_(i + 1) for i in range(3)]
    both = partial(side_by_side, works, "cuda")
    recorder = Recorder("cuda")
    for _ in range(10):
        recorder(both)
    assert totals.tolist() == [10, 20, 30]
