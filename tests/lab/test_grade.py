"""One command ranks solutions of every kind, and does only what is missing when run again."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fid import INTERRUPTED
from lab_reference import LabTransformer, fill_randomly
from PIL import Image

from config.errors import StopRequested
from config.loading import save_config
from utils.grading.solution import Solution


@pytest.fixture
def desk(lab_data, changed, weights, tmp_path, monkeypatch) -> Path:
    """A folder of five solutions, and a config of tiny networks on pictures of 64 x 64."""
    monkeypatch.chdir(tmp_path)
    lab_data(3)
    values = {"data.image_size": 64, "transformer.num_tokens": 256}
    values["tokenizer.weights"] = weights.tokenizer_weights
    save_config(changed(weights, values), tmp_path / "tiny.yml")
    solutions = tmp_path / "solutions"
    solutions.mkdir()
    separate, fused = (
        dict(fill_randomly(LabTransformer(16, 4, 2, 32, 256, 16, variant), 0).state_dict())
        for variant in ("separate", "fused")
    )
    torch.save(separate, solutions / "first.pt")
    (solutions / "second").mkdir()
    to_qkv = {key.replace("Attention.qkv", "attn.to_qkv"): v for key, v in fused.items()}
    to_qkv = {key.replace("Attention.proj", "attn.to_out"): v for key, v in to_qkv.items()}
    torch.save({"model_state": to_qkv, "epoch": 3}, solutions / "second/last.pt")
    names = {"query": "W_Q", "key": "W_K", "value": "W_V", "output_layer": "output"}
    third = separate
    for old, new in names.items():
        third = {
            key.replace(f"Attention.{old}.", f"Attention.{new}."): v for key, v in third.items()
        }
    torch.save({"state_dict": third, "all_loss": [1.0]}, solutions / "third.ckpt")
    rows = np.loadtxt("cat_face/test_gt.csv", delimiter=",", skiprows=1).astype(np.uint8)
    (solutions / "truth").mkdir()
    for index, row in enumerate(rows):
        Image.fromarray(row.reshape(64, 64, 3)).save(solutions / f"truth/test_{index}.png")
    (solutions / "broken.pt").write_bytes(b"not weights")
    return tmp_path


def ranked() -> dict[str, dict[str, str]]:
    """Rows of out/grades.csv by solution."""
    rows = csv.DictReader(Path("out/grades.csv").read_text().splitlines())
    return {row["solution"]: row for row in rows}


def test_five_solutions_are_ranked_and_one_that_fails_stops_no_other(desk, call):
    command = "python grade.py solutions --config tiny.yml --data cat_face --output out"
    left = call(command)
    assert left.code == 0, left.err
    rows = list(csv.DictReader(Path("out/grades.csv").read_text().splitlines()))
    assert rows[0]["solution"] == "truth"
    assert abs(float(rows[0]["score"])) < 1e-3
    assert {row["solution"] for row in rows[1:4]} == {"first.pt", "second", "third.ckpt"}
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", ""]
    assert "damaged or no weights file" in rows[4]["error"]
    scores = {row["solution"]: row["score"] for row in rows}
    assert scores["first.pt"] == scores["third.ckpt"], "one network under two naming schemes"
    for name in ("first.pt", "second", "third.ckpt", "truth"):
        assert Path(f"out/{name}/certificate.json").exists()
    page = Path("out/grades.html").read_text()
    assert page.count("<img") == 4 * 3
    assert "| 1 | truth |" in Path("out/grades.md").read_text()
    stamps = {p: p.stat().st_mtime_ns for p in Path("out").rglob("certificate.json")}
    shutil.rmtree("out/third.ckpt")
    assert call(command).code == 0
    again = {p: p.stat().st_mtime_ns for p in Path("out").rglob("certificate.json")}
    changed = [p.parent.name for p in stamps if stamps[p] != again[p]]
    assert changed == ["third.ckpt"]


def test_a_folder_without_solutions_is_refused(desk, call):
    Path("none").mkdir()
    for name in ("README.md", "Thumbs.db", "desktop.ini"):
        Path("none", name).touch()
    left = call("python grade.py none --config tiny.yml --data cat_face")
    assert (left.code, left.err) == (2, "error: none: contains no solution\n")


def test_a_solution_that_was_imported_before_is_graded_as_its_file_is(desk, call):
    importing = "python -m utils.weights.import_lab solutions/first.pt --config tiny.yml"
    assert call(f"{importing} --out solutions/imported").code == 0
    for name in ("broken.pt", "second", "third.ckpt", "truth"):
        place = Path("solutions", name)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == 0, left.err
    rows = list(csv.DictReader(Path("out/grades.csv").read_text().splitlines()))
    assert [row["solution"] for row in rows] == ["first.pt", "imported"]
    assert rows[0]["score"] == rows[1]["score"] != ""


def test_the_best_or_last_of_several_epochs_is_graded_and_no_optimizer(desk, call):
    for name in ("broken.pt", "truth"):
        place = Path("solutions", name)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    weights = torch.load("solutions/first.pt", weights_only=True)
    early = {key: value + 0.1 for key, value in weights.items()}
    for folder, names in {"many": ("epoch_3", "epoch_20"), "best": ("epoch_30", "best")}.items():
        Path("solutions", folder).mkdir()
        for name, kept in zip(names, (early, weights), strict=True):
            torch.save(kept, f"solutions/{folder}/{name}.pt")
        state = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
        torch.save(state, f"solutions/{folder}/optimizer.bin")
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == 0, left.err
    rows = ranked()
    assert {row["error"] for row in rows.values()} == {""}
    assert rows["many"]["weights"] == "epoch_20.pt"
    assert rows["best"]["weights"] == "best.pt"
    assert {rows[name]["score"] for name in ("many", "best")} == {rows["first.pt"]["score"]}


def test_graded_again_where_data_changed_or_results_are_gone(desk, call):
    for name in ("broken.pt", "first.pt", "third.ckpt"):
        Path("solutions", name).unlink()
    command = "python grade.py solutions --config tiny.yml --data cat_face --output out"
    assert call(command).code == 0
    before = ranked()["second"]["score"]
    shutil.rmtree("out/second/test_results")
    left = call(command)
    assert left.code == 0, left.err
    assert Path("out/second/test_results").is_dir()
    mask = next(Path("cat_face/mask64").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    assert call(command).code == 0
    assert ranked()["second"]["score"] != before


def test_results_in_inner_folders_and_configs_of_others_do_no_harm(desk, call):
    for name in ("broken.pt", "third.ckpt", "second"):
        place = Path("solutions", name)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    Path("solutions/handed/lab").mkdir(parents=True)
    Path("solutions/truth").rename("solutions/handed/lab/results")
    Path("solutions/handed/lab/figures").mkdir()
    Image.new("RGB", (9, 9)).save("solutions/handed/lab/figures/loss.png")
    Path("solutions/mine").mkdir()
    Path("solutions/first.pt").rename("solutions/mine/model.pt")
    Path("solutions/mine/environment.yml").write_text("name: lab\nchannels: [conda-forge]\n")
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == 0, left.err
    rows = ranked()
    assert {row["error"] for row in rows.values()} == {""}
    assert abs(float(rows["handed"]["score"])) < 1e-3


def test_a_run_of_ours_is_graded_by_its_final_weights(desk, call):
    importing = "python -m utils.weights.import_lab solutions/first.pt --config tiny.yml"
    assert call(f"{importing} --out solutions/run").code == 0
    for path in Path("solutions").iterdir():
        if path.name not in ("run", "first.pt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copy("solutions/run/transformer.safetensors", "solutions/run/best.safetensors")
    weights = torch.load("solutions/first.pt", weights_only=True)
    torch.save({"averaged": weights, "transformer": weights}, "solutions/run/state.pt")
    Path("solutions/first.pt").unlink()
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == 0, left.err
    (row,) = ranked().values()
    assert (row["error"], row["weights"]) == ("", "transformer.safetensors")


def test_a_damaged_epoch_does_not_matter_next_to_a_better_one(desk, call):
    for path in Path("solutions").iterdir():
        if path.name not in ("first.pt", "broken.pt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    Path("solutions/many").mkdir()
    Path("solutions/first.pt").rename("solutions/many/best.pt")
    Path("solutions/broken.pt").rename("solutions/many/epoch_3.pt")
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == 0, left.err
    (row,) = ranked().values()
    assert (row["error"], row["weights"]) == ("", "best.pt")


def test_graded_again_where_names_make_another_epoch_the_best(desk, call):
    for path in Path("solutions").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.name != "first.pt" and path.unlink()
    many = Path("solutions/many")
    many.mkdir()
    shutil.copy("solutions/first.pt", many / "a_best.pt")
    Path("solutions/first.pt").rename(many / "b.pt")
    command = "python grade.py solutions --config tiny.yml --data cat_face --output out"
    assert call(command).code == 0
    assert ranked()["many"]["weights"] == "a_best.pt"
    (many / "a_best.pt").rename(many / "a.pt")
    (many / "b.pt").rename(many / "b_best.pt")
    assert call(command).code == 0
    assert ranked()["many"]["weights"] == "b_best.pt"


def test_odd_solutions_get_their_line_and_the_results_among_them_are_none(desk, call):
    for path in Path("solutions").iterdir():
        shutil.rmtree(path) if path.name == "second" else path.name != "truth" and path.unlink()
    pictures = sorted(Path("solutions/truth").iterdir())
    Path("solutions/empty").mkdir()
    Path("solutions/gone").symlink_to("nowhere")
    os.mkfifo("solutions/pipe")
    Path("solutions/small").mkdir()
    Path("solutions/truth/.ipynb_checkpoints").mkdir()
    for path in pictures:
        shutil.copy(path, "solutions/truth/.ipynb_checkpoints")
        Image.open(path).resize((32, 32)).save(f"solutions/small/{path.name}")
    Path("solutions/truth/._model.pt").write_bytes(b"of a Mac")
    command = "python grade.py solutions --config tiny.yml --data cat_face --output solutions/-out"
    for _ in range(2):
        left = call(command)
        assert left.code == 0, left.err
    rows = list(csv.DictReader(Path("solutions/-out/grades.csv").read_text().splitlines()))
    assert [row["solution"] for row in rows] == ["truth", "empty", "gone", "pipe", "small"]
    assert all("contains neither" in row["error"] for row in rows[1:4])
    assert "32 x 32 pixels, but" in rows[4]["error"]


def test_a_solution_may_link_to_its_results_and_is_compared_by_name(desk, call):
    for path in Path("solutions").iterdir():
        shutil.rmtree(path) if path.name == "second" else path.name != "truth" and path.unlink()
    Path("solutions/truth").rename("scratch")
    for path in Path("scratch").iterdir():
        number = int(path.stem.removeprefix("test_"))
        path.rename(f"scratch/{'zyxwvutsrqponmlkjihgfedcba'[number]}_{number}.png")
    Path("solutions/linked").mkdir()
    Path("solutions/linked/test_results").symlink_to("../../scratch")
    Path("solutions/linked/again").symlink_to("..")
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == 0, left.err
    (row,) = csv.DictReader(Path("out/grades.csv").read_text().splitlines())
    assert (row["solution"], row["error"]) == ("linked", "")
    first = base64.b64decode(Path("out/grades.html").read_text().split("base64,")[1].split('"')[0])
    _, repaired, truth = np.split(np.asarray(Image.open(io.BytesIO(first)))[2:-2, :-2], 3, axis=1)
    np.testing.assert_array_equal(repaired, truth)


def test_results_may_lie_in_a_folder_whose_name_looks_like_a_flag(desk, call):
    for path in Path("solutions").iterdir():
        shutil.rmtree(path) if path.name == "second" else path.name != "truth" and path.unlink()
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output=-out")
    assert left.code == 0, left.err
    assert ",truth," in Path("-out/grades.csv").read_text()


@pytest.mark.parametrize(
    ("content", "code"), [("{", 0), ("[" * 100_000, 0), ('{"solution": "truth"}', 0), (None, 2)]
)
def test_a_damaged_record_is_made_again_and_one_that_cannot_be_read_stays(
    desk, call, content, code
):
    for path in Path("solutions").iterdir():
        shutil.rmtree(path) if path.name == "second" else path.name != "truth" and path.unlink()
    record = Path("out/truth/grade.json")
    record.parent.mkdir(parents=True)
    if content is None:
        record.symlink_to("/proc/self/mem")  # whose beginning cannot be read
    else:
        record.write_text(content)
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == code, left.err
    if code:
        line = f"error: {record}: cannot be read: Input/output error; it stays as it is"
        assert left.err.splitlines()[-1] == line
        assert record.is_symlink()
    else:
        assert json.loads(record.read_text())["score"] == 0


def test_results_next_to_a_tokenizer_or_an_optimizer_are_graded_by_no_other_transformer(
    desk, call, solution
):
    for path in Path("solutions").iterdir():
        shutil.rmtree(path) if path.name == "second" else path.name != "truth" and path.unlink()
    torch.save(solution("report").vqgan.state_dict(), "solutions/truth/VQGAN.pt")
    torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, "solutions/truth/optimizer.pt")
    own = "--set transformer.weights=solutions/first.pt"
    left = call(f"python grade.py solutions --config tiny.yml --data cat_face --output out {own}")
    assert left.code == 0, left.err
    (row,) = ranked().values()
    assert (row["solution"], row["error"], row["weights"]) == ("truth", "", "")
    assert abs(float(row["score"])) < 1e-3


def test_notes_of_an_import_are_told_and_kept(desk, call):
    for path in Path("solutions").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.name != "first.pt" and path.unlink()
    weights = torch.load("solutions/first.pt", weights_only=True)
    torch.save({"module": weights, "lr": torch.zeros(1)}, "solutions/first.pt")
    command = "python grade.py solutions --config tiny.yml --data cat_face --output out"
    said = [call(command) for _ in range(2)]
    assert [left.code for left in said] == [0, 0], said[0].err
    (row,) = ranked().values()
    assert "taken out of 'module'; left out, no part of a network: lr" in row["notes"]
    assert "assumed, not determined by shapes: num_heads 4, " in row["notes"]
    assert "keys: " not in row["notes"]
    kept = json.loads(Path("out/first.pt/grade.json").read_text())["notes"]
    assert row["notes"] == "; ".join(kept)
    assert "left out, no part of a network: lr" in Path("out/grades.html").read_text()
    for left in said:
        assert "  note: taken out of 'module'\n" in left.err
    assert said[1].err.startswith("first.pt:\n  note: taken out of")


@pytest.mark.parametrize("error", [AssertionError("odd"), RuntimeError("odd"), KeyError("odd")])
def test_an_unforeseen_error_is_a_line_of_one_solution(desk, call, monkeypatch, error):
    for path in Path("solutions").iterdir():
        shutil.rmtree(path) if path.name == "second" else path.name != "truth" and path.unlink()
    shutil.copytree("solutions/truth", "solutions/odd")
    results = Solution.results

    def fail(self: Solution, count: int) -> Path:
        if self.path.name == "odd":
            raise error
        return results(self, count)

    monkeypatch.setattr(Solution, "results", fail)
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == 0, left.err
    assert ranked()["odd"]["error"] == f"{type(error).__name__}: {error}"
    assert ranked()["truth"]["rank"] == "1"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, StopRequested("ended by SIGTERM")])
def test_a_signal_ends_the_whole_run(desk, call, monkeypatch, stop):
    def end(self: Solution, count: int) -> Path:
        raise stop

    monkeypatch.setattr(Solution, "results", end)
    for name in ("first.pt", "second", "third.ckpt", "broken.pt"):
        place = Path("solutions", name)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    left = call("python grade.py solutions --config tiny.yml --data cat_face --output out")
    assert left.code == INTERRUPTED
    assert not Path("out/grades.csv").exists()
