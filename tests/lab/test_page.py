"""Every command of docs/from-the-lab.md runs as it stands, with tiny files and at full size."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from utils.cli import IGNORED_FLAGS, LAB_FLAGS
from utils.weights.lab_naming import VARIANTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from-the-lab.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.strip().splitlines()
]
TINY_PRESET = {
    "precision": "fp32",
    "tokenizer": {
        "encoder_channels": [32, 32, 32, 32, 64, 64],
        "decoder_channels": [32, 32, 32, 64, 64],
        "latent_dim": 16,
        "codebook_size": 40,
    },
    "transformer": {"dim": 64, "num_layers": 2, "mlp_dim": 96, "codebook_size": 40},
}


@pytest.fixture
def handlers(solution, lab_data, save, tmp_path, monkeypatch):
    """A folder with everything that the page takes for granted, which becomes the present one."""

    def lay_out(variant: str, full: bool, images: int) -> Path:
        monkeypatch.chdir(tmp_path)
        lab = solution(variant, full)
        save(lab.vqgan.state_dict(), "VQGAN.pt")
        save(lab.transformer.state_dict(), "transformer.pt")
        save(lab.state_dict(), "maskgit.pt")
        Path("solutions").mkdir()
        save(lab.transformer.state_dict(), "solutions/ann.pt")
        lab_data(images)
        Path("config").mkdir()
        if full:
            shutil.copy(ROOT / "config" / "MaskGit.yml", "config")
        else:
            Path("config/MaskGit.yml").write_text(yaml.safe_dump(TINY_PRESET))
        return tmp_path

    return lay_out


@pytest.mark.usefixtures("quick")
def test_every_command_of_the_page_runs(handlers, call, solution):
    folder = handlers("separate", full=False, images=3)
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        left = call(command)
        assert left.code == 0, f"{command}\n{left.err}"
        if "fid_score" in command:
            assert re.search(r"\d+\.\d+", left.out)
    for output in ("test_results", "runs/direct/test_results", "runs/whole/test_results"):
        assert Image.open(folder / output / "image_002.png").size == (64, 64)
    pairs = [
        [
            Image.open(folder / output / f"test_results/image_{i:03d}.png").tobytes()
            for i in range(3)
        ]
        for output in (".", "runs/whole")
    ]
    assert pairs[0] == pairs[1], "converted or taken directly, the same pictures"
    told = json.loads((folder / "runs/direct/test_results/manifest.json").read_text())
    assert told["ground_truth"].endswith("cat_face/test_gt.csv")
    assert (told["config"]["decoding"]["sweet_spot"], len(told["images"])) == (8, 3)
    state = torch.load("handed-in/transformer.pt", weights_only=True)
    solution("separate").transformer.load_state_dict(state, strict=True)
    assert state.keys() == torch.load("transformer.pt", weights_only=True).keys()


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_importing_repairing_and_scoring_run_at_full_size(handlers, call, variant):
    handlers(variant, full=True, images=2)
    for command in COMMANDS[1:4]:
        left = call(command)
        assert left.code == 0, f"{command}\n{left.err}"
    assert re.search(r"\d+\.\d+", left.out)


def test_the_page_names_every_flag_that_is_accepted():
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    for flag, theirs in LAB_FLAGS.items():
        assert f"`{flag}`" in table, flag
        for name in theirs:
            assert f"`{name}`" in table, name
    for flag in IGNORED_FLAGS:
        assert f"`{flag}`" in table, flag
