"""README and docs/: commands parse, tables follow from results, code runs, links lead on."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import config.loading
import utils.scoring  # noqa: F401  puts the scorer's folder on the path
from config.loading import load_config
from config.schema import Config
from docs import quality_tables, results_files, speed_tables, tables, tours
from docs.draw_decoding import GRID, ROWS, STEPS, walk
from utils.sweep.plan import STUDIES, read_grid
from utils.sweep.tables import score_grid

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
OUTPUTS = ("data/", "runs/", "test_results", "repaired", "handed-in", "manifest.json")
THEIRS = (  # what a reader brings, or what a page shows
    *(
        "cats.zip",
        "pictures.zip",
        "photo.png",
        "hole.png",
        "grid.yml",
        "VQGAN.pt",
        "transformer.pt",
        "maskgit.pt",
    ),
    "cat_face",
)
UNIX = {"cp", "diff", "mkdir"}  # programs besides Python that pages use, with real files
OURS = ("utils.", "docs.", "config.", "bench.")  # modules that pages run


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


# Commands


def inline_commands(text: str) -> list[str]:
    """Commands within sentences, which may go on in the next line."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(found.split()) for found in re.findall(r"`(python [^`]+)`", prose)]


def python_commands() -> dict[str, list[str]]:
    """Every command of all pages that starts a script or module of ours -> its words from there."""
    found = {}
    for page in (*PAGES, tables.CARD, ROOT / "faster-pytorch-fid" / "README.md"):
        text = page.read_text(encoding="utf-8")
        for line in tours.commands_of(text) + inline_commands(text):
            words = [*shlex.split(line, comments=True), ""]
            for before, word in pairwise(words):
                is_module = before == "-m" and word.startswith(OURS)
                if is_module or (before != "-m" and word.endswith(".py")):
                    found[line] = words[words.index(word) : -1]
    return found


COMMANDS = python_commands()


class Parsed(BaseException):
    """The arguments, and the config where there is one, are understood."""


@pytest.fixture
def only_parse(monkeypatch):
    """Scripts go no further than their arguments and their config."""
    parse, load = argparse.ArgumentParser.parse_args, config.loading.load_config

    def parse_args(self, *args, **kwargs):
        given = parse(self, *args, **kwargs)
        if not (ROOT / str(getattr(given, "config", ""))).is_file():  # none, or made by a command
            raise Parsed
        return given

    def load_config(*args, **kwargs):
        load(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(config.loading, "load_config", load_config)
    monkeypatch.chdir(ROOT)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # runpy, of an imported module
@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_s_command_is_one_that_its_script_understands(command, only_parse, monkeypatch):
    script, *arguments = COMMANDS[command]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    if not arguments and script.startswith(("docs.", "config.")):
        assert (ROOT / f"{script.replace('.', '/')}.py").is_file()
        return  # takes no arguments, and would draw or write at once
    run = runpy.run_path if script.endswith(".py") else runpy.run_module
    with pytest.raises(Parsed):
        run(script, run_name="__main__")


@pytest.mark.parametrize("script", ["draw_decoding.py", "draw_repairs.py"])
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--nonsense", 2)])
def test_what_draws_pictures_draws_none_when_asked_for_something_else(
    script, flag, code, monkeypatch
):
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("drew"))
    monkeypatch.setattr(config.loading, "load_config", lambda *_: pytest.fail("drew"))
    monkeypatch.setattr(sys, "argv", [script, flag])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "docs" / script), run_name="__main__")
    assert left.value.code == code


def test_a_misspelt_flag_or_key_would_be_noticed(only_parse, monkeypatch):
    for mistake in (["--total-itr", "8"], ["--set", "decoding.total_itr=8"]):
        monkeypatch.setattr(sys, "argv", ["inpainting.py", *mistake])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "inpainting.py"), run_name="__main__")
        assert left.value.code == 2


def is_path(word: str) -> bool:
    return "/" in word or bool(re.fullmatch(r"[\w-]+\.(?:yml|md|zip|csv|png|pt|json)", word))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_in_a_page_s_commands_are_there_or_are_made(page):
    for line in tours.commands_of(page.read_text(encoding="utf-8")):
        for word in shlex.split(line, comments=True):
            path = word.partition("=")[2] or word  # --set data.root=data/photos
            if is_path(path) and "://" not in path and not path.startswith((*OUTPUTS, *THEIRS)):
                known = (ROOT / path).exists() or path.startswith(".venv/")
                assert known, f"{path} in: {line}"


def test_every_program_that_the_readme_starts_is_known():
    lines = tours.commands_of(README.read_text(encoding="utf-8"))
    programs = {words[0] for line in lines if (words := shlex.split(line, comments=True))}
    assert programs <= {"python", ".venv/bin/python", "make", "pip"} | UNIX


def test_the_readme_s_tours_are_those_that_were_run_and_timed():
    record = json.loads((results_files.RESULTS / "tours.json").read_text(encoding="utf-8"))
    timed = {name: list(steps) for name, steps in record["seconds"].items()}
    assert timed == tours.commands(), "run `python -m docs.tours`"
    assert [1 <= len(lines) <= 8 for lines in timed.values()] == [True] * 4


# Tables


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_those_of_the_committed_results(page):
    text = page.read_text(encoding="utf-8")
    assert text == tables.rewritten(text), "run `python -m docs.tables`"


def test_every_table_is_on_some_page():
    text = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert set(re.findall(r"<!-- table ([\w-]+) -->", text)) == set(tables.TABLES)


def test_every_table_of_numbers_in_the_readme_is_a_generated_one():
    text = tables.BLOCK.sub("", README.read_text(encoding="utf-8"))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert not [row for row in rows if re.search(r"\|[^|a-z]*\d[^|a-z]*\|", row)]


def test_the_readme_promises_no_time_and_no_speed_in_its_prose():
    text = tables.BLOCK.sub("", README.read_text(encoding="utf-8"))
    assert not re.findall(r"\d+(?:\.\d+)?\s*(?:times|seconds?|minutes?|hours?|%)", text)
    assert "about " not in text


def test_the_newest_measurement_of_each_machine_counts(tmp_path, monkeypatch):
    cpu = {"gpus": [], "cpu": "A", "threads": 1}
    records = [
        {"result": {"lab": 1, "cats64": 1}, "details": {}, "machine": cpu},
        {"result": {"lab": 2}, "details": {}, "machine": {**cpu, "gpus": ["G"]}},
        {"result": {"lab": 3}, "details": {}, "machine": cpu},
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    monkeypatch.setattr(results_files, "BENCHES", tmp_path)
    machines, results = ["G", "A, 1 thread"], [{"lab": 2}, {"lab": 3}]
    assert [r["result"] for r in results_files.latest("bench")] == results
    assert [results_files.machine(r) for r in results_files.latest("bench")] == machines
    both = [r["result"] for r in results_files.latest_sizes("bench")]
    assert both == [{"lab": 2}, {"lab": 3, "cats64": 1}]  # from the run before
    assert results_files.latest("never-run") == []


def test_a_measurement_without_its_dtype_gives_way_to_a_later_one_with_it(tmp_path, monkeypatch):
    cpu = {"gpus": [], "cpu": "A", "threads": 1}
    records = [
        {"result": {"n": 1}, "details": {}, "machine": cpu},
        {"result": {"n": 2}, "details": {"dtype": "torch.bfloat16"}, "machine": cpu},
        {"result": {"n": 3}, "details": {}, "machine": cpu | {"dtype": "float32"}},
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    monkeypatch.setattr(results_files, "BENCHES", tmp_path)
    found = {results_files.machine(r): r["result"]["n"] for r in results_files.latest("bench")}
    assert found == {"A, 1 thread, bfloat16": 2, "A, 1 thread, float32": 3}


def test_the_readme_compares_speeds_in_a_row_a_task_and_a_column_a_machine(monkeypatch):
    rows = [
        ["train", "2", "1,000", "500.0", "x 1", "B"],
        ["train", "1", "3", "3.0, 2.0 to 4.0", "x 1", "A"],
        ["repair", "1", "2", "2.0", "x 1", "A"],
        ["repair, every step drawn", "1", "1", "1.0", "x 1", "A"],
    ]
    monkeypatch.setattr(speed_tables, "all_speeds", lambda: rows)
    assert speed_tables.speed().splitlines() == [
        "| images/s (× the other side) | A | B |",
        "|---|---|---|",
        "| train | 3 (×3.0, 2.0 to 4.0) | 1,000 (×500.0) |",
        "| repair | 2 (×2.0) | – |",
    ]


def test_a_speed_has_three_digits():
    pair = [{"speed": 0.12345, "peak_mib": 1}], [{"speed": 6842.3, "peak_mib": 1}]
    row = speed_tables.speed_row("train", pair, lambda figures: figures["speed"], "A")
    assert row[1:3] == ["0.123", "6,840"]


def scores(day: str, theirs: list[float], ours: list[float]) -> dict:
    """A record of bench.fid on 20 images: seconds of each round, 1 MiB each second."""
    sides = {"theirs": theirs, "cold": ours, "warm": [1.0 for _ in ours]}
    tasks = {k: [{"total_s": s, "peak_mib": s} for s in each] for k, each in sides.items()}
    machine = {"gpus": [], "cpu": "A", "threads": 2}
    details = {"images": 20, "tasks": tasks}
    return {"date": f"{day}T10:00:00", "result": {}, "details": details, "machine": machine}


def test_speeds_are_medians_over_the_rounds_of_the_last_run_of_each_of_three_days(
    tmp_path, monkeypatch
):
    records = [
        scores("2026-01-29", [90.0], [1.0]),  # too long ago
        scores("2026-01-30", [4.0, 5.0], [2.0, 2.0]),
        scores("2026-02-01", [90.0], [1.0]),  # replaced on the same day
        scores("2026-02-01", [6.0], [1.0]),
    ]
    (tmp_path / "fid.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    monkeypatch.setattr(results_files, "BENCHES", tmp_path)
    cold, warm = speed_tables.speed_rows("fid", speed_tables.scores, speed_tables.scored)
    assert cold == ["score 20 images", "4", "10", "2.5, 2.0 to 6.0", "x 0.40", "A, 2 threads"]
    assert warm[3] == "5.0, 4.0 to 6.0"


def test_a_study_s_best_setting_is_bold_and_a_missing_one_a_dash(tmp_path):
    (tmp_path / "results.csv").write_text(
        "row,column,seed,score\na,x,0,2\na,x,1,4\na,y,0,1\na,y,1,2\nb,x,0,5\nb,x,1,5\n"
    )
    groups = quality_tables.groups_of(quality_tables.read_csv(tmp_path / "results.csv"))
    assert score_grid("study", groups) == [
        ["study", "x", "y"],
        ["a", "3.00 ± 1.41", "**1.50 ± 0.71**"],
        ["b", "**5.00 ± 0.00**", "–"],
    ]


def test_every_committed_study_is_in_a_table():
    committed = (results_files.RESULTS / "sweep").glob("*/results.csv")
    assert {path.parent.name for path in committed} == set(quality_tables.STUDY_TITLES)


def test_only_what_stands_between_the_marks_is_rewritten(monkeypatch):
    monkeypatch.setitem(tables.TABLES, "t", lambda: "| new |")
    page = "before\n<!-- table t -->\n| old |\n<!-- end -->\n| after |"
    assert tables.rewritten(page) == page.replace("old", "new")


# Code and links


def test_the_code_on_extending_runs_as_it_stands(monkeypatch):
    from fid.features import BACKENDS

    from models.masking import MASK_SCHEDULES
    from models.orders import ORDERS

    code = blocks("extending.md", "python")
    assert len(code) == 3
    assert all("assert" in block for block in code)
    names: dict = {}
    registries = MASK_SCHEDULES, ORDERS, BACKENDS
    before = [dict(registry) for registry in registries]
    try:
        for block in code:
            exec(compile(block, "docs/extending.md", "exec"), names)
    finally:
        for registry, content in zip(registries, before, strict=True):
            registry.clear()
            registry.update(content)


def test_the_rule_spelled_out_on_decoding_is_a_config(tmp_path):
    (text,) = blocks("decoding.md", "yaml")
    (tmp_path / "rule.yml").write_text(text)
    rule = load_config(tmp_path / "rule.yml").decoding.rule
    assert str(rule) == "t/(T-1), floor(gN), log p, 1-q, sample"


def test_the_grid_on_studies_is_one_that_sweep_reads(tmp_path):
    (text,) = blocks("studies.md", "yaml")
    (tmp_path / "grid.yml").write_text(text)
    study = read_grid(Config(), tmp_path / "grid.yml")
    assert (len(study.rows), len({setting.column for setting in study.settings})) == (2, 3)


def test_the_studies_of_the_commands_exist():
    first, second = [shlex.split(line) for line in blocks("studies.md", "sh")[0].splitlines()]
    assert first[:2] == second[:2] == ["python", "sweep.py"]
    assert first[2 : first.index("--config")] == list(STUDIES)
    assert second[2] == "grid"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    files = re.findall(r"`((?:config|models|utils|tests|faster-pytorch-fid)/[\w./-]+)`", text)
    assert all((page.parent / link).exists() for link in links), links
    assert all((ROOT / file).exists() for file in files), files


SECTIONS = "data|tokenizer|transformer|masking|training|decoding|scoring|search"
NO_KEYS = ("pt", "safetensors", "md", "json")  # files that are called as a section is


def has_key(model: type, key: str) -> bool:
    first, _, rest = key.partition(".")
    field = model.model_fields.get(first)
    return field is not None and (not rest or has_key(field.annotation, rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_settings_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    keys = re.findall(rf"(?:`|--set )((?:{SECTIONS})(?:\.[a-z_]+)+)", text)
    assert [key for key in keys if not key.endswith(NO_KEYS) and not has_key(Config, key)] == []


@pytest.mark.parametrize("changes", ROWS.values(), ids=ROWS)
def test_the_decoding_picture_shows_masks_that_only_shrink_to_nothing(changes):
    token_mask = torch.zeros(1, GRID**2, dtype=torch.bool)
    token_mask[0, 40:100] = True
    masks = [token_mask, *walk(token_mask, changes)]
    assert len(masks) == STEPS + 1
    assert all(not (after & ~before).any() for before, after in pairwise(masks))
    assert masks[1].any()
    assert not masks[-1].any()
