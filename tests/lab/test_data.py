"""The lab's folders and flags, untouched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_reference import LabTransformer, fill_randomly
from PIL import Image

from config.errors import UserError
from config.loading import load_config, save_config
from utils.data.datasets import InpaintingSet
from utils.inpainting.job import inpaint_set
from utils.weights.store import load_transformer

# Folders


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("truth", ["csv", "folder"])
def test_the_labs_layout_is_read_as_it_is(lab_data, suffix, truth):
    folder = lab_data(3, suffix, truth)
    job = InpaintingSet(folder)
    assert [item.name for item in job] == [f"image_{i:03d}.{suffix}" for i in range(3)]
    for index, item in enumerate(job):
        mask = np.asarray(Image.open(folder / "mask64" / f"mask_{index:03d}.png"))
        assert (item.hole == (mask == 0)).all(), "255 is known, 0 is a hole"
        assert item.hole.sum() == 20 * 17
        train = np.asarray(Image.open(folder / "train" / f"image_{index:05d}.{suffix}"))
        difference = np.abs(job.ground_truth(index).astype(int) - train)
        assert difference.mean() < (1 if suffix == "png" else 8)


def test_results_lead_to_the_rows_of_the_csv(lab_data, weights, changed, tmp_path):
    from fid.inputs import Settings, resolve_inputs

    folder = lab_data(2)
    shown = {"data.image_size": 64, "transformer.num_tokens": 256}
    config = changed(weights, shown)
    network = LabTransformer(16, 4, 2, 32, 256, 16, "report")
    path = tmp_path / "transformer.pt"
    torch.save(fill_randomly(network, 0).state_dict(), path)
    config = changed(config, {"transformer.weights": path})
    inpaint_set(config, InpaintingSet(folder), tmp_path)
    found = resolve_inputs(Settings(str(tmp_path / "test_results")))
    rows = np.loadtxt(folder / "test_gt.csv", delimiter=",", skiprows=1).astype(int)
    assert (found.reference.pixels(1).ravel() == rows[1]).all()


# Flags


@pytest.fixture
def tiny(weights, tmp_path, monkeypatch):
    """A config file of a run with a tokenizer, in the present folder; returns its config."""
    monkeypatch.chdir(tmp_path)
    save_config(weights, tmp_path / "tiny.yml")
    return weights


TRAIN = "python training_transformer.py --MaskGitConfig tiny.yml"


@pytest.mark.usefixtures("quick")
def test_the_labs_training_flags_set_their_keys(tiny, call, tmp_path):
    for split, other in (("train", "a"), ("val", "b")):
        (tiny.data.root / split).rename(tmp_path / other)
    left = call(
        f"{TRAIN} --train_d_path a --val_d_path b --accum-grad 3 --save-per-epoch 2 --epochs 2 "
        "--learning-rate 0.002 --batch-size 4 --device cpu --run other",
        *("--tokenizer", tiny.tokenizer_weights),
    )
    assert left.code == 0, left.err
    used = load_config("other/transformer/config.yml")
    training = used.training
    assert (training.accumulate, training.checkpoint_every, training.epochs) == (3, 2, 2)
    assert (training.learning_rate, training.batch_size, used.device) == (0.002, 4, "cpu")
    assert (str(used.data.train), str(used.data.val)) == ("a", "b")
    state = torch.load("other/transformer/state.pt", weights_only=True)
    assert state["position"]["step"] == 2  # 11 images in 3 batches, one group of 3 an epoch


@pytest.mark.usefixtures("quick")
def test_training_starts_from_the_named_epoch_or_not_at_all(tiny, call, stop_after):
    missing = call(f"{TRAIN} --start-from-epoch 1")
    assert "asked for a checkpoint after epoch 1; there is none" in missing.err
    stop_after(4)  # in the second epoch, of 3 steps
    assert call(f"{TRAIN} --start-from-epoch 0").code == 130
    wrong = call(f"{TRAIN} --start-from-epoch 2")
    assert (wrong.code, "it is from epoch 1" in wrong.err) == (2, True)
    stop_after(10**6)
    assert call(f"{TRAIN} --start-from-epoch 1").code == 0
    assert len((tiny.run / "transformer" / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("flag", ["--transformer", "--load-transformer-ckpt-path"])
def test_training_starts_from_a_lab_transformer(tiny, call, flag):
    lab = fill_randomly(LabTransformer(16, 4, 2, 32, 16, 16, "separate"), 0)
    torch.save(lab.state_dict(), "ckpt.pt")
    left = call(f"{TRAIN} {flag} ckpt.pt --run more --epochs 1 --learning-rate 1e-9",
                *("--tokenizer", tiny.tokenizer_weights))  # fmt: skip
    assert left.code == 0, left.err
    used = load_config("more/transformer/config.yml")
    assert used.transformer.qkv_bias
    assert used.transformer.weights is None, "a run's own weights are what it trains"
    trained = load_transformer(used.transformer_weights, used.transformer)
    assert trained.config.qkv_bias
    indices = torch.randint(17, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(trained(indices), lab(indices), rtol=1e-4, atol=1e-4)


def test_a_search_does_not_pretend_to_use_a_start(tiny, call):
    left = call(f"{TRAIN} --transformer ckpt.pt --lr-search")
    assert left.code == 2
    assert "--lr-search trains fresh networks" in left.err


@pytest.mark.usefixtures("quick")
def test_the_flags_of_the_wild_train(tiny, call):
    left = call(
        f"{TRAIN} --num_workers 4 --partial=0.5 --lr 0.002 --accum_grad 3 --ckpt-interval 2 "
        "--checkpoint_path other --gamma-type COSINE --warmup-steps 0 --weight_decay 0.1 "
        "--warmup-epochs 2 --save-every-step --batch_size 4 --epochs 1",
        *("--tokenizer", tiny.tokenizer_weights),
    )
    assert left.code == 0, left.err
    for flag in ("--num_workers", "--partial", "--warmup-epochs", "--save-every-step"):
        assert left.err.count(f"note: {flag} is ignored: ") == 1
    used = load_config("other/transformer/config.yml")
    training = used.training
    assert (training.accumulate, training.checkpoint_every, training.batch_size) == (3, 2, 4)
    assert (training.learning_rate, training.warmup_steps) == (0.002, 0)
    assert training.weight_decay == 0.1
    assert used.masking.mask_schedule == "cosine"


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--sweet-spot -1", "sweet_spot", None),
        ("--sweet_spot=-1", "sweet_spot", None),
        ("--mask-func Cosine", "mask_schedule", "cosine"),
        ("--mask_func 0", "mask_schedule", "cosine"),
        ("--gamma-type SQUARE", "mask_schedule", "square"),
    ],
)
def test_the_flags_of_the_wild_repair(lab_data, changed, weights, call, tmp_path, monkeypatch,
                                      flags, key, value):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shown = {"decoding.sweet_spot": 2, "decoding.mask_schedule": "linear"}
    save_config(changed(weights, shown), tmp_path / "tiny.yml")
    (weights.data.root / "masked_image").symlink_to(weights.data.root / "val")
    (weights.data.root / "mask64").mkdir()
    for index in range(6):
        mask = np.full((16, 16), 255, np.uint8)
        mask[4:9, 4:9] = 0
        Image.fromarray(mask).save(weights.data.root / f"mask64/mask_{index}.png")
    left = call(
        f"python inpainting.py --config tiny.yml --predicted-path p/test_results "
        f"--mask-threshold 128 --num-workers 2 {flags}"
    )
    manifest = json.loads((tmp_path / "p/test_results/manifest.json").read_text())
    assert left.code == 0, left.err
    assert manifest["config"]["decoding"][key] == value


TRAINING = "training_transformer.py"
WILD = [  # script, flags as others write them, what they set here
    (TRAINING, "--out_d_path o", {"run": "o"}),
    (TRAINING, "--save-root o/last_ckpt.pt", {"run": "o"}),
    (TRAINING, "--checkpoint-path ./ckpts/last.pth", {"run": "ckpts"}),
    (TRAINING, "--output_path o --lr 1e-4", {"run": "o", "training.learning_rate": 1e-4}),
    (TRAINING, "--mask_func 0 --partial 0.5", {"masking.mask_schedule": "cosine"}),
    (TRAINING, "--gamma_type Linear", {"masking.mask_schedule": "linear"}),
    (TRAINING, "--ckpt_interval 3", {"training.checkpoint_every": 3}),
    (TRAINING, "--warmup_steps 5", {"training.warmup_steps": 5}),
    (TRAINING, "--weight_decay 0.1", {"training.weight_decay": 0.1}),
    (TRAINING, "--train-d-path a --val_d_path b", {"data.train": "a", "data.val": "b"}),
    ("training_vqgan.py", "--save_root o --num-workers 4", {"run": "o"}),
    ("inpainting.py", "--sweet_spot -1 --num_workers 2", {"decoding.sweet_spot": None}),
    ("inpainting.py", "--mask_func COSINE", {"decoding.mask_schedule": "cosine"}),
    ("inpainting.py", "--load_transformer_ckpt_path t.pt", {"transformer.weights": "t.pt"}),
    (
        "inpainting.py",
        "--checkpoint_path ./ckpts/last.pt",
        {"transformer.weights": "./ckpts/last.pt"},
    ),
    ("inpainting.py", "--out_d_path o --batch_size 1 --partial=1", {"decoding.batch_size": 1}),
    ("inpainting.py", "--save-root o --total_iter 8", {"decoding.total_iter": 8}),
]


@pytest.mark.parametrize(("script", "flags", "keys"), WILD, ids=[f"{s} {f}" for s, f, _ in WILD])
def test_a_flag_of_the_wild_sets_its_key(call, monkeypatch, tmp_path, script, flags, keys):
    from config import loading

    found = {}

    def stop(_path: Path, overrides: list) -> None:
        found.update((key, value) for key, value, *_ in overrides)
        raise UserError("stopped here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_config", stop)
    assert call(f"python {script} {flags}").err.endswith("error: stopped here\n")
    assert found == keys


@pytest.mark.usefixtures("quick")
def test_the_checkpoint_that_training_was_given_is_what_repairs(tiny, call, monkeypatch):
    flags = f"--tokenizer {tiny.tokenizer_weights} --epochs 1 --checkpoint-path ckpts/last.pt"
    assert call(f"{TRAIN} {flags}").code == 0
    from inpainting import build_parser

    for flag in ("--checkpoint-path", "--load-transformer-ckpt-path"):
        for path in ("ckpts/last.pt", "ckpts"):
            found = build_parser().parse_args([flag, path]).transformer
            assert found == "ckpts/transformer/transformer.safetensors"
    Path("ckpts/last.pt").write_bytes(b"one of theirs")
    assert build_parser().parse_args([flag, "ckpts/last.pt"]).transformer == "ckpts/last.pt"
    monkeypatch.setenv("HOME", str(Path.cwd()))
    found = build_parser().parse_args([flag, "~/ckpts/last.pt"]).transformer
    assert found == "~/ckpts/last.pt"


LAB_FORM = """
MODEL_NAME: MaskGit
model_param:
  VQ_Configs:
    VQ_config_path: models/VQGAN/config/VQGAN.yml
    VQ_CKPT_path: models/VQGAN/checkpoints/VQGAN.pt
  num_image_tokens: 256
  num_codebook_vectors: 512
  choice_temperature: 3.5
  gamma_type: Square
  Transformer_param:
    num_image_tokens: 256
    num_codebook_vectors: 512
    dim: 96
    n_layers: 3
    hidden_dim: 80
"""


def test_a_config_in_the_labs_own_form_is_translated(tmp_path):
    path = tmp_path / "lab.yml"
    path.write_text(LAB_FORM)
    config = load_config(path, ["transformer.num_heads=8"])
    assert str(config.tokenizer.weights) == "models/VQGAN/checkpoints/VQGAN.pt"
    network = config.transformer
    assert (network.dim, network.num_layers, network.mlp_dim, network.num_heads) == (96, 3, 80, 8)
    assert config.tokenizer.codebook_size == network.codebook_size == 512
    assert (config.decoding.choice_temperature, config.decoding.mask_schedule) == (3.5, "square")
    assert (config.precision, config.masking.ratio_per) == ("fp32", "batch")
    path.write_text(LAB_FORM + "    depth: 3\n")
    with pytest.raises(UserError, match=r"lab.yml: model_param.Transformer_param.depth is not"):
        load_config(path)


def test_settings_of_training_within_the_labs_form_are_read_or_left_out(tmp_path):
    path = tmp_path / "lab.yml"
    training = "{epochs: 50, batch_size: 128, learning_rate: 1e-4, save_per_epoch: 0, notes: null}"
    path.write_text(f"{LAB_FORM}    num_heads: 12\n  training_param: {training}\n")
    config = load_config(path)
    found = config.training
    assert (found.epochs, found.batch_size, found.learning_rate) == (50, 128, 1e-4)
    assert (found.checkpoint_every, config.transformer.num_heads) == (1, 12)


@pytest.mark.parametrize("written", ["0", '"0"', "COSINE"])
def test_the_labs_number_of_the_cosine_is_read(tmp_path, written):
    path = tmp_path / "lab.yml"
    path.write_text(LAB_FORM.replace("Square", written))
    assert load_config(path).decoding.mask_schedule == "cosine"


def test_a_schedule_that_is_null_is_one_line(tmp_path):
    path = tmp_path / "lab.yml"
    path.write_text(LAB_FORM.replace("Square", "null"))
    with pytest.raises(UserError, match=r"lab.yml: model_param.gamma_type is null; name a sch"):
        load_config(path)


def test_our_sections_next_to_the_labs_form_are_not_ignored(tmp_path):
    path = tmp_path / "lab.yml"
    path.write_text(f"training: {{epochs: 3}}\nseed: 1\n{LAB_FORM}")
    with pytest.raises(UserError, match=r"lab.yml:1: training, seed next to model_param, .* --set"):
        load_config(path)


# Masks as people have them


def one_job(folder: Path, mask: np.ndarray, suffix: str = "png", **saving) -> Path:
    """A folder with one picture and its mask."""
    for part in ("masked_image", "mask64"):
        (folder / part).mkdir(parents=True)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "masked_image/test_0.png")
    Image.fromarray(mask).save(folder / f"mask64/mask_000.{suffix}", **saving)
    return folder


@pytest.fixture
def square() -> np.ndarray:
    """255 with a hole of 0."""
    mask = np.full((64, 64), 255, np.uint8)
    mask[20:40, 24:48] = 0
    return mask


def test_a_jpeg_mask_is_split_in_the_middle_and_says_so_once(tmp_path, square, capsys, monkeypatch):
    monkeypatch.setattr("utils.io.messages._told", set())
    job = InpaintingSet(one_job(tmp_path, square, "jpg", quality=40))
    assert (job[0].hole == (square == 0)).all()
    assert (job[0].hole == (square == 0)).all()
    said = capsys.readouterr().err
    assert said.count("split at 128 (--mask-threshold)") == 1


def test_a_threshold_of_255_reads_as_the_lab_does(tmp_path, square):
    square[0, :3] = (254, 128, 127)
    folder = one_job(tmp_path, square)
    assert InpaintingSet(folder)[0].hole[0, :4].tolist() == [False, False, True, False]
    strict = InpaintingSet(folder, mask_threshold=255)
    assert strict[0].hole[0, :4].tolist() == [True, True, True, False]


def test_a_mask_of_0_and_1_is_recognised(tmp_path, square, capsys, monkeypatch):
    monkeypatch.setattr("utils.io.messages._told", set())
    job = InpaintingSet(one_job(tmp_path, square // 255))
    assert (job[0].hole == (square == 0)).all()
    assert "a mask of 0 and 1" in capsys.readouterr().err


def test_the_hole_may_be_in_the_pictures_alpha(tmp_path, square):
    pixels = np.dstack([np.full((64, 64, 3), 90, np.uint8), square])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (InpaintingSet(tmp_path, Path("alpha"))[0].hole == (square == 0)).all()
    Image.fromarray(pixels[..., :3]).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has no alpha channel"):
        InpaintingSet(tmp_path, Path("alpha"))[0]


def test_pixels_that_white_is_mixed_into_are_holes_unless_a_threshold_is_given(
    tmp_path, square, capsys, monkeypatch
):
    monkeypatch.setattr("utils.io.messages._told", set())
    square[0, :3] = (254, 128, 127)  # a soft eraser
    Image.fromarray(np.dstack([np.full((64, 64, 3), 90, np.uint8), square])).save(
        tmp_path / "a.png"
    )
    item = InpaintingSet(tmp_path, Path("alpha"))[0]
    assert item.hole[0, :4].tolist() == [True, True, True, False]
    assert (item.image[~item.hole] == 90).all()
    assert "in masks, split at 255 (--mask-threshold)" in capsys.readouterr().err
    given = InpaintingSet(tmp_path, Path("alpha"), mask_threshold=128)[0]
    assert given.hole[0, :4].tolist() == [False, False, True, False]


# Files where people have them


def test_masks_and_table_may_lie_next_to_the_data(lab_data, capsys):
    folder = lab_data(2)
    (folder / "mask64").rename(folder.parent / "mask64")
    (folder.parent / "faster-pytorch-fid").mkdir()
    (folder / "test_gt.csv").rename(folder.parent / "faster-pytorch-fid/test_gt.csv")
    job = InpaintingSet(folder)
    assert job[1].hole.sum() == 20 * 17
    assert job.ground_truth(1) is not None
    assert "has no mask64/" in capsys.readouterr().err


def test_surplus_masks_and_rows_are_left_out_with_a_note(lab_data, capsys):
    folder = lab_data(3)
    expected = InpaintingSet(folder).ground_truth(1)
    (folder / "masked_image/image_002.png").unlink()
    job = InpaintingSet(folder)
    assert [path.name for path in job.masks] == ["mask_000.png", "mask_001.png"]
    assert (job.ground_truth(1) == expected).all()
    said = capsys.readouterr().err
    assert "1 masks more than images are left out" in said
    assert "1 rows more than images are left out" in said


def test_one_picture_takes_its_own_mask_out_of_a_folder(lab_data, capsys):
    folder = lab_data(3)
    job = InpaintingSet(folder / "masked_image/image_001.png", folder / "mask64")
    assert [path.name for path in job.masks] == ["mask_001.png"]
    assert "2 masks more than images are left out" in capsys.readouterr().err
    other = (folder / "masked_image/image_001.png").rename(folder / "photo.png")
    with pytest.raises(UserError, match=r"photo\.png.*\(--pair-by order pairs sorted names"):
        InpaintingSet(other, folder / "mask64")
    job = InpaintingSet(other, folder / "mask64", pair_by_order=True)
    assert [path.name for path in job.masks] == ["mask_000.png"]


NAMED_APART = [
    ("cat.png", "cat_mask.png"),
    ("my dog.jpg", "mask-my dog.png"),
    ("tree_1.png", "tree_1_hole.png"),
    ("house_masked.png", "House.Mask.png"),
]


@pytest.mark.parametrize("one_folder", [True, False])
def test_a_mask_may_be_named_after_its_picture(tmp_path, square, one_folder):
    images, masks = tmp_path / "images", tmp_path / ("images" if one_folder else "masks")
    for folder in {images, masks}:
        folder.mkdir()
    for index, (image, mask) in enumerate(NAMED_APART):
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(images / image)
        Image.fromarray(np.roll(square, index, axis=0)).save(masks / mask)
    job = InpaintingSet(images, masks)
    assert {(a.name, b.name) for a, b in zip(job.images, job.masks, strict=True)} == {*NAMED_APART}
    (masks / "cat_mask.png").rename(masks / "mask_dog.png")
    with pytest.raises(UserError, match="do not pair by the number at the end or by name"):
        InpaintingSet(images, masks)


def test_a_folder_of_pictures_and_masks_needs_their_names(tmp_path, square):
    Image.fromarray(square).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"name masks so, e\.g\. photo_mask\.png"):
        InpaintingSet(tmp_path, tmp_path)


def test_sorted_order_pairs_whatever_the_names_are(lab_data):
    folder = lab_data(2)
    for index, name in enumerate(("x", "y")):
        (folder / f"mask64/mask_00{index}.png").rename(folder / f"mask64/{name}7.png")
    with pytest.raises(UserError, match="do not pair"):
        InpaintingSet(folder)
    job = InpaintingSet(folder, pair_by_order=True)
    assert [path.name for path in job.masks] == ["x7.png", "y7.png"]


def test_a_pandas_index_column_is_no_pixel(lab_data):
    folder = lab_data(2)
    expected = InpaintingSet(folder).ground_truth(1)
    lines = (folder / "test_gt.csv").read_text().splitlines()
    starts = ["", *range(len(lines) - 1)]
    rows = [f"{start},{line}" for start, line in zip(starts, lines, strict=True)]
    (folder / "test_gt.csv").write_text("\n".join(rows))
    assert (InpaintingSet(folder).ground_truth(1) == expected).all()


def test_a_table_without_a_header_is_refused(lab_data):
    folder = lab_data(2)
    lines = (folder / "test_gt.csv").read_text().splitlines()
    (folder / "test_gt.csv").write_text("\n".join(lines[1:]))
    with pytest.raises(UserError, match="has no header; its first row would be lost"):
        InpaintingSet(folder)
