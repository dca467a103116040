"""Inpainting on a GPU that only pretends: no devices are mixed, and the tokens are the CPU's.

Tensors of the pretended GPU hold their numbers on the CPU but say that they lie on a GPU, so that
the ways of a GPU are taken, and an operation on both devices is caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from config.decoding import RULES
from models.orders import ORDERS
from utils import device
from utils.data.datasets import InpaintingSet
from utils.inpainting.inpainter import Inpainter, Trace

GPU = torch.device("cuda", 0)
PAIRS = [*zip(RULES, cycle(ORDERS), strict=False), *(("maskgit", order) for order in ORDERS)]
EACH = [*dict.fromkeys(PAIRS)]  # rule and every order
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OnGpu(Tensor):
    """A tensor that says it lies on a GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=GPU
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, _types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return compute(op, args, kwargs or {})


def compute(op: Any, args: tuple, kwargs: dict) -> Any:
    """The result of an operation, on the device that it belongs to."""
    kwargs = dict(kwargs)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = any(isinstance(t, OnGpu) for t in tensors)
    alone = [t for t in tensors if t.ndim and not isinstance(t, OnGpu)]
    assert not here or not alone or op in MOVES, f"{op}: mixes devices"
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]).type == "cuda"
        kwargs["device"] = torch.device("cpu")
    elif op in MOVES:
        here = isinstance(args[0], OnGpu)
    plain, named = tree_map(lambda t: t.held if isinstance(t, OnGpu) else t, (args, kwargs))
    result = op(*plain, **named)
    if op._schema.is_mutable:
        return args[0]  # changed in place
    if not here:
        return result
    return tree_map(lambda t: OnGpu(t) if isinstance(t, Tensor) else t, result)


class PretendedGpu(TorchDispatchMode):
    """Lets operations without tensors, such as `torch.zeros`, make theirs on the GPU too."""

    def __torch_dispatch__(self, op: Any, _types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return compute(op, args, kwargs or {})


def moved_later(
    make: Callable[..., Tensor],
    numbers: Any,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """What `make` makes of numbers, on the CPU first."""
    made = make(numbers, dtype=dtype)
    return made if device is None else made.to(device)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that the inpainter believes in."""
    torch._C._ensureCUDADeviceGuardSet()
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(device, "pick_device", lambda _: GPU)
    for name in ("tensor", "as_tensor"):  # these reach for a real GPU below all modes
        monkeypatch.setattr(torch, name, partial(moved_later, getattr(torch, name)))
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with PretendedGpu():
        yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def test_what_mixes_devices_is_caught(gpu):
    on_gpu = torch.arange(3.0).to(GPU)
    on_gpu[on_gpu > 1] = 5
    assert on_gpu.cpu().tolist() == [0, 1, 5]
    with pytest.raises(AssertionError, match="mixes devices"):
        on_gpu + torch.ones(3)


def test_a_gpu_decodes_what_a_cpu_decodes(weights, job, changed, request):
    configs = [
        changed(weights, {"decoding.rule": rule, "decoding.order": order}) for rule, order in EACH
    ]
    items = list(InpaintingSet(job))
    images, holes = (np.stack([getattr(i, part) for i in items]) for part in ("image", "hole"))
    numbers = [item.index for item in items]

    def repaired(inpainter: Inpainter) -> Iterator[tuple[Trace, np.ndarray]]:
        """Steps and pictures of every rule and order."""
        for config in configs:
            own = inpainter.with_config(config)
            trace = own.decode(images, holes, numbers, samples=2)
            yield trace, own.decoded_steps(trace.token_ids, trace.known)

    on_cpu = list(repaired(Inpainter(weights)))
    request.getfixturevalue("gpu")
    on_gpu = repaired(Inpainter(weights))
    for pair, (expected, pixels), (found, shown) in zip(EACH, on_cpu, on_gpu, strict=True):
        assert {tensor.device for tensor in [*found.token_ids, *found.hidden]} == {GPU}, pair
        for part in ("token_ids", "hidden"):
            ours, theirs = getattr(found, part), getattr(expected, part)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(ours, theirs, strict=True)), pair
        assert np.abs(shown.astype(int) - pixels).max() <= 1, pair
