"""Released weights are half as large and do the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from config.errors import UserError
from models.vqgan import VQGAN
from utils.inpainting.inpainter import Inpainter
from utils.training import release
from utils.training.release import release_tokenizer, release_transformer
from utils.training.transformer import train_transformer
from utils.weights.description import read_header
from utils.weights.store import load_tokenizer, load_transformer, save_weights

FILES = {"tokenizer": "vqgan.safetensors", "transformer": "transformer.safetensors"}


@pytest.mark.parametrize("part", release.PARTS)
def test_a_released_file_holds_the_runs_weights_in_half_precision(weights, tmp_path: Path, part):
    source = getattr(weights, f"{part}_weights")
    line = release.PARTS[part](weights, tmp_path)
    found, wanted = load_file(tmp_path / FILES[part]), load_file(source)
    assert line.startswith(f"{tmp_path / FILES[part]}: ")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == torch.float16
        torch.testing.assert_close(found[name].float(), value, rtol=1e-3, atol=1e-6)


def test_released_networks_load_like_any_other(weights, tmp_path: Path):
    for part in release.PARTS.values():
        part(weights, tmp_path)
    tokenizer = load_tokenizer(tmp_path / FILES["tokenizer"], weights.tokenizer)
    transformer = load_transformer(tmp_path / FILES["transformer"], weights.transformer)
    assert next(tokenizer.parameters()).dtype == torch.float32
    assert next(transformer.parameters()).dtype == torch.float32
    assert read_header(tmp_path / FILES["transformer"])["epoch"] == "1"


@pytest.mark.usefixtures("quick")
def test_a_released_tokenizer_still_belongs_to_the_runs_transformer(
    weights, changed, tmp_path: Path
):
    config = changed(weights, {"training.epochs": 1})
    vqgan = VQGAN(config.tokenizer)
    save_weights(config.tokenizer_weights, vqgan.state_dict(), vqgan.config, {})
    train_transformer(config, resume=False)
    release_tokenizer(config, tmp_path)
    Inpainter(changed(config, {"tokenizer.weights": tmp_path / FILES["tokenizer"]}))


@pytest.mark.parametrize(
    ("part", "limit", "unit"),
    [(release_tokenizer, "ALLOWED", "grey levels"), (release_transformer, "ALLOWED_LOSS", "loss")],
)
def test_what_half_precision_would_change_is_not_released(
    weights, tmp_path: Path, monkeypatch, part, limit, unit
):
    monkeypatch.setattr(release, limit, -1.0)
    with pytest.raises(UserError, match=rf"{unit}.*not released"):
        part(weights, tmp_path)
    assert not any((tmp_path / name).exists() for name in FILES.values())
