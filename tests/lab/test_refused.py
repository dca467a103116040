"""A program in a checkpoint never runs, wherever a checkpoint is read."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch

from config.loading import save_config

pytestmark = pytest.mark.usefixtures("quick")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def tiny(weights, tmp_path, monkeypatch) -> Path:
    """A config file of a run with weights, in the present folder."""
    monkeypatch.chdir(tmp_path)
    save_config(weights, tmp_path / "tiny.yml")
    for part in ("masked_image", "mask64"):
        (weights.data.root / part).symlink_to(weights.data.root / "val")
    return tmp_path


ZIP, PLAIN = torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))


@pytest.mark.parametrize("write", [ZIP, PLAIN], ids=["zip", "pickle"])
@pytest.mark.parametrize(
    "command",
    [
        "python -m utils.weights.import_lab bad.pt --config tiny.yml --out ours",
        "python -m utils.weights.export_lab --config tiny.yml --transformer bad.pt --out theirs",
        "python inpainting.py --config tiny.yml --transformer bad.pt",
        "python inpainting.py --config tiny.yml --tokenizer bad.pt",
        "python training_transformer.py --config tiny.yml --tokenizer bad.pt",
        "python training_transformer.py --config tiny.yml --transformer bad.pt",
    ],
)
def test_a_program_among_the_weights_does_not_run(tiny, call, command, write):
    mark = tiny / "mark"
    write({"quant_conv.bias": Hostile(mark)}, tiny / "bad.pt")
    left = call(command)
    assert not mark.exists()
    assert left.code == 2
    assert left.err.splitlines()[-1].startswith("error: bad.pt: holds more than tensors")
    assert "mkdir" in left.err


@pytest.mark.parametrize("stage", ["transformer", "tokenizer"])
def test_a_program_in_a_training_state_does_not_run(tiny, call, weights, stage):
    mark = tiny / "mark"
    torch.save({"position": Hostile(mark)}, weights.run / stage / "state.pt")
    script = {"transformer": "training_transformer.py", "tokenizer": "training_vqgan.py"}[stage]
    left = call(f"python {script} --config tiny.yml --resume")
    assert not mark.exists()
    assert left.code == 2
    assert "state.pt: holds more than tensors and is not opened" in left.err


def test_harmless_extras_that_are_no_tensors_are_named(tiny, call):
    torch.save({"model": {"pos_emb": torch.zeros(2)}, "args": argparse.Namespace()}, "bad.pt")
    said = call("python -m utils.weights.import_lab bad.pt --config tiny.yml --out ours").err
    assert "holds more than tensors and is not opened (it asks for argparse.Namespace)" in said


def test_random_bytes_are_called_damaged(tiny, call):
    Path("bad.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    said = call("python -m utils.weights.import_lab bad.pt --config tiny.yml --out ours").err
    assert said == "error: bad.pt: damaged or no weights file\n"
