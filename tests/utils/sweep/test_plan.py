"""What studies compare, and which cells share a decoding."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.errors import UserError
from config.schema import Config
from utils.sweep.plan import Cell, plan, walks


def settings(name: str) -> list[tuple[str, str, int, int, str]]:
    (study,) = plan(Config(), [name])
    return [
        (s.row, s.column, s.decoding.total_iter, s.decoding.sweet_spot, s.decoding.mask_schedule)
        for s in study.settings
    ]


def grid(folder: Path, text: str, config: Config | None = None):
    (folder / "g.yml").write_text(text)
    (study,) = plan(config or Config(), ["grid", str(folder / "g.yml")])
    return study


def test_iterations_are_the_reports_at_sweet_spot_8_for_both_rules():
    assert settings("iterations") == [
        (rule, str(n), n, min(n, 8), "cosine")
        for rule in ("listing", "maskgit")
        for n in (5, 8, 10, 15, 20)
    ]


def test_sweet_spots_are_the_reports_of_10_iterations():
    assert settings("sweet-spot") == [
        (rule, str(n), 10, n, "cosine") for rule in ("listing", "maskgit") for n in (1, 4, 8, 10)
    ]


def test_schedules_are_the_reports_at_10_of_10():
    assert settings("schedules") == [
        (rule, name, 10, 10, name)
        for rule in ("listing", "maskgit")
        for name in ("cosine", "linear", "square")
    ]


def test_a_study_sets_the_rule_of_its_row():
    (study,) = plan(Config(), ["schedules"])
    assert all(setting.decoding.rule == setting.row for setting in study.settings)


def test_all_sweet_spots_of_a_rule_and_a_seed_are_one_decoding():
    (study,) = plan(Config(), ["sweet-spot"])
    cells = [Cell(s.decoding, seed) for s in study.settings for seed in (0, 1)]
    groups = walks(cells)
    assert len(cells) == 2 * 4 * 2
    assert [sorted(cell.steps for cell in group) for group in groups] == [[1, 4, 8, 10]] * 4


def test_studies_named_together_share_their_cells():
    config = Config()
    studies = plan(config, ["iterations", "sweet-spot", "schedules"])
    keys = {Cell(s.decoding, 0).key({}) for study in studies for s in study.settings}
    assert len(keys) == 2 * (5 + 4 + 3 - 2)  # 8 of 10 and cosine 10 of 10 are there twice


def test_what_happens_after_decoding_shares_it_and_what_comes_before_does_not(tmp_path):
    study = grid(tmp_path, "composite: [none, hard]\nhole_fill: [grey, mean]\n")
    assert len(walks(Cell(s.decoding, 0) for s in study.settings)) == 2


@pytest.mark.parametrize(
    "change",
    ["total_iter: [3]", "mask_schedule: [square]", "composite: [hard]", "temperature: [0.5]"],
)
def test_any_setting_gives_a_cell_a_key_of_its_own(tmp_path, change):
    (setting,) = grid(tmp_path, change).settings
    (base,) = grid(tmp_path, "total_iter: [10]").settings
    assert Cell(setting.decoding, 0).key({}) != Cell(base.decoding, 0).key({})


def test_a_key_follows_the_seed_and_the_weights_and_not_the_batch_size(tmp_path):
    plain = Cell(grid(tmp_path, "total_iter: [10]").settings[0].decoding, 0)
    config = Config.model_validate({"decoding": {"batch_size": 7, "step_pictures": False}})
    other = Cell(grid(tmp_path, "total_iter: [10]", config).settings[0].decoding, 0)
    fixed = {"transformer_sha256": "a"}
    assert plain.key(fixed) == other.key(fixed)
    assert plain.key(fixed) != Cell(plain.decoding, 1).key(fixed)
    assert plain.key(fixed) != plain.key({"transformer_sha256": "b"})


def test_running_all_iterations_is_the_sweet_spot_at_their_end(tmp_path):
    study = grid(tmp_path, "sweet_spot: [10, null]")
    assert len({Cell(s.decoding, 0).key({}) for s in study.settings}) == 1


def test_a_grid_is_every_combination_its_last_key_across(tmp_path):
    study = grid(tmp_path, "rule: [maskgit]\ntotal_iter: [4, 6]\ntemperature: [0.5, 1.0]\n")
    assert study.name == "grid-g"
    assert (study.row_name, study.column_name) == ("rule, total_iter", "temperature")
    assert study.rows == ["maskgit, total_iter 4", "maskgit, total_iter 6"]
    assert [setting.column for setting in study.settings] == ["0.5", "1.0"] * 2
    assert len(study.settings) == 4


def test_a_sweet_spot_beyond_the_last_iteration_is_the_last_one(tmp_path):
    study = grid(tmp_path, "total_iter: [5, 10]\nsweet_spot: [4, 8, null]\n")
    assert [Cell(s.decoding, 0).steps for s in study.settings] == [4, 5, 5, 4, 8, 10]
    assert len({Cell(s.decoding, 0).key({}) for s in study.settings}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("totl_iter: [5]", r"g.yml:1: unknown key totl_iter \(did you mean 'total_iter'\?\)"),
        ("batch_size: [5]", "unknown key batch_size"),  # changes no pixel
        ("total_iter: 5", "total_iter is 5; allowed is a list of values"),
        ("total_iter: []", "allowed is a list of values"),
        ("total_iter: [0]", "g.yml:1: total_iter 0: input should be greater than or equal to 1"),
        (
            "total_iter: [5]\nrule: [paper]",
            "g.yml:2: rule 'paper': input should be 'listing', 'maskgit', 'lab', ",
        ),
        ("- 5", "allowed are keys of decoding"),
        ("a: [", "not valid YAML"),
        ("temperature: [" + "1, " * 2000 + "1]", None),
    ],
)
def test_a_grid_that_does_not_fit_is_one_line(tmp_path, text, message):
    if message is None:  # equal values are one
        assert len(grid(tmp_path, text).settings) == 1
        return
    with pytest.raises(UserError, match=message) as error:
        grid(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_grid_too_large_to_wait_for_is_refused(tmp_path):
    rows = ", ".join(map(str, range(1, 41)))
    with pytest.raises(UserError, match="1600 settings; allowed are up to 1000"):
        grid(tmp_path, f"temperature: [{rows}]\ntotal_iter: [{rows}]\n")


def test_unknown_studies_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"study: 'schedule' is unknown.*did you mean 'schedules'"):
        plan(Config(), ["schedule"])
    with pytest.raises(UserError, match=r"none.yml: no such grid file"):
        plan(Config(), ["grid", str(tmp_path / "none.yml")])
    with pytest.raises(UserError, match="name one YAML file"):
        plan(Config(), ["grid"])
