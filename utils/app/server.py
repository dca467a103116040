"""Serve the page, by default to this machine only; it loads nothing from elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fid.process import handled, leave
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.app.pictures import MAX_BODY_BYTES, MAX_FILE_BYTES

QUEUE_LENGTH = 8  # waiting repairs; one runs at a time
FORGET_SECONDS = 600  # age at which temporary files are deleted
REMEMBERED = 64  # sessions kept, 0.2 MiB each; the least recently used is dropped

HEADERS = {
    b"content-security-policy": (
        b"default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'"
    ),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class Guard:
    """ASGI middleware: limits request bodies and sets a content security policy."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        is_stated = length.isdigit() and b"transfer-encoding" not in headers
        if not is_stated or int(length) > MAX_BODY_BYTES:
            refusal = PlainTextResponse(f"at most {MAX_BODY_BYTES} bytes, stated ahead", 413)
            return await refusal(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        return await self.app(scope, receive, guarded)


def serve(page: gr.Blocks, host: str, port: int | None, looks: dict[str, Any]) -> None:
    """Serve the page until Ctrl-C or a termination signal."""
    page.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=MAX_FILE_BYTES,
        state_session_capacity=REMEMBERED,
        app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None},
        quiet=True,  # Gradio would advertise a tunnel
        prevent_thread_lock=True,
        **looks,
    )
    print(f"open {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


@contextmanager
def own_folder() -> Iterator[Path]:
    """The folder of all temporary files, deleted when the server exits."""
    with handled(leave), tempfile.TemporaryDirectory(prefix="maskgit-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder
        yield Path(folder)
