"""What the page leaves out of the environment before Gradio reads it."""

from __future__ import annotations

import os

FOREIGN = ("GRADIO_",)  # beginnings of names: settings of another program's page
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")  # read even for plain HTTP


def leave_out_foreign() -> None:
    """Forget proxies, certificates and Gradio's settings; to be called before Gradio is imported.

    On its way up Gradio asks itself over HTTP whether it answers, which a proxy, or certificates
    that are missing, would keep from it. The page calls nobody else.
    """
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(FOREIGN) or name in CERTIFICATES:
            del os.environ[name]
