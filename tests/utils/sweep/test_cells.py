"""A sweep on tiny networks: shared work gives the very pictures of inpainting, nothing twice."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sweep as sweep_script
import utils.io.files
import utils.sweep.cells
import utils.sweep.decode
import utils.sweep.page
import utils.sweep.tables
from config.errors import MachineError, UserError
from config.loading import save_config
from config.schema import Config
from utils.data.datasets import InpaintingSet
from utils.inpainting.inpainter import Inpainter
from utils.io.files import read_rows
from utils.scoring import FeatureDistance, hole_psnr
from utils.sweep.cells import Sweep, open_sweep
from utils.sweep.decode import CellDecoder
from utils.sweep.page import Pictures, save_study_page
from utils.sweep.plan import Cell, Study, plan
from utils.sweep.tables import save_table, table_of

SEEDS = 2


class MeanDifference:
    """Stands in for the Frechet distance, which needs a real network."""

    name = "mean difference"

    def __init__(self, targets: torch.Tensor, device: torch.device, scoring: object) -> None:
        self.targets = targets

    def __call__(self, images: torch.Tensor) -> float:
        return (images.float() - self.targets.float()).abs().mean().item()


@pytest.fixture
def run(weights: Config, job: Path, tmp_path: Path, changed, monkeypatch) -> Callable[..., Sweep]:
    """Run some studies on the job's images; returns the sweep when it is done."""
    monkeypatch.setattr(utils.io.files.os, "fsync", lambda number: None)
    monkeypatch.setattr(utils.sweep.decode, "FeatureDistance", MeanDifference)

    def go(*words: str, values: dict | None = None, seeds: int = SEEDS, images=None) -> Sweep:
        config = changed(weights, values or {})
        with open_sweep(
            config, InpaintingSet(job), tmp_path / "sweep", seeds=seeds, images=images
        ) as sweep:
            sweep.computed = sweep.run(plan(config, words))
            return sweep

    return go


def test_no_thread_waits_for_another_while_a_cpu_decodes_and_scores(run, monkeypatch):
    threads, before = [], torch.get_num_threads()

    class Witness(MeanDifference):
        def __call__(self, images: torch.Tensor) -> float:
            threads.append(torch.get_num_threads())
            return super().__call__(images)

    monkeypatch.setattr(utils.sweep.decode, "FeatureDistance", Witness)
    torch.set_num_threads(2)
    try:
        run("sweet-spot", seeds=1)
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}


def written(sweep: Sweep, study: Study, tmp_path: Path) -> Path:
    folder, table = tmp_path / "sweep" / study.name, table_of(sweep, study)
    save_table(folder, table)
    save_study_page(folder, sweep, table)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweep of `report` is kept."""
    return tmp_path_factory.mktemp("kept") / "sweep"


@pytest.fixture
def report(run, tmp_path, kept) -> Path:
    """The folder of a finished schedules study, computed for the first test only."""
    if not kept.exists():
        sweep = run("schedules")
        written(sweep, plan(sweep.config, ["schedules"])[0], tmp_path)
        (tmp_path / "sweep").rename(kept)
    shutil.copytree(kept, tmp_path / "sweep")
    return tmp_path / "sweep" / "schedules"


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that went through the transformer, call by call."""
    import models.maskgit

    seen, plain = [], models.maskgit.MaskGIT.logits_of

    def counted(self, masked_ids, token_mask):
        seen.append(len(masked_ids))
        return plain(self, masked_ids, token_mask)

    monkeypatch.setattr(models.maskgit.MaskGIT, "logits_of", counted)
    return seen


def test_every_cell_scores_the_pictures_that_inpainting_makes(run, job, changed, weights):
    sweep, dataset = run("sweet-spot"), InpaintingSet(job)
    items = [dataset[index] for index in range(len(dataset))]
    truths = np.stack([dataset.ground_truth(index) for index in range(len(dataset))])
    images, holes = (np.stack([getattr(i, part) for i in items]) for part in ("image", "hole"))
    (study,) = plan(sweep.config, ["sweet-spot"])
    for setting in study.settings:
        for seed, row in zip(sweep.seeds, sweep.rows_of(setting.decoding), strict=True):
            values = {f"decoding.{k}": v for k, v in setting.decoding.model_dump().items()}
            inpainter = Inpainter(changed(weights, {**values, "seed": seed}))
            token_ids = inpainter.trace(images, holes, [item.index for item in items]).token_ids[-1]
            expected = inpainter.pixels(token_ids, images, holes)
            difference = np.abs(expected.astype(float) - truths).mean()
            assert row["score"] == pytest.approx(difference, rel=1e-6)
            errors = [hole_psnr(*of) for of in zip(expected, truths, holes, strict=True)]
            assert row["hole_psnr"] == pytest.approx(errors, abs=1e-3)


def test_sweet_spots_and_first_steps_are_decoded_once(run, forwards):
    run("sweet-spot", values={"decoding.rule": "listing"}, seeds=1)
    # two rules: at most ten steps each, and one first step in common
    assert 0 < len(forwards) <= 1 + 2 * 9


def test_first_logits_of_all_starts_together_stay_within_their_bound(run, tmp_path, monkeypatch):
    (tmp_path / "g.yml").write_text("hole_fill: [grey, mean]\ntotal_iter: [2, 3]\n")

    def kept_by_start(bound: int) -> tuple[list[int], list[float]]:
        monkeypatch.setattr(utils.sweep.decode, "FIRST_LOGITS_BYTES", bound)
        shutil.rmtree(tmp_path / "sweep", ignore_errors=True)
        sweep = run("grid", str(tmp_path / "g.yml"), seeds=1)
        fills = sweep.decoder.started.values()
        kept = [sum(one.first.nbytes for one in fill if one.first is not None) for fill in fills]
        return kept, sorted(row["score"] for row in sweep.rows.values())

    (first, second), scores = kept_by_start(1 << 30)
    assert first > 0
    assert second > 0
    assert kept_by_start(first + second) == ([first, second], scores)
    assert kept_by_start(first + second - 1) == ([first, 0], scores)


def test_a_second_run_computes_nothing_and_loads_no_network(run, forwards, monkeypatch):
    assert run("schedules").computed == 2 * 3 * SEEDS
    forwards.clear()
    monkeypatch.setattr(utils.sweep.decode, "Inpainter", None)
    monkeypatch.setattr(utils.sweep.decode, "FeatureDistance", None)
    assert run("schedules").computed == 0
    assert forwards == []


def test_another_study_computes_only_what_the_first_has_not(run):
    run("iterations")
    assert run("sweet-spot").computed == 2 * 3 * SEEDS  # 8 of 10 is there
    assert run("schedules", seeds=SEEDS + 1).computed == 2 * (2 * SEEDS + 3)  # cosine is there


@pytest.mark.usefixtures("report")
def test_an_interrupted_sweep_goes_on_to_the_same_results(run, tmp_path, monkeypatch):
    whole = {key: row["score"] for key, row in run("schedules").rows.items()}
    for path in (tmp_path / "sweep").rglob("*.*"):
        if path.is_file():
            path.unlink()
    score, done = CellDecoder.score, []

    def interrupted(self, cell, token_ids):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(cell)
        return score(self, cell, token_ids)

    monkeypatch.setattr(CellDecoder, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("schedules")
    monkeypatch.setattr(CellDecoder, "score", score)
    sweep = run("schedules")
    assert sweep.computed == 12 - 5
    assert {key: row["score"] for key, row in sweep.rows.items()} == whole


@pytest.mark.usefixtures("report")
def test_a_line_cut_off_by_a_crash_is_computed_again(run, tmp_path):
    path = tmp_path / "sweep" / "cells-0.jsonl"
    path.write_text(path.read_text()[:-9])
    assert run("schedules").computed == 1
    assert run("schedules").computed == 0


def test_a_finished_cell_is_added_without_writing_the_others_again(run, tmp_path, monkeypatch):
    written, write = [], utils.sweep.cells.write_text
    monkeypatch.setattr(
        utils.sweep.cells, "write_text", lambda *of: written.append(of[0].name) or write(*of)
    )
    run("schedules")
    assert written == ["cells-0.jsonl"], "at the start, perhaps without a line cut off"
    assert len(read_rows(tmp_path / "sweep" / "cells-0.jsonl")) == 2 * 3 * SEEDS


def test_other_weights_images_or_features_are_other_cells(run, weights, job):
    run("schedules", seeds=1)
    assert run("schedules", seeds=1, images=4).computed == 6
    assert run("schedules", seeds=1, values={"scoring.features": "inception"}).computed == 6
    content = bytearray(weights.transformer_weights.read_bytes())
    content[-1] ^= 1
    weights.transformer_weights.write_bytes(content)
    assert run("schedules", seeds=1).computed == 6


@pytest.mark.usefixtures("report")
def test_two_processes_share_the_cells_and_make_the_same_results(run, tmp_path, monkeypatch):
    whole = {key: row["score"] for key, row in run("schedules").rows.items()}
    (tmp_path / "sweep" / "cells-0.jsonl").unlink()
    monkeypatch.setattr(Sweep, "_wait_for_all", lambda self: None)
    monkeypatch.setattr(utils.sweep.cells, "world_size", lambda: 2)
    monkeypatch.setattr(utils.sweep.cells, "rank", lambda: 1)
    run("schedules")
    monkeypatch.undo()
    monkeypatch.setattr(utils.sweep.decode, "FeatureDistance", MeanDifference)
    assert len(read_rows(tmp_path / "sweep" / "cells-1.jsonl")) == 6
    assert run("schedules").computed == 6
    assert {key: row["score"] for key, row in run("schedules").rows.items()} == whole


def test_processes_wait_for_each_other_before_they_write_and_before_they_read(run, monkeypatch):
    waits = []  # reading a sum waits for it, also on a GPU, where asking for it does not

    def total(_: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(item=lambda: waits.append("all"))

    monkeypatch.setattr(utils.sweep.cells, "total", total)
    monkeypatch.setattr(Sweep, "_finish", lambda *_: waits.append("write"))
    monkeypatch.setattr(Sweep, "read_all", lambda _: waits.append("read"))
    run("schedules", seeds=1)
    assert waits == ["read", "all", *["write"] * 6, "all", "read"]


def test_a_trace_ends_with_the_tokens_that_were_scored(run):
    sweep = run("sweet-spot", seeds=1)
    (study,) = plan(sweep.config, ["sweet-spot"])
    longest = study.settings[-1].decoding
    token_ids, hidden = sweep.trace(Cell(longest, sweep.seeds[0]))
    assert (token_ids.shape, hidden.shape) == ((10, 5, 16), (10, 5, 16))
    assert hidden[0].any()
    assert not hidden[-1].any()


# What it leaves


def test_the_csv_has_a_line_for_each_setting_and_seed(report):
    rows = list(csv.DictReader((report / "results.csv").open()))
    assert len(rows) == 2 * 3 * SEEDS
    first = [row for row in rows if (row["row"], row["column"]) == ("listing", "cosine")]
    scores = [float(row["score"]) for row in first]
    assert float(first[0]["mean"]) == pytest.approx(np.mean(scores), rel=1e-5)
    assert float(first[0]["spread"]) == pytest.approx(np.std(scores, ddof=1), rel=1e-4)
    assert {row["mask_schedule"] for row in rows} == {"cosine", "linear", "square"}


def test_the_tables_have_the_reports_form_and_one_best_in_each_row(report):
    lines = (report / "table.md").read_text().splitlines()
    assert "| rule / schedule | cosine | linear | square |" in lines
    (listing,) = [line for line in lines if line.startswith("| listing |")]
    assert len(re.findall(r"\*\*[\d.]+ ± [\d.]+\*\*", listing)) == 1
    latex = (report / "table.tex").read_text()
    assert r"rule / schedule & cosine & linear & square \\" in latex
    assert latex.count(r"\textbf{") == 2
    assert r"$\pm$" in latex


def test_the_page_asks_for_nothing_outside_itself(report):
    page = (report / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) >= 1 + 3 * 3 + 2 * 6  # plot, comparisons, figures
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|@import|url\(|fetch\(", re.sub(r"<pre>.*?</pre>", "", page))


def test_the_page_compares_every_image_that_has_a_hole(run, tmp_path, monkeypatch):
    shown, plain = [], Pictures.compared
    monkeypatch.setattr(Pictures, "compared", lambda *of: shown.append(of[2]) or plain(*of))
    sweep = run("schedules", seeds=1)
    written(sweep, plan(sweep.config, ["schedules"])[0], tmp_path)
    assert shown[0] == [1, 2, 3, 4], "image 0 has none"


def test_the_replay_holds_every_setting_and_image_with_its_hidden_counts(report):
    page = (report / "report.html").read_text()
    text = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)[1]
    replay = json.loads(text)
    assert len(replay["settings"]) == 6
    assert len(replay["strips"]) == 6 * len(replay["images"])
    for frames, masks, counts in replay["strips"]:
        assert frames.startswith("data:image/png;base64,")
        assert masks.startswith("data:image/png;base64,")
        assert (len(counts), counts[-1]) == (10, 0)


def test_the_page_of_a_second_run_decodes_nothing(run, tmp_path, monkeypatch):
    pages = []
    for _ in range(2):
        sweep = run("schedules", seeds=1)
        folder = written(sweep, plan(sweep.config, ["schedules"])[0], tmp_path)
        pages.append((folder / "report.html").read_bytes())
        monkeypatch.setattr(utils.sweep.decode, "Inpainter", None)
    assert pages[0] == pages[1]


def test_the_command_writes_everything_and_says_where(weights, job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(utils.sweep.decode, "FeatureDistance", MeanDifference)
    save_config(weights, tmp_path / "c.yml")
    (tmp_path / "g.yml").write_text("total_iter: [1, 2]\n")
    flags = ["--config", tmp_path / "c.yml", "--data", job, "--seeds", "1", "--images", "3"]
    words = [tmp_path / "g.yml", *flags]
    for said in ("2 cells computed", "0 cells computed"):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "grid", *map(str, words)])
        sweep_script.main()
        assert said in capsys.readouterr().out
    names = {path.name for path in (weights.run / "sweep" / "grid-g").iterdir()}
    assert names == {"results.csv", "table.md", "table.tex", "scores.png", "report.html"}


def test_every_study_is_saved_before_one_is_printed(weights, job, tmp_path, monkeypatch):
    def gone(*_: object) -> None:
        raise BrokenPipeError

    def save(folder: Path, _table: object) -> None:
        folder.mkdir()
        (folder / utils.sweep.tables.MARKDOWN).touch()
        saved.append(folder)

    saved, ready = [], SimpleNamespace(run=lambda studies: 0)
    monkeypatch.setattr(utils.sweep.cells, "open_sweep", lambda *_, **__: nullcontext(ready))
    monkeypatch.setattr(utils.sweep.tables, "table_of", lambda sweep, study: study)
    monkeypatch.setattr(utils.sweep.tables, "save_table", save)
    monkeypatch.setattr(utils.sweep.page, "save_study_page", lambda folder, *_: folder / "page")
    monkeypatch.setattr(sweep_script, "print", gone, raising=False)
    words = ["sweep.py", "schedules", "sweet-spot", "--data", job, "--output", tmp_path]
    save_config(weights, tmp_path / "c.yml")
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--config", str(tmp_path / "c.yml")])
    with pytest.raises(BrokenPipeError):
        sweep_script.main()
    assert saved == [tmp_path / "schedules", tmp_path / "sweet-spot"]


# Mistakes


def test_a_job_without_truth_is_refused(weights, job, tmp_path):
    (job / "test").rename(job / "elsewhere")
    with (
        pytest.raises(UserError, match="job: has no ground truth to score against"),
        open_sweep(weights, InpaintingSet(job), tmp_path / "s", seeds=1, images=None),
    ):
        pass


def test_a_set_of_one_image_is_refused(run, job):
    for part in ("masked_image", "mask64", "test"):
        for path in sorted((job / part).iterdir())[1:]:
            path.unlink()
    with pytest.raises(UserError, match=r"masked_image: one image; a score needs 2 or more"):
        run("schedules")


def test_more_images_than_there_are_and_other_sizes_are_refused(weights, job, tmp_path, changed):
    def opening(config: Config, images: int | None) -> None:
        with open_sweep(config, InpaintingSet(job), tmp_path / "s", seeds=1, images=images):
            pass

    with pytest.raises(UserError, match="--images 6: allowed are 2 to 5"):
        opening(weights, 6)
    other = changed(weights, {"data.image_size": 32, "transformer.num_tokens": 64})
    with pytest.raises(UserError, match="16 x 16 pixels; a sweep needs 32 x 32"):
        opening(other, None)


def test_fid_without_its_weights_is_one_line(monkeypatch, changed, config):
    targets = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    scoring = changed(config, {"scoring.features": "inception"}).scoring
    monkeypatch.setattr("fid.features.find_weights", lambda _, folder: raise_score_error())
    with pytest.raises(UserError, match="no network"):
        FeatureDistance(targets, torch.device("cpu"), scoring)


def raise_score_error() -> None:
    from fid.files import ScoreError

    raise ScoreError("no network")


def test_a_trace_that_a_failing_disk_hides_is_not_taken_for_damaged(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    sweep = SimpleNamespace(trace_path=lambda cell: tmp_path / "a.npz")
    assert Sweep.trace(sweep, None) is None  # there is none
    (tmp_path / "a.npz").write_bytes(b"damaged")
    assert Sweep.trace(sweep, None) is None
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(MachineError, match=r"a.npz: cannot be read: Input/output error; it stays"):
        Sweep.trace(sweep, None)


def test_a_picture_that_a_failing_disk_hides_is_not_drawn_again(tmp_path, monkeypatch):
    def fail(path: Path) -> None:
        raise MachineError(f"{path}: cannot be read")

    sweep = SimpleNamespace(output=tmp_path, seeds=[0], fixed={}, inputs=None)
    monkeypatch.setattr("utils.sweep.page.load_rgb", fail)
    monkeypatch.setattr(Cell, "key", lambda *_: "key")
    with pytest.raises(MachineError, match=r"\.png: cannot be read"):
        Pictures(sweep).frames(SimpleNamespace(decoding=None), 0)
