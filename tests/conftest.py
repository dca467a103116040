"""Tiny networks and settings that every test may build on: 16 tokens, 16 codes, 16 x 16 pixels."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import fid.features
import numpy as np
import pytest
import torch
from fid.process import STOPS

import models.losses
import utils.io.files
import utils.training.run
import utils.training.throughput
import utils.training.tokenizer_step
import utils.training.transformer_step
import utils.training.validate_tokenizer
import utils.weights.store
from config.schema import Config, TokenizerConfig, TransformerConfig
from models.maskgit import MaskGIT
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.io.images import encode_png
from utils.weights.store import save_weights

torch.set_num_threads(1)


def once(function: Callable) -> Callable:
    """The function, called once for all arguments that read alike."""
    found: dict[str, Any] = {}

    def call(*arguments: Any) -> Any:
        key = repr(arguments)
        if key not in found:
            found[key] = function(*arguments)
        return found[key]

    return call


for module, name in (  # asked of the same few networks again and again
    (utils.weights.store, "network_shapes"),
    (utils.training.tokenizer_step, "tokenizer_flops"),
):
    setattr(module, name, once(getattr(module, name)))

LONGEST = (  # files that take a minute and more on two cores, few tests each
    "test_interruptions.py",
    "test_demo.py",
    "test_distributed.py",
    "test_scripts.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting modules and tests, which stay till the end."""
    gc.collect()
    gc.freeze()


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def copies() -> Callable[..., list[Ended]]:
    """Run a script in copies of this process, which has imported everything already:
    copies(folder for what they print, script, argument, ...).
    """

    def run(folder: Path, *command: object, torchrun: bool = True, count: int = 2) -> list[Ended]:
        with socket.create_server(("127.0.0.1", 0)) as found_free:
            shared = dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], str(count))
            shared |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
            shared |= {"MASTER_PORT": str(found_free.getsockname()[1])}
        places = [[folder / f"out-{rank}", folder / f"err-{rank}"] for rank in range(count)]
        processes = []
        for rank, place in enumerate(places):
            variables = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if torchrun else {}
            arguments = (list(map(str, command)), variables, place)
            process = multiprocessing.get_context("fork").Process(target=_copy, args=arguments)
            process.start()
            processes.append(process)
        for process in processes:
            process.join()
        return [
            Ended(process.exitcode, *(path.read_text() for path in place))
            for process, place in zip(processes, places, strict=True)
        ]

    return run


@pytest.fixture
def in_copies(copies, tmp_path) -> Callable[..., list[Ended]]:
    """Run a script in copies of this process."""
    return partial(copies, tmp_path)


def _copy(command: list[str], variables: dict[str, str], place: list[Path]) -> None:
    os.environ.update(variables)
    for stream, path in enumerate(place, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


efficient_net = cache(fid.features.EfficientNetFeatures)  # read once


@pytest.fixture(scope="session")
def small_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where statistics of features are kept that no user may meet."""
    return tmp_path_factory.mktemp("small_features")


@pytest.fixture
def low_resolution(monkeypatch: pytest.MonkeyPatch, small_features: Path) -> None:
    """The scorer resizes images to a quarter of what its networks are made for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_features))
    resized = fid.features.resized_by_torch
    monkeypatch.setattr(
        fid.features, "resized_by_torch", lambda pixels, side: resized(pixels, side // 4)
    )
    monkeypatch.setattr(fid.features, "EfficientNetFeatures", efficient_net)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tokenizer_config() -> TokenizerConfig:
    """16 x 16 pixels -> 4 x 4 tokens of 4 x 4 pixels."""
    return TokenizerConfig(
        encoder_channels=[8, 8, 8],
        encoder_kernels=[3, 3],
        encoder_blocks=1,
        downsample_after=[0, 1],
        decoder_channels=[8, 8],
        decoder_blocks=1,
        upsample_after=[1, 0],
        latent_dim=8,
        codebook_size=16,
    )


@pytest.fixture
def transformer_config() -> TransformerConfig:
    return TransformerConfig(
        dim=16, num_heads=4, num_layers=2, mlp_dim=32, dropout=0.0, num_tokens=16, codebook_size=16
    )


@pytest.fixture
def tokenizer(tokenizer_config: TokenizerConfig) -> VQGAN:
    """An untrained tokenizer; its codes are latents of noise, so that images use many of them."""
    torch.manual_seed(0)
    vqgan = VQGAN(tokenizer_config).eval()
    with torch.no_grad():
        latents = vqgan.latents(torch.randn(16, 3, 16, 16)).flatten(0, 2)
        vqgan.codebook.embedding.weight.copy_(latents[:: len(latents) // 16])
    return vqgan


@pytest.fixture
def transformer(transformer_config: TransformerConfig) -> BidirectionalTransformer:
    """An untrained transformer with weights large enough for opinions."""
    torch.manual_seed(0)
    model = BidirectionalTransformer(transformer_config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


@pytest.fixture
def maskgit(tokenizer: VQGAN, transformer: BidirectionalTransformer) -> MaskGIT:
    return MaskGIT(tokenizer, transformer, "cosine").eval()


@pytest.fixture(scope="session")
def inpaint() -> Callable[..., torch.Tensor]:
    """Token ids of repaired images, (B * samples, N): inpaint(maskgit, images, holes, ...)."""

    def repaired(
        maskgit: MaskGIT, images: torch.Tensor, holes: torch.Tensor, *how: Any, **named: Any
    ) -> torch.Tensor:
        *_, last = maskgit.finish(maskgit.start(images, holes), *how, **named)
        return last.token_ids

    return repaired


@pytest.fixture
def in_terminal() -> Iterator[None]:
    """Signals as a terminal hands them over, where the tests run under nohup or in background."""
    before = {number: signal.getsignal(number) for number in STOPS}
    for number in STOPS:
        is_ctrl_c = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Let this process believe that it is one of several: become(rank, processes)."""

    def tell(rank: int, processes: int) -> None:
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        for name, value in {**values, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
            monkeypatch.setenv(name, str(value))

    return tell


# Runs: pictures on disk, a config for them, and what is slow replaced by what is not


@cache
def pictures() -> dict[str, bytes]:
    """11 training and 6 validation images of 4 x 4 coloured patches."""
    rng, found = np.random.default_rng(0), {}
    for split, count in (("train", 11), ("val", 6)):
        for index in range(count):
            patches = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            pixels = patches.repeat(4, axis=0).repeat(4, axis=1)
            found[f"{split}/image_{index}.png"] = encode_png(pixels)
    return found


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A prepared folder with the pictures."""
    folder = tmp_path / "data"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    for name, content in pictures().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def config(
    tmp_path: Path,
    data_root: Path,
    tokenizer_config: TokenizerConfig,
    transformer_config: TransformerConfig,
) -> Config:
    """Two short epochs of either stage, and decoding in three steps, in fp32 on the CPU."""
    stage_1 = {"epochs": 2, "batch_size": 4, "warmup_steps": 1, "learning_rate": 0.01}
    return Config.model_validate(
        {
            "run": tmp_path / "run",
            "device": "cpu",
            "precision": "fp32",
            "data": {"root": data_root, "image_size": 16},
            "tokenizer": {**tokenizer_config.model_dump(), "training": stage_1},
            "transformer": transformer_config.model_dump(),
            "training": {"epochs": 2, "batch_size": 2, "accumulate": 2, "learning_rate": 0.01},
            "decoding": {"total_iter": 3},
        }
    )


@pytest.fixture(scope="session")
def changed() -> Callable[[Config, dict[str, Any]], Config]:
    """A checked copy of a config with some keys changed: changed(config, {"data.root": ...})."""

    def change(config: Config, values: dict[str, Any]) -> Config:
        tree = config.model_dump()
        for dotted, value in values.items():
            *sections, key = dotted.split(".")
            section = tree
            for name in sections:
                section = section[name]
            section[key] = value
        return Config.model_validate(tree)

    return change


@pytest.fixture
def weights(config: Config, tokenizer: VQGAN, transformer: BidirectionalTransformer) -> Config:
    """The config, with both networks' weights where its run expects them."""
    notes = {"epoch": "1"}
    save_weights(config.tokenizer_weights, tokenizer.state_dict(), tokenizer.config, notes)
    save_weights(config.transformer_weights, transformer.state_dict(), transformer.config, notes)
    return config


class MeanDifference:
    """Stands in for the Frechet distance, which needs a real network."""

    def __init__(self, targets: torch.Tensor, device: torch.device) -> None:
        self.targets = targets

    def __call__(self, images: torch.Tensor) -> float:
        return (images.float() - self.targets.float()).abs().mean().item()


class SquaredDifference(torch.nn.Module):
    """Stands in for the perceptual distance."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = (size, size)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (images - targets).square().mean()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No feature networks, curves or timing, a narrow discriminator, no waiting for the disk."""
    narrow = partial(models.losses.PatchDiscriminator, 8)
    monkeypatch.setattr(models.losses, "PatchDiscriminator", narrow)
    monkeypatch.setattr(utils.io.files.os, "fsync", lambda number: None)
    monkeypatch.setattr(utils.training.validate_tokenizer, "FeatureDistance", MeanDifference)
    monkeypatch.setattr(models.losses, "EfficientNetDistance", SquaredDifference)
    for stage, draw in (
        (utils.training.tokenizer_step, "save_curves"),
        (utils.training.transformer_step, "save_loss_curve"),
    ):
        monkeypatch.setattr(stage, draw, lambda path, rows: None)
    monkeypatch.setattr(utils.training.throughput, "matmul_peak", lambda *_: 1e12)  # FLOP/s


@pytest.fixture(scope="session")
def read_once() -> Callable:
    """What loads a file as a module, but each file once."""
    from alembic.util import load_python_file

    return once(load_python_file)


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch, read_once: Callable) -> Iterator[None]:
    """Databases in files do not wait for the disk, and what tells their version is read once."""
    from alembic.script import base
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    monkeypatch.setattr(base.util, "load_python_file", read_once)
    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


class Stop(list):
    """Signals received: none, until a stage has looked for them ``looks`` times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        return self.looks == 0


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make training believe that it was told to stop after so many optimiser steps."""

    def plan(steps: int) -> None:
        @contextmanager
        def signals():
            yield Stop(steps)

        monkeypatch.setattr(utils.training.run, "stop_signals", signals)

    return plan


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Compare two nested states bit by bit."""

    def compare(a: Any, b: Any, where: str = "state") -> None:
        assert type(a) is type(b), where
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), where
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                compare(a[key], b[key], f"{where}.{key}")
        elif isinstance(a, list | tuple):
            assert len(a) == len(b), where
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(x, y, f"{where}[{index}]")
        else:
            assert a == b, where

    return compare
