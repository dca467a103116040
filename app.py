"""Web demo, paint a hole and watch it fill: ``python app.py``, then open the printed address.

Uses the released cats64 weights by default. Name run folders, imported lab files or config files to
use others; with several, the page offers a choice.
"""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import utils  # noqa: F401  first: makes failed imports one-line errors
from config.errors import UserError
from utils.cli import ArgumentParser, run, whole

PORTS = 65535
FOREIGN = ("GRADIO_",)  # prefixes of variables that would configure Gradio
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")  # read even for plain HTTP


def check_address(host: str, port: int | None) -> None:
    """Raise `UserError` if the address cannot be bound."""
    place = host if port is None else f"{host}:{port}"
    try:
        kind = socket.SOCK_STREAM
        for family, _, number, _, address in socket.getaddrinfo(host, port or 0, type=kind):
            with socket.socket(family, kind, number) as found:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{place}: cannot listen here ({reason}); see --host, --port") from None


def leave_out_foreign() -> None:
    """Remove proxy, certificate and Gradio variables; call before importing Gradio.

    At startup Gradio requests its own address over HTTP, which a proxy or missing certificates
    would break. It makes no other requests.
    """
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(FOREIGN) or name in CERTIFICATES:
            del os.environ[name]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, metavar="CHECKPOINT", help="folder, or config file"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default this machine only)"
    )
    port = "port (default the first free one from 7860)"
    parser.add_argument("--port", type=whole(1, PORTS), help=port)
    args = parser.parse_args()
    check_address(args.host, args.port)
    from utils.app.checkpoints import Checkpoints  # imports PyTorch, which takes seconds

    checkpoints = Checkpoints(args.checkpoints)
    leave_out_foreign()
    try:
        from utils.app import layout, server
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install '.[app]'") from None

    with server.own_folder():
        if problem := checkpoints.problem(checkpoints.names[0]):
            print(f"note: {problem}", file=sys.stderr)
        server.serve(layout.build_page(checkpoints), args.host, args.port, layout.PAGE_STYLE)


if __name__ == "__main__":
    run(main)
