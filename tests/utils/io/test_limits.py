"""Limits of what an input may claim: their defaults and their switch, in suite and scorer."""

from __future__ import annotations

import math
import re
from pathlib import Path

import fid.files
import pytest
from fid.files import DEFAULT_LIMITS, ScoreError

from config.errors import UserError
from utils.io import messages

BOTH = pytest.mark.parametrize(("own", "refusal"), [(messages, UserError), (fid.files, ScoreError)])


@BOTH
def test_a_size_at_its_limit_passes_and_one_beyond_names_the_switch(own, refusal, monkeypatch):
    monkeypatch.setenv("INPUT_LIMITS", "members=5")
    own.check_limit("members", 5, "a.zip")
    with pytest.raises(refusal) as caught:
        own.check_limit("members", 6, "a.zip")
    said = "a.zip: 6 members; allowed are 5 (INPUT_LIMITS=members=N allows N)"
    assert str(caught.value) == said


@BOTH
def test_the_switch_changes_only_what_it_names(own, refusal, monkeypatch):
    monkeypatch.setenv("INPUT_LIMITS", "pixels=2e9,file_bytes=1")
    assert (own.limit("pixels"), own.limit("file_bytes")) == (2e9, 1)
    assert own.limit("members") == DEFAULT_LIMITS["members"]


@BOTH
def test_off_lifts_all(own, refusal, monkeypatch):
    monkeypatch.setenv("INPUT_LIMITS", "off")
    assert {own.limit(name) for name in DEFAULT_LIMITS} == {math.inf}


@BOTH
@pytest.mark.parametrize("text", ["pixel=3", "pixels", "pixels=", "pixels=-1", "pixels=nan", "on"])
def test_a_wrong_switch_is_refused_in_one_line(own, refusal, monkeypatch, text):
    monkeypatch.setenv("INPUT_LIMITS", text)
    with pytest.raises(refusal, match=r"^INPUT_LIMITS: "):
        own.limit("pixels")


def test_the_security_page_names_every_limit_with_its_default():
    page = (Path(__file__).parents[3] / "SECURITY.md").read_text()
    units = {"": 1, " MiB": 2**20, " GiB": 2**30}
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+)( [MG]iB)? \|", page, re.MULTILINE)
    found = {name: int(number.replace(",", "")) * units[unit] for name, number, unit in rows}
    assert found == DEFAULT_LIMITS
