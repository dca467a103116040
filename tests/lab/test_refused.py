"""A program in a checkpoint never runs, wherever a checkpoint is read."""

from __future__ import annotations

import argparse
import os
import pickle
import tarfile
import zipfile
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
    assert left.err.splitlines()[-1].startswith("error: bad.pt: contains more than tensors")
    assert "mkdir" in left.err


@pytest.mark.parametrize("stage", ["transformer", "tokenizer"])
def test_a_program_in_a_training_state_does_not_run(tiny, call, weights, stage):
    mark = tiny / "mark"
    torch.save({"position": Hostile(mark)}, weights.run / stage / "state.pt")
    script = {"transformer": "training_transformer.py", "tokenizer": "training_vqgan.py"}[stage]
    left = call(f"python {script} --config tiny.yml --resume")
    assert not mark.exists()
    assert left.code == 2
    assert "state.pt: contains more than tensors and is not opened" in left.err


@pytest.mark.parametrize("content", [argparse.Namespace(), {"model": argparse.Namespace()}])
@pytest.mark.parametrize("zipped", [True, False])
def test_an_object_in_place_of_weights_is_refused_with_the_cure(tiny, call, content, zipped):
    torch.save(content, "bad.pt", _use_new_zipfile_serialization=zipped)
    said = call("python -m utils.weights.import_lab bad.pt --config tiny.yml --out ours").err
    assert "contains more than tensors and is not opened (it asks for argparse.Namespace)" in said
    assert "save it again: torch.save(model.state_dict()" in said


@pytest.mark.parametrize("function", ["builtins.eval", "posix.system", "builtins.getattr"])
def test_a_function_of_python_or_the_system_is_refused_next_to_weights(tiny, call, function):
    module, name = function.split(".")
    state = pickle.dumps({"pos_emb": 1}, 2)[:-1]
    Path("bad.pt").write_bytes(state + f"c{module}\n{name}\n.".encode())
    said = call("python -m utils.weights.import_lab bad.pt --config tiny.yml --out ours").err
    assert f"contains more than tensors and is not opened (it asks for {function}" in said or (
        f"is not opened (it asks for {name})" in said
    )


def test_a_pickle_of_a_newer_protocol_is_refused_with_the_cure(tiny, call):
    Path("bad.pt").write_bytes(pickle.dumps({"pos_emb": argparse.Namespace()}))
    said = call("python -m utils.weights.import_lab bad.pt --config tiny.yml --out ours").err
    assert "is a pickle of a newer protocol and is not opened; save it again: torch.save(" in said


def test_archives_of_weights_are_named_and_what_to_do_with_them(tiny, call):
    command = "python -m utils.weights.import_lab {} --config tiny.yml --out ours"
    torch.save({"pos_emb": torch.zeros(2)}, "a.pt")
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write("a.pt", "hw/a.pt")
    with tarfile.open("a.tgz", "w:gz") as archive:
        archive.add("a.pt", "hw/a.pt")
    for name in ("a.zip", "a.tgz"):
        said = call(command.format(name)).err
        assert said == (
            f"error: {name}: is an archive that contains hw/a.pt; unpack it and name these files\n"
        )
    with zipfile.ZipFile("jit.pt", "w") as archive:
        for name in ("version", "data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"jit/{name}", b"3\n")
    said = call(command.format("jit.pt")).err
    assert "jit.pt: is a TorchScript program, which is not opened; save it again" in said
    Path("folder").mkdir()
    said = call(command.format("folder")).err
    assert "folder: is not a file but a folder; name the files in it" in said


def test_random_bytes_are_called_damaged(tiny, call):
    Path("bad.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    said = call("python -m utils.weights.import_lab bad.pt --config tiny.yml --out ours").err
    assert said == "error: bad.pt: damaged or no weights file\n"


@pytest.mark.parametrize("letter", "RGNtseaubQ")  # instructions of a pickle that lacks their data
def test_text_is_called_no_weights_file_whatever_its_first_letter(tiny, call, letter):
    Path("bad.pt").write_text(f"{letter}epository not found\n")
    said = call("python -m utils.weights.import_lab bad.pt --config tiny.yml --out ours").err
    assert said.startswith("error: bad.pt: damaged or no weights file")
    assert len(said.splitlines()) == 1


def test_tensors_of_another_network_are_named_though_settings_lie_next_to_them(tiny, call):
    torch.save({"conv1.weight": torch.zeros(2, 2), "args": argparse.Namespace()}, "other.pt")
    said = call("python -m utils.weights.import_lab other.pt --config tiny.yml --out ours").err
    assert "other.pt: 1 unexpected keys: conv1.weight; known are a lab tokenizer" in said
