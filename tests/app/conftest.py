"""A running page with tiny networks, and browsers to visit it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from config.loading import load_config, save_config
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.weights.store import save_weights

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "google-chrome", "chrome")
PATIENCE = 90  # seconds for a server to start on a busy machine
TINY = ROOT / "tests" / "data" / "tiny.yml"
PAGE = {"data.image_size": 32, "transformer.num_tokens": 64}  # 8 x 8 tokens to paint on
PAGE |= {"decoding.total_iter": 6, "decoding.composite": "hard", "decoding.rule": "maskgit"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file, with untrained weights where it says."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = load_config(TINY, [*PAGE.items(), ("run", folder)])
    torch.manual_seed(0)
    tokenizer, transformer = VQGAN(config.tokenizer), BidirectionalTransformer(config.transformer)
    with torch.no_grad():
        latents = tokenizer.latents(torch.randn(4, 3, 32, 32)).flatten(0, 2)
        tokenizer.codebook.embedding.weight.copy_(latents[:: len(latents) // 16])
        for weight in transformer.parameters():
            weight.normal_(std=0.5)
    save_weights(config.tokenizer_weights, tokenizer.state_dict(), config.tokenizer, {})
    save_weights(config.transformer_weights, transformer.state_dict(), config.transformer, {})
    save_config(config, folder / "tiny.yml")
    assert load_config(folder / "tiny.yml") == config
    return folder / "tiny.yml"


@pytest.fixture(scope="session")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers note whom they call and what they write (audit/sitecustomize.py)."""
    return tmp_path_factory.mktemp("audit") / "log"


@pytest.fixture(scope="session")
def serve(audit: Path) -> Iterator[Callable[..., str]]:
    """Start app.py with some arguments; returns its address. All end with the session."""
    servers: list[subprocess.Popen] = []
    watched = {"PYTHONPATH": str(Path(__file__).with_name("audit")), "AUDIT_LOG": str(audit)}
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def start(*arguments: str | Path) -> str:
        port = _free_port()
        command = [sys.executable, "app.py", *map(str, arguments), "--port", str(port)]
        environment = {**os.environ, **watched, **quiet}
        servers.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        return _when_ready(f"http://127.0.0.1:{port}", servers[-1])

    yield start
    for server in servers:
        server.send_signal(signal.SIGTERM)
    for server in servers:
        server.wait(PATIENCE)


@pytest.fixture(scope="session")
def address(serve: Callable[..., str], tiny: Path) -> str:
    """Where the page with the tiny networks is."""
    return serve(tiny)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, or the reason why there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[app]'")
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def visit(browser, address: str):
    """Open the page in a context of its own: visit(...) takes Playwright's context options."""
    contexts = []

    def open_page(url: str = address, **options):
        contexts.append(browser.new_context(**{"accept_downloads": True, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.goto(url)
        page.wait_for_selector("#painter .has-picture canvas")
        return page

    yield open_page
    for context in contexts:
        context.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _when_ready(address: str, server: subprocess.Popen) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert server.poll() is None, "app.py ended by itself"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return address
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"nothing answers at {address}")
