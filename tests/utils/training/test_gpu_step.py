"""Both stages on a GPU that only pretends: no step mixes devices or makes the host wait.

Tensors of the pretended GPU have shapes, types and a device, but no numbers, so whatever asks for a
number of theirs fails. The way back is left to autograd; gradients are stood in for by zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config.schema import Config
from models.transformer import BidirectionalTransformer
from utils import device as devices
from utils.data import holes
from utils.data.augment import Views
from utils.device import Compute
from utils.training import optim, token_batches
from utils.training import transformer_step as transformer_trainer
from utils.training.holed import HoledImages
from utils.training.optim import EMA
from utils.training.token_batches import TokenBatches, Tokens
from utils.training.tokenizer_step import TokenizerTrainer
from utils.training.transformer_step import TransformerTrainer

GPU = torch.device("cuda", 0)
IMAGES, CODES = 8, 16
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
BATCHES = [torch.arange(8)[start : start + 3] for start in (0, 3, 6)]  # the last one shorter

OPTIONS = {
    "the report's": {},
    "fp16": {"precision": "fp16"},
    "fp16, not clipped": {"precision": "fp16", "training.max_grad_norm": None},
    "fp32": {"precision": "fp32"},
    "MaskGIT's": {
        "masking.ratio": "schedule",
        "masking.ratio_per": "sample",
        "masking.loss_on": "hidden",
        "masking.label_smoothing": 0.1,
        "masking.mask_schedule": "maskgit_cosine",
    },
    "fused attention": {"transformer.attention": "fused"},
    "grid": {"transformer.conv_kernel": 3},
    "pre-norm": {"transformer.norm": "pre", "transformer.qkv_bias": True},
    "prior": {"transformer.prior_dim": 8, "training.init": "codebook"},
    "less memory": {"training.checkpoint_activations": True},
}


class PretendedGpu(TorchDispatchMode):
    """Operations on CUDA tensors give tensors without numbers; those of the CPU stay real."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.types: dict[str, torch.dtype] = {}  # of the last result of each operation
        self.blocking: list[str] = []  # copies to the GPU that wait for what it still has to do

    def __enter__(self) -> PretendedGpu:
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def __torch_dispatch__(
        self, op: Any, _types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        found = [t for t in tensors if isinstance(t, FakeTensor)]
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if not found and to != "cuda":
            with unset_fake_temporarily():
                return op(*args, **kwargs)
        to_host = to == "cpu" or (op in MOVES and not isinstance(args[0], FakeTensor) and not to)
        assert not (found and to_host), f"{op}: the host waits for a copy"
        alone = [t for t in tensors if t.ndim and not isinstance(t, FakeTensor)]
        assert op in MOVES or not alone, f"{op}: mixes devices"
        if op in MOVES and alone and not (kwargs.get("non_blocking") or args[2:] == (True,)):
            self.blocking.append(str([tensor.shape for tensor in alone]))
        if "generator" in kwargs:
            kwargs["generator"] = None
        result = op(*args, **kwargs)
        if isinstance(result, Tensor):
            self.types[op.name()] = result.dtype
        return result


class Generator(torch.Generator):
    """Says that it is where it was asked to be."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.place


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """A GPU that every part of a training believes in."""
    monkeypatch.setattr(devices, "pick_device", lambda name: GPU)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with PretendedGpu() as pretended:
        yield pretended


@pytest.fixture
def start(config: Config, changed: Callable) -> Callable[..., TransformerTrainer]:
    """A trainer of 8 images in three batches and two groups, with some settings changed."""

    def begin(values: dict[str, Any]) -> TransformerTrainer:
        plain = {"precision": "bf16", "training.batch_size": 3, "training.max_grad_norm": 1.0}
        plain |= {"training.ema_half_life": 20.0, "transformer.dropout": 0.1}
        plain |= {"transformer.num_layers": 1}
        tokens = np.random.default_rng(0).integers(0, CODES, (IMAGES, 2, 16)).astype(np.uint16)
        made = changed(config, plain | values)
        return TransformerTrainer(
            made, Tokens(tokens, tokens, torch.randn(CODES, 8), "theirs"), Compute.of(made)
        )

    return begin


def epoch(trainer: TransformerTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """All batches and steps of an epoch, with zeros for gradients."""

    def backward(loss: Tensor) -> None:
        assert loss.device == GPU
        assert loss.grad_fn is not None
        for weight in trainer.transformer.parameters():
            weight.grad = torch.zeros_like(weight)

    monkeypatch.setattr(Tensor, "backward", backward)
    trainer.transformer.train()
    for number, images in enumerate(BATCHES):
        trainer.step(trainer.token_batches(images, 0, number))
        assert not (trainer.group_is_full() and trainer.any_process_stops(False))


@pytest.mark.parametrize("values", OPTIONS.values(), ids=OPTIONS)
def test_no_step_mixes_devices_or_makes_the_host_wait(gpu, start, monkeypatch, values):
    trainer = start(values)
    gpu.blocking.clear()
    epoch(trainer, monkeypatch)
    assert not gpu.blocking
    assert trainer.position.step == 2
    assert trainer.token_batches.views.device == GPU
    kept = [*trainer.transformer.parameters(), *trainer.averaged.module.parameters()]
    kept += [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert {tensor.device for tensor in [*kept, trainer.position.sums["loss"]]} == {GPU}


def test_tokens_that_stay_on_the_host_are_sent_without_waiting(gpu, start, monkeypatch):
    monkeypatch.setattr(token_batches, "MAX_RESIDENT_BYTES", 0)
    trainer = start({})
    assert trainer.token_batches.views.device == torch.device("cpu")
    gpu.blocking.clear()
    epoch(trainer, monkeypatch)
    assert not gpu.blocking


def test_images_with_holes_are_sent_without_waiting(gpu, start, tokenizer, monkeypatch):
    monkeypatch.setattr(holes, "_pool", lambda: SimpleNamespace(map=map))
    monkeypatch.setattr(Views, "keep", lambda _views, _device: None)
    trainer = start({"transformer.conditioning": "pixels", "masking.hole_share": 0.8})
    pictures = torch.zeros(IMAGES, 3, 16, 16, dtype=torch.uint8)
    holed = HoledImages(pictures, 2, tokenizer, trainer.config, GPU)
    tokens = replace(trainer.tokens, holed=holed)
    trainer.token_batches = TokenBatches(tokens, trainer.config, GPU)
    gpu.blocking.clear()
    epoch(trainer, monkeypatch)
    assert not gpu.blocking


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_products_take_the_precision_and_losses_fp32(gpu, start, monkeypatch, precision):
    epoch(start({"precision": precision}), monkeypatch)
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert gpu.types["aten::bmm"] == gpu.types["aten::addmm"] == types[precision]
    assert gpu.types["aten::_softmax"] == gpu.types["aten::_log_softmax"] == torch.float32


def test_each_of_two_processes_computes_its_rows_without_waiting(gpu, start, become, monkeypatch):
    class Parallel(nn.Module):
        """Stands in for DistributedDataParallel, which would exchange gradients."""

        def __init__(self, module: nn.Module, broadcast_buffers: bool) -> None:
            super().__init__()
            self.module = module

        def forward(self, *batch: Tensor) -> Tensor:
            return self.module(*batch)

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            with nullcontext():
                yield

    monkeypatch.setattr(transformer_trainer, "DistributedDataParallel", Parallel)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    become(0, 2)
    for loss_on in ("all", "hidden"):
        trainer = start({"masking.loss_on": loss_on, "training.batch_size": 2})
        trainer.batches_per_epoch = len(BATCHES)
        epoch(trainer, monkeypatch)
        assert trainer.position.sums["loss"].device == GPU


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_of_a_cpu_goes_on_on_a_gpu(start, monkeypatch, request, precision):
    before = start({"precision": "fp32"})
    for number, images in enumerate(BATCHES):
        before.step(before.token_batches(images, 0, number))
    state = before.state_dict()
    request.getfixturevalue("gpu")
    trainer = start({"precision": precision})
    trainer.load_state_dict(state)
    assert trainer.scaler.is_enabled() == (precision == "fp16")
    epoch(trainer, monkeypatch)
    assert trainer.position.step == 4
    steps = [state["step"] for state in trainer.optimizer.state.values()]
    assert {step.device for step in steps} == {GPU}


def test_weights_made_for_another_tokenizer_are_started_from_on_a_gpu(gpu, start, monkeypatch):
    trainer = start(OPTIONS["prior"])
    network = BidirectionalTransformer(trainer.config.transformer)
    network.prior.set_codes(torch.randn(CODES, 8), torch.full((CODES,), 1 / CODES))
    trainer.start_from(network)
    assert network.prior.has_codes(trainer.tokens.codes)
    started = [*trainer.transformer.state_dict().values(), *trainer.averaged.module.parameters()]
    assert {tensor.device for tensor in started} == {GPU}
    epoch(trainer, monkeypatch)


# Stage 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"codebook": "loss"},
        {"adversarial_weight": 0.1, "adversarial_start": 0.0},
        {"decoder_only": True},
    ],
    ids=["averages", "codebook loss", "adversarial", "decoder only"],
)
def test_no_step_of_stage_1_makes_the_host_wait(gpu, config, changed, monkeypatch, values):
    def grad(loss: Tensor, of: Tensor | list[Tensor], **how: bool) -> list[Tensor]:
        assert loss.device == GPU
        return [torch.zeros_like(weight) for weight in (of if isinstance(of, list) else [of])]

    def backward(loss: Tensor) -> None:  # of the discriminator
        for weight in trainer.adversary.network.parameters():
            weight.grad = grad(loss, weight)[0]

    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(optim, "PARTS", 2)  # of a batch, however many threads there are
    values = {f"tokenizer.training.{key}": value for key, value in values.items()}
    config = changed(config, {"precision": "bf16", **values})
    pictures = torch.zeros(IMAGES, 3, 16, 16, dtype=torch.uint8)
    trainer = TokenizerTrainer(config, pictures, pictures, Compute.of(config))
    gpu.blocking.clear()
    for images in (*trainer.batches(), torch.zeros(4, 3, 16, 16, device=GPU)):
        trainer.step(images)
    assert not gpu.blocking
    assert trainer.position.step == 3
    assert gpu.types["aten::convolution"] == torch.bfloat16


# What the pretended GPU must not let through


WAITS = {
    "a number asked for": lambda on_gpu: on_gpu.sum().item(),
    "a question": lambda on_gpu: bool((on_gpu > 0).any()),
    "a count": lambda on_gpu: on_gpu.nonzero(),
    "places picked": lambda on_gpu: on_gpu[on_gpu > 0],
    "a copy": lambda on_gpu: on_gpu.cpu(),
    "a copy into": lambda on_gpu: torch.zeros(3).copy_(on_gpu),
    "two devices": lambda on_gpu: on_gpu + torch.zeros(3),
    "places of the host": lambda on_gpu: on_gpu[torch.tensor([0, 1])],
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_what_waits_or_mixes_is_caught(gpu, wait):
    on_gpu = torch.zeros(3, device=GPU)
    with pytest.raises((AssertionError, RuntimeError)):
        wait(on_gpu)


def test_the_averages_would_wait_if_their_count_lay_on_the_gpu(gpu):
    network = nn.Linear(2, 2).to(GPU)
    average = EMA(network, 1.0, 1)
    average.n_averaged = torch.zeros((), device=GPU)
    with pytest.raises(RuntimeError):
        average.update_parameters(network)
