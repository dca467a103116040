"""The editors' schema is generated and must follow the settings."""

from __future__ import annotations

from config.loading import SCHEMA_FILE, json_schema


def test_the_committed_schema_is_in_step():
    message = "run `python -m config.loading`"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == json_schema(), message
