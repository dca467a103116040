"""The scripts' edges: exit codes and one line for each mistake. The scripts run in this process."""

from __future__ import annotations

import errno
import os
import runpy
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from config.errors import StopRequested, UserError
from config.loading import load_config, save_config
from utils.cli import (
    DEFAULT_CONFIG,
    ArgumentParser,
    add_config_arguments,
    add_start_arguments,
    as_overrides,
    run,
    whole,
)

ROOT = Path(__file__).parents[2]
SCRIPTS = ("training_vqgan.py", "training_transformer.py", "inpainting.py")
OPTIONS = {
    "--data": ("data.root", str, "folder"),
    "--total-iter": ("decoding.total_iter", int, "T"),
}


def leave(error: BaseException | None = None) -> int:
    """Exit code of a script whose main function raises the error."""

    def main() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as left:
        run(main)
    return left.value.code


@pytest.fixture
def call(monkeypatch, capsys, config, tmp_path):
    """Run a script with the tiny config; returns its exit code and what it said on stderr."""
    path = tmp_path / "tiny.yml"
    save_config(config, path)

    def script(name: str, *arguments: object) -> tuple[int, str]:
        command = [name, "--config", str(path), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        said = capsys.readouterr().err
        return left.value.code, said.splitlines()[-1] if said else ""

    return script


# run()


def test_success_leaves_with_0():
    assert leave() == 0


def test_a_mistake_is_one_line_and_2(capsys):
    assert leave(UserError("a.yml:\n two lines")) == 2
    assert capsys.readouterr().err == "error: a.yml:  two lines\n"


def test_ctrl_c_is_one_line_and_130(capsys):
    assert leave(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_clean_stop_is_one_line_and_130(capsys):
    assert leave(StopRequested("stopped in epoch 3")) == 130
    assert capsys.readouterr().err == "stopped in epoch 3\n"


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EIO, errno.ENOSPC])
def test_what_the_system_refuses_is_one_line_with_the_file(capsys, number):
    assert leave(OSError(number, os.strerror(number), "a.bin")) == 2
    assert capsys.readouterr().err == f"error: a.bin: {os.strerror(number)}\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("can't start new thread"), "threads and processes (ulimit -u): Resource "),
        (FileNotFoundError(errno.ENOENT, "of os.getcwd()"), "the current folder: No such file"),
        (OSError("Input/output error (os error 5)"), "input or output: Input/output error"),
        (OSError(errno.EROFS, "x"), "output: Read-only file system"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []"),
            "TMPDIR: No us",
        ),
    ],
)
def test_what_the_system_refuses_without_a_file_is_one_line(capsys, error, line):
    assert leave(error) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_a_name_in_another_encoding_is_one_line(capsys):
    def main() -> None:
        Path("r\udce9/log").as_posix().encode()

    with pytest.raises(SystemExit) as left:
        run(main)
    line = "error: r\\udce9/log: its name is not UTF-8, which libraries need; rename it\n"
    assert (left.value.code, capsys.readouterr().err) == (2, line)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "x")])
def test_memory_that_runs_out_is_one_line(capsys, error):
    assert leave(error) == 2
    assert capsys.readouterr().err.startswith("error: out of memory; lower batch sizes")


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


# Arguments


def test_paths_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = ArgumentParser()
    add_config_arguments(parser, {})
    images = parser.add_subparsers().add_parser("images")
    images.add_argument("files", type=Path, nargs="+")
    images.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args(["--config=~/a.yml", "images", "~/b", "c", "--out=~/d"])
    assert args.config == tmp_path / "a.yml"
    assert args.files == [tmp_path / "b", Path("c")]
    assert args.out == tmp_path / "d"
    assert parser.parse_args(["--config", "~nobody-of-that-name/a"]).config.parts[1:] == ("a",)


def test_stage_1_does_not_pass_over_weights_beside_a_run_that_goes_on(call):
    code, said = call("training_vqgan.py", "--resume", "--tokenizer", "a.safetensors")
    assert code == 2
    assert "error: --tokenizer is for new runs; leave it out to continue this one" in said


@pytest.mark.usefixtures("quick")
def test_stage_1_takes_weights_where_a_run_may_go_on_or_begin(call):
    code, said = call("training_vqgan.py", "--resume", "auto", "--tokenizer", "a.safetensors")
    assert code == 2
    assert said.startswith("error: a.safetensors: no such weights file")


def parsed(*arguments: str) -> list[str]:
    parser = ArgumentParser(prog="script.py")
    add_config_arguments(parser, OPTIONS)
    return as_overrides(parser.parse_args(arguments), OPTIONS)


def test_the_default_config_is_found_from_any_folder_but_one_here_comes_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for expected in (ROOT / DEFAULT_CONFIG, Path(DEFAULT_CONFIG)):
        parser = ArgumentParser()
        add_config_arguments(parser, {})
        assert parser.parse_args([]).config == expected
        Path("config").mkdir(exist_ok=True)
        Path(DEFAULT_CONFIG).touch()


def test_only_flags_that_were_given_override_and_they_come_last():
    assert parsed() == []
    found = parsed("--total-iter", "8", "--set", "seed=1", "--data", "x", "--set", "run=y")
    flags = [("data.root", "x", "--data"), ("decoding.total_iter", 8, "--total-iter")]
    assert found == ["seed=1", "run=y", *flags]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--storge=mysql://me:SECRET@h/d"], "unrecognized arguments: --storge=mysql://me:***@h/d"),
        (["--total-iter", "x"], "argument --total-iter: invalid int value: 'x'"),
        (["--data"], "argument --data: expected one argument"),
        (["--data", ""], "argument --data: is empty; is a variable of the shell unset?"),
        (["--total-iter="], "argument --total-iter: is empty; is a variable of the shell unset?"),
    ],
)
def test_a_wrong_argument_is_one_line_and_2(capsys, arguments, said):
    with pytest.raises(SystemExit) as left:
        parsed(*arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err == f"script.py: error: {said} (see --help)\n"


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("07", 7), ("1000", 1000)])
def test_a_positive_number_is_read(text, number):
    assert whole(1)(text) == number


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "few", ""])
def test_what_is_no_positive_number_is_quoted(text):
    with pytest.raises(ArgumentTypeError) as caught:
        whole(1)(text)
    assert str(caught.value) == f"'{text}' is not a whole number from 1"


# Scripts


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_gpu_that_is_not_there_is_named(call, weights, data_root, name):
    shutil.copytree(data_root / "val", data_root / "masked_image")
    shutil.copytree(data_root / "val", data_root / "mask64")
    code, said = call(name, "--device", "cuda:0")
    assert (code, said) == (
        2,
        "error: device cuda:0: 0 CUDA devices found; use --device cpu or auto",
    )


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_missing_data_folder_is_named(call, tmp_path, name):
    code, said = call(name, "--data", tmp_path / "none")
    assert code == 2
    assert said.startswith(f"error: {tmp_path / 'none'}")
    assert said.endswith("no such folder")


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_key_is_named_with_the_nearest(call, name):
    code, said = call(name, "--set", "training.batchsize=3")
    assert code == 2
    assert "unknown key training.batchsize (did you mean 'batch_size'?)" in said


def test_stage_2_without_a_tokenizer_is_one_line(call, config):
    code, said = call("training_transformer.py")
    assert code == 2
    assert said.startswith(f"error: {config.tokenizer_weights}: no such weights file; train first")


def test_images_without_masks_are_one_line(call, tmp_path):
    code, said = call("inpainting.py", "--images", tmp_path)
    assert code == 2
    assert said.endswith("give either --data, or --images together with --masks (see --help)")


def test_flags_of_inpainting_reach_their_keys(call):
    code, said = call("inpainting.py", "--total-iter", 4, "--sweet-spot", 0)
    assert code == 2
    assert "decoding.sweet_spot is 0" in said


@pytest.mark.usefixtures("weights", "quick")
def test_the_search_hands_its_rate_to_the_training(call, config, monkeypatch, tmp_path):
    import utils.search.search

    found = {"training.learning_rate": 0.00123, "training.weight_decay": 0.01}

    def search(*_: object) -> dict[str, float]:
        (tmp_path / "tiny.yml").write_text("seed: 7")  # the config is read before
        return found

    monkeypatch.setattr(utils.search.search, "search_learning_rate", search)
    assert call("training_transformer.py", "--lr-search")[0] == 0
    trained = load_config(config.run / "transformer" / "config.yml")
    assert trained.seed == config.seed
    assert trained.training.learning_rate == 0.00123
    assert trained.training.weight_decay == 0.01


def test_an_existing_run_is_refused_before_the_search(call, config, monkeypatch):
    import utils.search.search

    searched = []
    search = lambda *_: searched.append(1) or {}  # noqa: E731
    monkeypatch.setattr(utils.search.search, "search_learning_rate", search)
    (config.run / "transformer").mkdir(parents=True)
    (config.run / "transformer" / "state.pt").touch()
    code, said = call("training_transformer.py", "--lr-search")
    assert (code, searched) == (2, [])
    assert said.endswith("already contains a run; use --resume or --restart")
    assert call("training_transformer.py", "--lr-search-only") == (0, "")
    assert searched == [1]


@pytest.mark.usefixtures("weights", "quick")
def test_a_state_that_does_not_fit_is_refused_before_the_search(call, monkeypatch):
    import utils.search.search

    searched = []
    search = lambda *_: searched.append(1) or {"training.learning_rate": 0.00123}  # noqa: E731
    monkeypatch.setattr(utils.search.search, "search_learning_rate", search)
    assert call("training_transformer.py", "--learning-rate", 0.00123)[0] == 0
    for flags, told in [
        (["--resume", "--epochs", 9], "was started with other training.epochs"),
        (["--start-from-epoch", 9], "asked for a checkpoint after epoch 9; it is from"),
    ]:
        code, said = call("training_transformer.py", "--lr-search", *flags)
        assert (code, searched) == (2, [])
        assert told in said
    assert call("training_transformer.py", "--lr-search", "--resume")[0] == 0
    assert searched == [1]


@pytest.mark.parametrize(
    ("given", "found"), [([], False), (["--resume"], True), (["--resume", "auto"], "auto")]
)
def test_resume_is_off_on_or_auto(given, found):
    parser = ArgumentParser()
    add_start_arguments(parser)
    assert parser.parse_args(given).resume == found


def test_resume_takes_no_other_word(capsys):
    parser = ArgumentParser()
    add_start_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--resume", "always"])
    assert "invalid choice: 'always'" in capsys.readouterr().err


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 kB, where this user may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("weights")
def test_a_full_disk_ends_inpainting_with_one_line(call, data_root, full_disk):
    shutil.copytree(data_root / "val", data_root / "masked_image")
    (data_root / "mask64").mkdir()
    from PIL import Image

    for index in range(6):
        Image.new("L", (16, 16), 255).save(data_root / "mask64" / f"mask_{index}.png")
    (full_disk / "filler").write_bytes(bytes(60 << 10))
    code, said = call("inpainting.py", "--output", full_disk)
    assert code == 2
    assert said.endswith("No space left on device")
    assert not list(full_disk.rglob("*.tmp"))
