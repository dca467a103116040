"""Who a process is, and training in two of them against training in one."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from config.errors import StopRequested, UserError
from config.loading import save_config
from config.schema import Config
from utils import device as device_module
from utils import distributed
from utils.device import Compute, is_main, own_device, world_size
from utils.io.files import read_rows
from utils.training import transformer as stage_2
from utils.training.state import load_state
from utils.training.token_batches import TokenBatch, Tokens
from utils.training.tokenizer import train_tokenizer
from utils.training.tokenizer_step import TokenizerTrainer
from utils.training.transformer import load_tokens, train_transformer
from utils.training.transformer_step import TransformerTrainer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def config(weights, changed) -> Config:
    """11 images in global batches of 4: the last holds 3, so that shares differ in length."""
    return changed(
        weights,
        {
            "training.epochs": 2,
            "training.batch_size": 4,
            "training.accumulate": 2,
            "training.ema_half_life": 20.0,
            "training.max_grad_norm": 0.5,
            "training.weight_decay": 0.05,
            "masking.loss_on": "hidden",
            "masking.ratio_per": "sample",
        },
    )


def test_without_torchrun_a_process_is_alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (device_module.rank(), world_size(), is_main()) == (0, 1, True)
    assert own_device(torch.device("cuda")) == torch.device("cuda")
    with distributed.joined(CPU), distributed.main_first(CPU):
        assert not torch.distributed.is_initialized()
        assert distributed.total(torch.tensor(3.0)) == 3
        assert distributed.furthest([1.0, 2.0], CPU) == [1.0, 2.0]


def test_each_process_of_a_machine_has_a_gpu_of_its_own(become, monkeypatch):
    become(1, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(torch.device("cuda")) == torch.device("cuda:1")
    assert own_device(CPU) == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="1 GPUs on this machine; allowed are 1 to 1"):
        own_device(torch.device("cuda"))


def test_a_gpu_named_by_its_number_is_the_one_that_pinned_memory_belongs_to(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:1"):
        with distributed.joined(torch.device(name)):
            pass
    assert chosen == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("device", "error", "leaves"),
    [
        ("cuda", None, True),
        ("cuda", StopRequested(), True),
        ("cuda", UserError("disk full"), False),
        ("cuda", KeyboardInterrupt(), False),
        ("cpu", UserError("disk full"), True),
    ],
)
def test_a_process_that_fails_alone_does_not_wait_for_the_others_on_gpus(
    become, monkeypatch, device, error, leaves
):
    destroyed = []
    become(0, 2)
    monkeypatch.setattr(distributed, "meet", lambda *_: None)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: destroyed.append(True))
    raised = nullcontext() if error is None else pytest.raises(type(error))
    with raised, distributed.joined(torch.device(device)):
        if error is not None:
            raise error
    assert destroyed == [True] * leaves


@pytest.mark.parametrize(
    ("rank", "expected"), [(0, ["encode", "exchange"]), (1, ["exchange", "encode"])]
)
def test_the_others_wait_for_rank_0_in_an_exchange_of_its_device(
    become, monkeypatch, rank, expected
):
    def exchange(_values: list[float], device: torch.device) -> None:
        assert device == gpu
        done.append("exchange")

    gpu, done = torch.device("cuda", rank), []
    become(rank, 2)
    monkeypatch.setattr(distributed, "furthest", exchange)
    with distributed.main_first(gpu):
        done.append("encode")
    assert done == expected


def test_each_process_encodes_on_its_own_gpu(config, become, monkeypatch):
    def cached(_vqgan, _data, _split, _cache, device):
        devices.append(device)
        return np.zeros((1, 2, 16), np.uint16)

    devices: list[torch.device] = []
    become(1, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device_module, "pick_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr(stage_2, "cached_tokens", cached)
    load_tokens(config, Compute.of(config).device)
    assert devices == [torch.device("cuda:1")] * 2


@pytest.mark.parametrize("loss_on", ["all", "hidden"])
@pytest.mark.parametrize("images", [7, 2])
def test_shares_add_up_to_the_mean_over_the_whole_batch(
    config, changed, become, monkeypatch, loss_on, images
):
    # 3 processes: with 7 images they have 3, 2 and 2, with 2 images the last has none
    config = changed(config, {"masking.loss_on": loss_on})
    tokens = np.zeros((images, 2, 16), np.uint16)
    trainer = TransformerTrainer(
        config, Tokens(tokens, tokens, torch.zeros(16, 8), "theirs"), Compute.of(config)
    )
    trainer.world = 3
    token_ids = torch.arange(images * 16).view(images, 16)
    token_mask = torch.rand(images, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    value = torch.rand(images * 16, generator=torch.Generator().manual_seed(1))  # of each token
    found, seen = 0.0, []
    for rank in range(3):
        become(rank, 3)
        batch = TokenBatch(token_ids, token_ids, token_mask)
        own, weight = trainer._own_share(batch)
        own_ids, own_mask = own.targets, own.token_mask
        scored = own_ids if loss_on == "all" else own_ids[own_mask]
        found += float(weight) * value[scored].mean().item()
        seen += own_ids.flatten().tolist() if weight else []
    scored = token_ids if loss_on == "all" else token_ids[token_mask]
    assert found == pytest.approx(value[scored].mean().item())
    assert sorted(seen) == list(range(images * 16)), "every image once"


@pytest.mark.parametrize("loss_on", ["all", "hidden"])
@pytest.mark.parametrize("images", [7, 2])
def test_of_images_with_holes_each_process_fills_its_own_which_weigh_as_in_one_batch(
    config, changed, become, monkeypatch, loss_on, images
):
    keys = {"masking.loss_on": loss_on, "masking.hole_share": 0.5, "training.batch_size": 7}
    config = changed(config, {**keys, "transformer.conditioning": "pixels"})
    tokens = load_tokens(config, CPU)
    trainer = TransformerTrainer(config, tokens, Compute.of(config))
    whole = trainer.token_batches(torch.arange(images), 0, 0)
    trainer.world, trainer.image_count = 3, images
    scored = whole.scored(loss_on)
    monkeypatch.setattr(distributed, "total", lambda _own: scored)
    for rank in range(3):
        become(rank, 3)
        own, weight = trainer._own_share(trainer.token_batches(torch.arange(images), 0, 0))
        expected = whole.rows(slice(rank, None, 3) if rank < images else slice(1))
        for found, wanted in zip(own, expected, strict=True):
            assert torch.equal(found, wanted)
        share = expected.scored(loss_on) / scored
        assert float(weight) == (pytest.approx(share.item()) if rank < images else 0.0)


def test_gradients_are_exchanged_at_the_last_batch_of_a_group_alone(
    config, changed, become, monkeypatch
):
    become(0, 1)
    config = changed(config, {"training.accumulate": 3})
    tokens = np.zeros((7 * 4, 2, 16), np.uint16)  # 7 batches: groups of 3, 3 and 1
    trainer = TransformerTrainer(
        config, Tokens(tokens, tokens, torch.zeros(16, 8), "theirs"), Compute.of(config)
    )
    kept_apart = []

    class Watched(torch.nn.Module):
        """Stands in for DistributedDataParallel."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *batch: torch.Tensor) -> torch.Tensor:
            return self.inner(*batch)

        @contextmanager
        def no_sync(self):
            kept_apart.append(trainer.position.batch)
            yield

    trainer.objective, trainer.world = Watched(trainer.objective), 2
    trainer.shares_batches = False  # as where there are several processes
    for _ in range(7):
        trainer.accumulate(trainer.token_batches(torch.arange(4), 0, trainer.position.batch))
    assert kept_apart == [0, 1, 3, 4]


def test_only_the_main_process_continues_with_the_summed_losses_of_all(config, monkeypatch, become):
    tokens = np.zeros((8, 2, 16), np.uint16)
    data = Tokens(tokens, tokens, torch.zeros(16, 8), "theirs")
    trainer = TransformerTrainer(config, data, Compute.of(config))
    trainer.position.batch, trainer.position.sums = 2, {"loss": torch.tensor(3.0)}
    state = trainer.state_dict()
    found = []
    for rank in (0, 1):
        become(rank, 2)
        trainer.load_state_dict(state)
        found.append(trainer.means())
    assert found == [{"loss": 1.5}, {"loss": 0.0}]


def test_a_search_is_not_for_torchrun(become, monkeypatch, capsys):
    become(0, 2)
    monkeypatch.setattr(sys, "argv", ["training_transformer.py", "--lr-search"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "training_transformer.py"))["main"]()
    assert left.value.code == 2
    assert "--lr-search runs in one process" in capsys.readouterr().err


@pytest.fixture
def in_two_processes(in_copies, tmp_path) -> Callable[[str, Config], str]:
    """Train in two processes; what they printed."""

    def train(script: str, config: Config) -> str:
        save_config(config, tmp_path / "config.yml")
        ends = in_copies(ROOT / script, "--config", tmp_path / "config.yml")
        assert [end.code for end in ends] == [0, 0], ends
        return "".join(end.out for end in ends)

    return train


def movement(state: dict, start: dict, part: str) -> torch.Tensor:
    """All that a training changed in a part, as one vector; codes and counts left out."""
    names = [name for name in start[part] if "codebook" not in name and name != "n_averaged"]
    return torch.cat([(state[part][name] - start[part][name]).flatten() for name in names])


SEEING = {"transformer.conditioning": "pixels", "masking.hole_share": 0.5}


@pytest.mark.parametrize("keys", [{}, pytest.param(SEEING, marks=pytest.mark.long)])
def test_two_processes_end_with_the_weights_of_one_with_the_same_global_batch(
    config, changed, tmp_path, in_two_processes, keys
):
    config = changed(config, keys)
    section = config.tokenizer.model_copy(update={"weights": config.tokenizer_weights})
    alone = config.model_copy(update={"run": tmp_path / "alone", "tokenizer": section})
    train_transformer(alone, resume=False)
    shared = changed(config, {"training.batch_size": 2})
    said = in_two_processes("training_transformer.py", shared)
    folders = [c.run / "transformer" for c in (alone, shared)]
    states = [load_state(folder / "state.pt") for folder in folders]
    for part in ("transformer", "averaged"):
        for name, weight in states[0][part].items():
            torch.testing.assert_close(states[1][part][name], weight, rtol=0, atol=1e-5)
    weights = [load_file(folder / "transformer.safetensors") for folder in folders]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-5)
    losses = [[row["train_loss"] for row in read_rows(f / "log.jsonl")] for f in folders]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert [row["epoch"] for row in read_rows(folders[1] / "log.jsonl")] == [1, 2], "one writes"
    assert said.count("last weights") == 1
    assert states[1]["settings"] == states[0]["settings"], "either may go on with the other's run"


@pytest.mark.parametrize("codebook", ["ema", pytest.param("loss", marks=pytest.mark.long)])
def test_two_processes_make_the_tokenizer_of_one_with_the_same_global_batch(
    config, changed, tmp_path, in_two_processes, codebook
):
    # Three steps; the last batch has 3 images, two for one process and one for the other. Weights
    # are compared as a whole: AdamW turns gradients that are nothing but rounding into whole steps.
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 0.001, "warmup_steps": 1}
    settings |= {"codebook": codebook, "codebook_decay": 0.5, "perceptual_size": 32}
    settings |= {"adversarial_weight": 0.5, "adversarial_start": 0.0}
    alone = changed(config, {f"tokenizer.training.{k}": v for k, v in settings.items()})
    shared = changed(alone, {"tokenizer.training.batch_size": 2, "run": tmp_path / "shared"})
    train_tokenizer(alone, resume=False, restart=True)
    said = in_two_processes("training_vqgan.py", shared)
    one, two = (load_state(c.run / "tokenizer" / "state.pt") for c in (alone, shared))
    pictures = torch.zeros(11, 3, 16, 16, dtype=torch.uint8)
    start = TokenizerTrainer(alone, pictures, pictures, Compute.of(alone)).state_dict()
    for part in ("vqgan", "averaged", "discriminator"):
        found, expected = (movement(state, start, part) for state in (two, one))
        assert (found - expected).norm() < 2e-3 * expected.norm(), part
    for name, value in one["codebook_averages"].items():
        torch.testing.assert_close(two["codebook_averages"][name], value, rtol=1e-4, atol=1e-4)
    (row,), (expected,) = (read_rows(c.run / "tokenizer" / "log.jsonl") for c in (shared, alone))
    for name in ("loss", "perceptual", "adversarial", "discriminator", "commitment", "psnr"):
        assert row[name] == pytest.approx(expected[name], rel=1e-4), name
    assert said.count("last weights") == 1
    assert two["settings"] == one["settings"], "either may go on with the other's run"


def test_rows_of_all_processes_come_back_in_the_order_of_the_batch(monkeypatch, become):
    rows, gathered = torch.arange(10).view(5, 2), []

    def gather(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        gathered.append(own)
        for rank, part in enumerate(parts):
            share = rows[rank::3]
            part.zero_()
            part[: len(share)] = share

    become(2, 3)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "all_gather", gather)
    assert torch.equal(distributed.all_rows(rows[2::3], 5), rows)
    assert gathered[0].tolist() == [[4, 5], [0, 0]], "padded to the largest share"
