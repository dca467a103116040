"""Which of a solution's files are taken for its networks, its config and its results."""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lab_reference import LabMaskGIT
from safetensors.torch import load_file

from config.errors import UserError
from config.schema import Config
from utils.grading.solution import Solution, progress
from utils.weights.import_lab import import_lab
from utils.weights.lab_file import read_lab_file
from utils.weights.lab_naming import Settled

STATE = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}


@pytest.fixture
def lab(solution) -> LabMaskGIT:
    """A small whole model."""
    return solution("separate")


@pytest.fixture
def handed_in(tmp_path) -> Callable[[dict], Path]:
    """A solution's folder with such files: handed_in({"best.pt": weights})."""

    def write(files: dict[str, object]) -> Path:
        for name, content in files.items():
            path = tmp_path / "solution" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
        return tmp_path / "solution"

    return write


def taken(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The names of the files that a folder's networks are taken from, and the notes."""
    notes: list[str] = []
    ours, foreign = Solution.of(folder).networks(Settled(heads=16), notes)
    return {kind: path.name for kind, path in (ours | foreign).items()}, notes


def test_the_best_transformer_is_graded_with_the_tokenizer_of_a_whole_checkpoint(
    lab, handed_in, tmp_path
):
    best = dict(lab.transformer.state_dict())
    best["bias"] = best["bias"] + 1
    whole = {"model": lab.state_dict(), "optimizer": STATE, "epoch": 150}
    folder = handed_in({"best_val.pth": best, "checkpoint_epoch_150.pth": whole})
    found, _ = taken(folder)
    assert found == {"transformer": "best_val.pth", "tokenizer": "checkpoint_epoch_150.pth"}
    choice = {kind: folder / name for kind, name in found.items()}
    _, lines, *_ = import_lab(sorted(choice.values()), tmp_path / "ours", Config(), choice=choice)
    assert f"  its transformer is left out, as that of {folder / 'best_val.pth'} is taken" in lines
    written = load_file(tmp_path / "ours/transformer.safetensors")
    torch.testing.assert_close(written["bias"], best["bias"], rtol=0, atol=0)


def test_a_transformer_in_our_form_is_taken_before_that_of_a_whole_checkpoint(lab, handed_in, save):
    folder = handed_in({"whole.pt": lab.state_dict(), "transformer.pt": {}})
    import_lab([save(lab.transformer.state_dict(), "theirs.pt")], folder, Config())
    found, _ = taken(folder)
    assert found == {"transformer": "transformer.safetensors", "tokenizer": "whole.pt"}


def test_a_state_dict_next_to_a_tokenizer_in_our_form_is_no_state_of_a_training(
    lab, handed_in, save
):
    folder = handed_in({"state_dict.pt": lab.transformer.state_dict()})
    import_lab([save(lab.vqgan.state_dict(), "theirs.pt")], folder, Config())
    found, _ = taken(folder)
    assert found == {"transformer": "state_dict.pt", "tokenizer": "vqgan.safetensors"}


def test_of_two_best_files_that_by_validation_is_taken_and_else_the_last_with_a_note(
    lab, handed_in
):
    weights = lab.transformer.state_dict()
    folder = handed_in({"a/best_train.pth": weights, "a/best_val.pth": weights})
    assert taken(folder) == ({"transformer": "best_val.pth"}, [])
    (folder / "a/best_val.pth").rename(folder / "a/run10_best.pth")
    (folder / "a/best_train.pth").rename(folder / "a/run9_best.pth")
    found, notes = taken(folder)
    assert found == {"transformer": "run10_best.pth"}
    other = f"by its name {folder / 'a/run9_best.pth'} is equally good"
    assert notes == [f"{folder / 'a/run10_best.pth'}: its transformer is taken; {other}"]


def test_tensors_of_something_else_are_left_out_with_a_note(lab, handed_in):
    losses = {"train": torch.zeros(3), "val": torch.zeros(3)}
    vit = {"cls_token": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(6, 2)}
    efficientnet = {"conv_stem.weight": torch.zeros(1), "blocks.0.0.bn1.weight": torch.zeros(2)}
    weights = lab.transformer.state_dict()
    folder = handed_in(
        {"transformer.pt": weights, "a.pt": losses, "vit.pth": vit, "z.pth": efficientnet}
    )
    found, notes = taken(folder)
    assert found == {"transformer": "transformer.pt"}
    assert [note.partition(" unexpected keys: ")[0] for note in notes] == [
        f"left out: {folder / name}: 2" for name in ("z.pth", "vit.pth", "a.pt")
    ]


def test_a_torchscript_program_next_to_a_transformer_is_left_out_with_a_note(lab, handed_in):
    folder = handed_in({"transformer.pt": lab.transformer.state_dict()})
    with zipfile.ZipFile(folder / "scripted.pt", "w") as archive:
        for name in ("version", "data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"scripted/{name}", b"3\n")
    found, notes = taken(folder)
    assert found == {"transformer": "transformer.pt"}
    reason = f"{folder / 'scripted.pt'}: is a TorchScript program, which is not opened"
    assert [note.partition("; ")[0] for note in notes] == [f"left out: {reason}"]
    (folder / "transformer.pt").unlink()
    with pytest.raises(UserError, match=reason):
        taken(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("10_1.23", "20_0.98", "30_0.81"),
        ("3c_1.0512", "a0_0.9788", "d0_0.9433"),
        ("14_1.3", "1e_1.2", "28_1.1", "100_0.9"),
        ("epoch=3-loss=1.99", "epoch=20-loss=0.5"),
        ("epoch_3_1.99", "epoch_20_0.5"),
        ("transformer-1.99-3", "transformer-0.5-20"),
    ],
)
def test_a_loss_at_the_end_of_a_name_is_no_epoch(names):
    found = [progress(Path(f"solution/checkpoints/{name}.pt")) for name in names]
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("name", "is_zip"), [("model_7.pth.tar", True), ("a.th", True), ("a.pkl", False)]
)
def test_checkpoints_of_other_suffixes_are_found_by_their_first_bytes(lab, handed_in, name, is_zip):
    folder, weights = handed_in({"state.pth": STATE}), lab.transformer.state_dict()
    torch.save(weights, folder / name, _use_new_zipfile_serialization=is_zip)
    for other in ("history.pkl", "data.tar", "notes.th"):
        (folder / other).write_bytes(pickle.dumps([1.0, 0.5]))
    assert taken(folder) == ({"transformer": name}, [])
    assert progress(Path("model_10.pth.tar")) > progress(Path("model_9.pth.tar"))


@pytest.mark.parametrize("other", ["checkpoint-500", "epoch_9"])
def test_a_folder_called_best_comes_before_one_of_an_epoch(lab, handed_in, other):
    weights = lab.transformer.state_dict()
    folder = handed_in({"best_model/model.bin": weights, f"{other}/model.bin": weights})
    ours, foreign = Solution.of(folder).networks(Settled(heads=16), [])
    assert ours | foreign == {"transformer": folder / "best_model/model.bin"}
    assert progress(Path("best/best.pt")) > progress(Path("best/epoch_9.pt"))


def test_losses_and_arguments_are_left_out_with_a_note_unless_there_is_nothing_else(lab, handed_in):
    folder = handed_in({"losses.pt": Namespace(lr=0.1), "VQGAN.pt": lab.vqgan.state_dict()})
    with pytest.raises(UserError, match=r"losses\.pt: contains more than tensors"):
        taken(folder)
    (folder / "image_0.png").touch()
    found, notes = taken(folder)
    assert "transformer" not in found
    assert "losses.pt: contains more than tensors" in notes[0]
    handed_in({"a.pt": lab.transformer.state_dict()})
    found, notes = taken(folder)
    assert found == {"tokenizer": "VQGAN.pt", "transformer": "a.pt"}
    assert "losses.pt: contains more than tensors" in notes[0]


def test_a_tar_archive_names_its_checkpoints_and_a_plain_pickle_what_it_asks_for(handed_in):
    folder = handed_in({"model.pth": {"pos_emb": torch.zeros(1)}})
    with tarfile.open(folder / "all.tar", "w") as archive:
        archive.add(folder / "model.pth", "hw/model.pth")
        archive.add(folder / "model.pth", "__MACOSX/hw/._a.pt")
    with pytest.raises(UserError, match=r"an archive that contains hw/model\.pth; unpack"):
        read_lab_file(folder / "all.tar")
    with (folder / "plain.pt").open("wb") as file:
        pickle.dump({"pos_emb": torch.zeros(1)}, file, 2)
    with pytest.raises(UserError, match=r"asks for torch\.storage.*save it again"):
        read_lab_file(folder / "plain.pt")


def test_equal_networks_in_one_file_count_as_one(lab, handed_in):
    weights = lab.transformer.state_dict()
    folder = handed_in({"a.pt": {"model": weights, "best": weights}})
    assert taken(folder) == ({"transformer": "a.pt"}, [])
    handed_in({"a.pt": {"model": weights, "best": weights | {"bias": weights["bias"] + 1}}})
    with pytest.raises(UserError, match="contains 2 transformers"):
        taken(folder)


def test_images_need_no_network_and_without_them_a_file_says_what_is_missing(lab, handed_in):
    folder = handed_in({"optimizer.pt": STATE})
    with pytest.raises(UserError, match=r"optimizer\.pt: expected a dictionary of tensors"):
        taken(folder)
    (folder / "image_0.png").touch()
    assert taken(folder) == ({}, [])
    (folder / "image_0.png").unlink()
    handed_in({"VQGAN.pt": lab.vqgan.state_dict()})
    assert taken(folder) == ({"tokenizer": "VQGAN.pt"}, [])
    with pytest.raises(
        UserError, match="solution: contains neither a transformer nor repaired images"
    ):
        Solution.of(folder).results(3)


STRANGERS = {  # path: content of a YAML file that is no config of a transformer
    "a/environment.yml": "name: lab\nchannels: [conda-forge]\n",
    "checkpoints/2025-01-01/train_args.yml": "device: cuda:0\nseed: 3\nrun: null\ndata: faces\n",
    "a/wandb/files/config.yaml": "device: {value: cuda}\ntraining: {value: {epochs: 3}}\n",
    "models/VQGAN/config/VQGAN.yml": "model_param: {latent_dim: 256, num_codebook_vectors: 9}\n",
    "a/list.yml": "[tokenizer]\n",
    "a/broken.yml": "decoding: [\n",
}


def test_a_config_is_told_from_other_yaml_files_by_its_sections(tmp_path):
    for name, text in STRANGERS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    base = Config()
    assert Solution.of(tmp_path).config(base, [], []) is base
    (tmp_path / "b.yml").write_text("decoding: {total_iter: 5}\n")
    assert Solution.of(tmp_path).config(base, [], []).decoding.total_iter == 5
    (tmp_path / "z.yml").write_text("model_param: {Transformer_param: {n_layers: 7}}\n")
    assert Solution.of(tmp_path).config(base, ["seed=2"], []).transformer.num_layers == 7


@pytest.mark.parametrize(
    "text",
    [
        "model_param: {Transformer_param: {n_heads: &n 8, n_layers: *n}}",
        "model_param: {Transformer_param: {n_heads: 8, n_heads: 8}}",
        "model_param: {transformer_param: {n_heads: 8}}",
        "Model_param: {Transformer_param: {n_heads: 8}}",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_config_in_the_labs_form_that_cannot_be_used_is_an_error(tmp_path, text, encoding):
    (tmp_path / "MaskGit.YML").write_text(text, encoding=encoding)
    with pytest.raises(UserError, match=r"MaskGit\.YML"):
        Solution.of(tmp_path).config(Config(), [], [])


def test_of_two_configs_in_the_labs_form_the_first_is_taken_with_a_note(tmp_path):
    for name, layers in {"a.YML": 7, "b.yml": 8}.items():
        text = f"model_param: {{Transformer_param: {{n_layers: {layers}}}}}"
        (tmp_path / name).write_text(text)
    notes = []
    assert Solution.of(tmp_path).config(Config(), [], notes).transformer.num_layers == 7
    assert notes == [f"{tmp_path / 'a.YML'}: this config is taken, not {tmp_path / 'b.yml'}"]


def with_images(folder: Path, counts: dict[str, int]) -> Solution:
    """A solution with so many images in its folders."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            (folder / name / f"image_{index}.png").touch()
    return Solution.of(folder)


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ({"cat_face/masked_image": 3, "cat_face/mask64": 3, "inpainting_results": 3}, -1),
        ({"cat_face/train": 3, "cat_face/val": 3, "cat_face/test": 3, "few": 2}, -1),
        ({"epoch_3/test_results": 2, "epoch_9/test_results": 3, "imga": 3}, 1),
        ({"imga": 3, "test_results": 2}, -1),
        ({"figures": 2, "out": 3}, -1),
    ],
)
def test_results_lie_in_test_results_or_a_folder_of_as_many_images(tmp_path, counts, chosen):
    results = with_images(tmp_path / "test", counts).results(3)
    assert results == tmp_path / "test" / list(counts)[chosen]


def test_a_solution_of_images_may_be_named_as_the_labs_data(tmp_path):
    assert with_images(tmp_path / "test", {".": 3}).results(3) == tmp_path / "test"


def test_results_in_several_folders_are_named_and_inputs_alone_are_none(tmp_path):
    names = ("cosine/test_results", "linear/test_results", "square/test_results")
    with pytest.raises(UserError, match=f"all: results may lie in {', '.join(names)}; keep one"):
        with_images(tmp_path / "all", dict.fromkeys(names, 3)).results(3)
    with pytest.raises(UserError, match="contains neither a transformer nor repaired images"):
        with_images(tmp_path / "data", {"cat_face/masked_image": 3}).results(3)
