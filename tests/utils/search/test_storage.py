"""Where a study is kept: URLs as a user writes them, what messages show of them, and refusals."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest
from optuna.pruners import NopPruner
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from config.errors import UserError
from utils.search import storage
from utils.search.search import open_study
from utils.search.storage import open_storage, public_url, storage_errors, storage_url

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.usefixtures("no_sync"),
]


@pytest.mark.parametrize(
    "name", ["plain", "lr%41", "lr?1", "lr#1", "{x}", "{SCHEMA_VERSION}", "a b", "ä@:+&="]
)
def test_the_default_study_lies_in_the_folder_whatever_its_name(tmp_path, name):
    folder = tmp_path / name / "search"
    open_storage(storage_url(None, folder))
    assert [path.relative_to(folder) for path in tmp_path.rglob("*.db")] == [Path("study.db")]
    assert str(folder) in make_url(public_url(storage_url(None, folder))).database


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:SECRET@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=me&password=SECRET", "postgresql://h/d"),
        ("mysql+pymysql://me@h/d?passwd=SECRET", "mysql+pymysql://me@h/d"),
        ("postgresql://h/d?sslpassword=SECRET&sslmode=require", "postgresql://h/d"),
        ("postgresql://u:SEC%40RET@h/d", "postgresql://u:***@h/d"),
    ],
)
def test_a_password_is_never_shown_wherever_the_url_has_it(url, expected):
    assert public_url(storage_url(url, Path())) == expected


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:SEC@RET@h/d",
        "postgresql://u:SEC@RE/T@h/d",
        "postgresql://u:SEC@RE?T@h/d",
        "postgresql://u:SEC?RET@h/d?x=1@2",
        "postgresql://u/x:SECRET@h/d",
        "postgresql://h?password=SEC@RET",
        "postgresql://u@c:SECRET@h/d",
        "u:SECRET@h/d",
        "oracle://u:SECRET@h/d",
        "postgresql://u%3ASECRET@h/d",
        "postgresql://h/d;user=u;password=SECRET",
        "postgresql://h/d&password=SECRET",
        "mysql://h;password=SECRET/d",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_any_part_of_its_password(url):
    with pytest.raises(UserError, match="--storage") as caught:
        storage_url(url, Path())
    assert not any(part in str(caught.value) for part in ("SEC", "RET"))


@pytest.mark.parametrize("url", ["postgresql://u:SECRET@h/d", "postgresql://h/d?password=SECRET"])
def test_what_a_driver_repeats_of_a_password_is_hidden(url):
    with pytest.raises(UserError) as caught, storage_errors(make_url(url)):
        raise OperationalError("", {}, Exception("cannot connect with password=SECRET\nhint"))
    assert str(caught.value).endswith("/d: cannot connect with password=***")


@pytest.mark.parametrize("shown", ["SEC+RET", "SEC%2BRET"])
def test_a_password_is_hidden_as_it_is_and_as_urls_write_it(shown):
    url = make_url("postgresql://u:SEC%2BRET@h/d")
    with pytest.raises(UserError) as caught, storage_errors(url):
        raise OperationalError("", {}, Exception(f"cannot connect to u:{shown}@h"))
    assert str(caught.value).endswith("cannot connect to u:***@h")


def test_a_file_system_without_locks_is_named_as_a_reason(tmp_path):
    with pytest.raises(UserError) as caught, storage_errors(storage_url(None, tmp_path)):
        raise OperationalError("", {}, sqlite3.OperationalError("database is locked"))
    assert "by another process, or its file system has no locks; give --storage" in str(
        caught.value
    )


def test_every_connection_waits_for_another_worker_s_write(monkeypatch, tmp_path):
    """Optuna's own, and the one that looks at the tables first."""
    patience, connect = [], sqlite3.dbapi2.connect

    def watched(*args, timeout: float = 5.0, **options):
        patience.append(timeout)
        return connect(*args, timeout=timeout, **options)

    monkeypatch.setattr(sqlite3.dbapi2, "connect", watched)
    open_storage(make_url(f"sqlite:///{tmp_path}/study.db"))
    assert set(patience) == {storage.SQLITE_PATIENCE}


def test_a_database_may_lie_below_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage_url("sqlite:///~/study.db", Path()).database == str(tmp_path / "study.db")


MISTAKES = {  # URL: what the line must say
    "postgres://u@h/d": "--storage postgres://...: unknown (did you mean 'postgresql'?)",
    "redis://h": "allowed are sqlite, postgresql, mysql",
    "sqlite://:::": "no database URL",
    "study.log": "no database URL; allowed are e.g. sqlite:///study.db (a file)",
    "sqlite://": "names no file",
    "sqlite:///:memory:": "names no file",
    "sqlite:///file::memory:?cache=shared&uri=true": "names no file",
    "sqlite:///file:studies/a.db?uri=true": "names no file",
    "sqlite:///lr?1.db": "? begins parameters, which may be cached_statements",
    "sqlite:///a.db?timeout=3&password=SECRET": "? begins parameters, which may be",
    "mysql+pymysql://u:secret@h/d": "mysql+pymysql://u:***@h/d: no driver found; pip install "
    "pymysql",
    "mysql+nothing://u:secret@h/d": "mysql+nothing://u:***@h/d: Can't load plugin",
    "sqlite:///{tmp}/file/a.db": "file: cannot be made",
    "sqlite:///{tmp}/folder": "folder: (sqlite3.OperationalError) unable to open database file",
    "sqlite:///{tmp}/text.db": "text.db: (sqlite3.DatabaseError) file is not a database",
}


@pytest.mark.parametrize(("url", "found"), MISTAKES.items())
def test_a_storage_that_cannot_be_opened_is_one_line(url, found, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pymysql", None)  # as if it were not installed
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_bytes(b"\x89PNG no database at all\n" * 40)
    with pytest.raises(UserError) as caught:
        open_storage(storage_url(url.replace("{tmp}", str(tmp_path)), Path()))
    assert found in str(caught.value)
    assert (tmp_path / "text.db").read_bytes() == b"\x89PNG no database at all\n" * 40


def test_a_database_of_another_optuna_is_one_line(tmp_path):
    open_storage(storage_url(None, tmp_path))
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    with pytest.raises(UserError, match=r"study\.db: .*optuna storage upgrade"):
        open_storage(storage_url(None, tmp_path))


def test_tables_of_another_program_are_one_line(tmp_path):
    sqlite3.connect(tmp_path / "study.db").execute("CREATE TABLE studies (x)")
    url = storage_url(None, tmp_path)
    with pytest.raises(UserError, match=r"study\.db: .*studies"), storage_errors(url):
        open_study(open_storage(url), "s", [], NopPruner())
