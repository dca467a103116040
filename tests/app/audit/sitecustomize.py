"""Python loads this by its name at the start: notes whom a process calls and what it writes."""

import os
import sys

LOG = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
WRITING = os.O_WRONLY | os.O_RDWR


def note(event: str, arguments: tuple) -> None:
    """An audit hook (PEP 578): one line an event, ``connect WHERE`` or ``write PATH``."""
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        os.write(LOG, f"connect {arguments[1][0]}\n".encode())
    elif event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING:
        os.write(LOG, f"write {os.path.abspath(arguments[0])}\n".encode())


sys.addaudithook(note)
