"""The lab's folders and flags, untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lab_reference import LabTransformer, fill_randomly
from PIL import Image

from config.loading import load_config, save_config
from utils.checkpoint import load_transformer
from utils.data import InpaintingSet
from utils.inpaint import inpaint_set

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
    from fid.inputs import resolve_inputs

    folder = lab_data(2)
    shown = {"data.image_size": 64, "transformer.num_tokens": 256}
    config = changed(weights, shown)
    network = LabTransformer(16, 4, 2, 32, 256, 16, "report")
    path = tmp_path / "transformer.pt"
    torch.save(fill_randomly(network, 0).state_dict(), path)
    config = changed(config, {"transformer.weights": path})
    inpaint_set(config, InpaintingSet(folder), tmp_path)
    found = resolve_inputs(str(tmp_path / "test_results"), None, None)
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
    assert (wrong.code, "it stands after epoch 1" in wrong.err) == (2, True)
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


@pytest.mark.parametrize("flag", ["--num_workers 4", "--partial 0.5"])
def test_flags_that_would_do_nothing_are_not_accepted(call, flag):
    left = call(f"python training_transformer.py {flag}")
    assert left.code == 2
    assert "unrecognized arguments" in left.err
