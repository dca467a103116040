"""The ways to install agree with each other, and the README's commands exist."""

from __future__ import annotations

import ast
import itertools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("config", "models", "utils", "faster-pytorch-fid")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_installs_the_same_packages_and_ranges_as_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, from_pip = environment["dependencies"]
    assert environment["name"] == "maskgit"
    assert plain == [f"python{project()['requires-python']}", "pip"]
    assert from_pip["pip"] == project()["dependencies"]


def test_every_script_and_make_target_that_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= set(targets)
    for script in re.findall(r"python ([\w./-]+\.py)", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"python -m (utils\.[\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_the_lowest_versions_are_the_bounds_but_for_pytorchs():
    command = [sys.executable, ROOT / "tests" / "lowest_versions.py"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    lowest = dict(line.split("==") for line in said.stdout.splitlines())
    extras = project()["optional-dependencies"].values()
    wanted = [*map(Requirement, itertools.chain(project()["dependencies"], *extras))]
    bounds = {(r.name, b.version) for r in wanted for b in r.specifier if b.operator == ">="}
    assert set(lowest.items()) == {pair for pair in bounds if not pair[0].startswith("torch")}


def imported_names(path: Path) -> set[str]:
    """Top-level names of all imports of a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_the_packages_that_the_code_imports_are_declared():
    import_names = {"pyyaml": "yaml", "pillow": "PIL", "scikit-image": "skimage"} | {
        "scikit-learn": "sklearn"
    }
    packages = {re.split(r"[>=<]", spec)[0] for spec in project()["dependencies"]}
    declared = {import_names.get(name, name.replace("-", "_")) for name in packages}
    folders = (".", *SOURCE_FOLDERS, "faster-pytorch-fid/fid")
    files = [path for folder in folders for path in (ROOT / folder).glob("*.py")]
    ours = {path.stem for path in files} | {Path(folder).name for folder in folders}
    found = set().union(*map(imported_names, files))
    assert found - ours - declared - set(sys.stdlib_module_names) == set()


def test_the_table_of_make_demo_is_that_of_the_committed_results():
    text = (ROOT / "docs" / "tokenizer.md").read_text()
    for name in ("masked_input", "cosine", "linear", "square"):
        scores = json.loads((ROOT / "docs/results/demo" / f"{name}.json").read_text())["scores"]
        keys = ("frechet_distance_efficientnet_lite0", "hole_mae", "hole_psnr")
        numbers = " | ".join(f"{scores[key]:.2f}" for key in keys)
        assert f"| {name.replace('_', ' ')} | {numbers} |" in text


def test_every_dependency_has_a_known_good_version_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert list(pins) == sorted(pins)
    extras = project()["optional-dependencies"].values()
    wanted = itertools.chain(project()["dependencies"], *extras)
    for requirement in map(Requirement, wanted):
        assert pins[requirement.name.replace("_", "-")] in requirement.specifier, requirement


@pytest.mark.parametrize("stage", ["vqgan", "transformer"])
def test_both_stages_take_the_flags_that_a_first_training_needs(stage, monkeypatch):
    script, section = f"training_{stage}", "tokenizer.training" if stage == "vqgan" else "training"
    loaded = []

    def load_config(path, overrides):
        loaded.extend(overrides)
        raise SystemExit

    monkeypatch.setattr("config.loading.load_config", load_config)
    flags = ["--epochs", "7", "--batch-size", "5", "--learning-rate", "0.5", "--run", "r"]
    monkeypatch.setattr(sys, "argv", [script, *flags])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    said = {override[0]: override[1] for override in loaded}
    assert said == {
        f"{section}.epochs": 7,
        f"{section}.batch_size": 5,
        f"{section}.learning_rate": 0.5,
        "run": "r",
    }
