"""Paint a hole and watch it fill: ``python app.py``, then open the address it prints.

Without a folder it takes the released cats64; a run folder, imported lab files or a config file do
as well, and several of them can be chosen from on the page.
"""

import sys
from argparse import ArgumentTypeError
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # which python -P leaves out

import utils  # noqa: F401  first: from then on what ends an import is said in one line
from config.errors import UserError
from utils.app.environment import leave_out_foreign
from utils.cli import ArgumentParser, run

PORTS = 65535


def port(text: str) -> int:
    """A TCP port, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= PORTS:
        raise ArgumentTypeError(f"'{text}' is no port from 1 to {PORTS}")
    return int(text)


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
