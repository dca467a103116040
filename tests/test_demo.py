"""`make demo`, the whole way, on a configuration small enough to take seconds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "tokenizer": {
        "encoder_channels": [8, 8, 8],
        "encoder_kernels": [1, 1],
        "encoder_blocks": 1,
        "downsample_after": [0, 1],
        "downsample_kernel": 2,
        "encoder_attention": False,
        "decoder_channels": [8, 8, 8],
        "decoder_blocks": 1,
        "upsample_after": [2, 1],
        "decoder_attention": False,
        "norm": "position",
        "latent_dim": 4,
        "codebook_size": 16,
        "training": {"epochs": 1, "warmup_steps": 0, "perceptual_size": 32},
    },
    "transformer": {
        "dim": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 16, "codebook_size": 16
    },
    "training": {"epochs": 1},
    "decoding": {"total_iter": 3, "composite": "hard"},
}  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STAGE_1 = "training_vqgan.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, copies: Callable) -> Path:
    """The run folder of a demo with everything else of it beside.

    Its scripts run in copies of this process, but for the first training, which is to import all.
    """
    place = tmp_path_factory.mktemp("demo")
    config = TINY | {"run": str(place / "run"), "data": {"root": str(place / "data")}}
    (place / "demo.yml").write_text(yaml.safe_dump(config))
    for line in make(place, "-n").splitlines():
        python, script, *arguments = shlex.split(line.replace("-m utils.report", "utils/report.py"))
        if python != f"{sys.prefix}/bin/python" or script == STAGE_1:
            subprocess.run(line, shell=True, cwd=ROOT, env=ENVIRONMENT, check=True)
            continue
        (end,) = copies(place, ROOT / script, *arguments, torchrun=False, count=1)
        assert end.code == 0, end.err
    return place / "run"


def make(place: Path, *flags: str) -> str:
    """Run `make demo` within this interpreter's environment and return what it printed."""
    variables = [f"ENV={sys.prefix}", f"RUN={place / 'run'}", f"DATA={place / 'data'}"]
    variables += [f"CONFIG={place / 'demo.yml'}", "SPLIT=--split 8 4 3"]
    variables += ["START_TOKENIZER=", "START_TRANSFORMER="]  # of another size than this network
    flags += ("--no-print-directory", "-o", f"{sys.prefix}/.maskgit")
    result = subprocess.run(
        ["make", "demo", *variables, *flags],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_report_is_one_page_that_needs_no_other_file(demo):
    page = (demo / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 3 + 3 + 6 + 1  # comparison, masks, steps, reconstructions; no curves
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)


def test_every_schedule_is_decoded_and_scored(demo):
    for schedule in ("cosine", "linear", "square"):
        names = sorted(path.name for path in (demo / schedule / "test_results").glob("*.png"))
        assert names == [f"image_{index:03d}.png" for index in range(3)]
        certificate = json.loads((demo / schedule / "score.json").read_text())
        assert certificate["score_name"] == "EfficientNet-Lite0 Frechet distance"
        assert certificate["predicted"]["n"] == certificate["reference"]["n"] == 3


def test_the_first_line_says_how_long_it_takes_where_nothing_is_there_yet(tmp_path):
    command = ["make", "-C", ROOT, "duration", f"RUN={tmp_path}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "minutes" in said
    (tmp_path / "report.html").touch()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "minutes" not in said


def test_a_second_call_reuses_what_is_there(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*") if path.is_file()}
    printed = make(demo.parent)
    assert "python" not in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before
