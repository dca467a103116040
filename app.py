"""Paint a hole and watch it fill: ``python app.py``, then open the address it prints.

Without a folder it takes the released cats64; a run folder, imported lab files or a config file do
as well, and several of them can be chosen from on the page.
"""

import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import utils  # noqa: F401  first: makes failed imports one-line errors
from config.errors import UserError
from utils.cli import ArgumentParser, run

PORTS = 65535
FOREIGN = ("GRADIO_",)  # beginnings of names: settings of another program's page
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")  # read even for plain HTTP


def port(text: str) -> int:
    """A TCP port, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= PORTS:
        raise ArgumentTypeError(f"'{text}' is no port from 1 to {PORTS}")
    return int(text)


def leave_out_foreign() -> None:
    """Forget proxies, certificates and Gradio's settings; to be called before Gradio is imported.

    On its way up Gradio asks itself over HTTP whether it answers, which a proxy, or certificates
    that are missing, would keep from it. The page calls nobody else.
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
    parser.add_argument("--port", type=port, help="port (default the first free one from 7860)")
    args = parser.parse_args()
    leave_out_foreign()
    try:
        from utils.app import layout, server
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install '.[app]'") from None
    from utils.app.checkpoints import Checkpoints

    server.check_address(args.host, args.port)
    with server.own_folder():
        checkpoints = Checkpoints(args.checkpoints)
        if problem := checkpoints.problem(checkpoints.names[0]):
            print(f"note: {problem}", file=sys.stderr)
        server.serve(layout.build_page(checkpoints), args.host, args.port, layout.PAGE_STYLE)


if __name__ == "__main__":
    run(main)
