"""What scripts meet before their libraries are imported, seen from a shell."""

from __future__ import annotations

import errno
import os
import runpy
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import fid
import pytest
import torch
from fid import failed_import, keep_warnings_harmless, leave_out_unreadable

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted(ROOT.glob("*.py")), ROOT / "faster-pytorch-fid" / "fid_score_gpu.py"]


def python(
    *words: object, folder: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_its_folder_where_python_leaves_it_out(script, tmp_path):
    ended = python(script, "--help", folder=tmp_path, PYTHONSAFEPATH="1")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("name", "value", "stays"),
    [
        ("DISABLE", "1", True),
        ("MININTERVAL", "30", True),
        ("NCOLS", "80", True),
        ("MININTERVAL", "abc", False),
        ("NCOLS", "x", False),
        ("NCOLS", "", False),
        ("BAR_FORMAT", "{foo}", False),
        ("FILE", "x", False),
        ("ASCII", "x", False),
        ("ITERABLE", "x", False),
    ],
)
def test_variables_of_bars_stay_where_every_bar_can_have_them(
    monkeypatch, capsys, name, value, stays
):
    monkeypatch.setenv(f"TQDM_{name}", value)
    leave_out_unreadable()
    assert (f"TQDM_{name}" in os.environ) == stays
    note = f"note: TQDM_{name}={value!r} is ignored; no bar can have it\n"
    assert capsys.readouterr().err == ("" if stays else note)


def test_such_a_variable_ends_neither_suite_nor_scorer():
    for module in ("utils.io.images", "fid.extraction"):
        ended = python(
            *("-c", f"import {module}; print('all')"),
            PYTHONPATH=f"{ROOT}:{ROOT / 'faster-pytorch-fid'}",
            TQDM_NCOLS="x",
        )
        note = "note: TQDM_NCOLS='x' is ignored; no bar can have it\n"
        assert (ended.stdout, ended.stderr) == ("all\n", note)


BROKEN = {  # content of a library: what is said of it
    "raise ValueError('\\n  must be OFF\\nor ON')": "broken cannot be imported: must be OFF",
    "raise ImportError('libx.so: failed to map segment')": "broken cannot be imported: libx.so: "
    "failed to map segment",
    "raise ValueError('\\nInvalid log settings: x, must\\nTORCH_LOGS')": "broken cannot be "
    "imported: TORCH_LOGS: Invalid log settings: x, must",
    "import broken.part": "broken cannot be imported: No module named 'broken.part'; 'broken' is "
    "not a package",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_library_that_cannot_be_imported_is_one_line_and_2(tmp_path, content):
    libraries = tmp_path / "site-packages"
    libraries.mkdir()
    (libraries / "broken.py").write_text(content)
    ended = python("-c", "import utils, broken", PYTHONPATH=f"{ROOT}:{libraries}")
    assert (ended.returncode, ended.stderr) == (2, f"error: {BROKEN[content]}\n")


def test_a_library_that_is_missing_is_one_line_and_2():
    ended = python("-c", "import utils, no_such_library")
    line = f"error: no_such_library is not installed for {sys.executable}; activate its environment"
    assert (ended.returncode, ended.stderr) == (2, f"{line}\n")


def test_a_current_folder_that_is_gone_is_one_line_and_2(monkeypatch, capsys):
    def gone() -> str:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(fid.__file__)
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: the current folder: No such file or directory\n"


def test_an_error_of_ours_keeps_its_traceback():
    ended = python("-c", "import utils\nraise ValueError('ours')")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert failed_import(ValueError("ours")) is None


@pytest.mark.usefixtures("in_terminal")
def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path):
    ended = python("-c", "import utils, os; os.kill(os.getpid(), 2); [0 for _ in range(10**9)]")
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "interrupted\n")


SLOW = (
    "import os\ntry: os.kill(os.getpid(), 2); [0 for _ in range(10**6)]\nexcept BaseException: pass"
)


@pytest.mark.usefixtures("in_terminal")
@pytest.mark.parametrize("until", ["", "; process.handled(process.leave).__enter__()"])
def test_ctrl_c_in_the_middle_of_an_import_raises_nothing_that_could_get_lost(tmp_path, until):
    (tmp_path / "slow.py").write_text(SLOW)
    program = f"import utils; from fid import process{until}; import slow; print('goes on')"
    ended = python("-c", program, PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_handlers_of_ctrl_c_that_a_program_has_stay_as_they_are():
    program = "from signal import *; signal(2, SIG_IGN); import utils; print(getsignal(2).name)"
    assert python("-c", program).stdout == "SIG_IGN\n"
    program = "import threading as t; a = t.Thread(target=__import__, args=['fid']); a.start()"
    ended = python("-c", program, PYTHONPATH=str(ROOT / "faster-pytorch-fid"))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_page_says_which_extra_it_lacks():
    program = "import sys, runpy; sys.modules['gradio'] = None; sys.argv = ['']"
    ended = python("-c", f"{program}; runpy.run_path('app.py', run_name='__main__')")
    line = "error: gradio is missing: pip install '.[app]'\n"
    assert (ended.returncode, ended.stderr) == (2, line)


def test_warnings_that_were_to_be_errors_are_shown_and_others_stay_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        keep_warnings_harmless()
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        with warnings.catch_warnings(record=True) as shown:
            warnings.warn("odd", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["odd"]


def test_switches_of_pytorchs_reader_do_not_make_files_look_damaged(tmp_path, monkeypatch):
    for switch in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        monkeypatch.setenv(switch, "1")
    runpy.run_path(fid.__file__)
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["a"].item() == 1


@pytest.mark.parametrize(
    ("value", "stays"),
    [
        ("expandable_segments:True,max_split_size_mb:512", True),
        ("roundup_power2_divisions:[256:1,512:2,>:4], backend:native", True),
        ("", True),
        ("max_split_size_mb=512", False),
        ("'max_split_size_mb:512'", False),
        ("max_split_size_mb", False),
    ],
)
def test_options_that_end_pytorch_on_import_are_ignored_with_a_note(
    monkeypatch, capsys, value, stays
):
    name = "PYTORCH_CUDA_ALLOC_CONF"
    monkeypatch.setenv(name, value)
    leave_out_unreadable()
    assert (name in os.environ) == stays
    note = f"note: {name}={value!a} is ignored; allowed are OPTION:VALUE, separated by commas\n"
    assert capsys.readouterr().err == ("" if stays else note)
