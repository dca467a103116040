"""Finding and fetching the weight file, against a web server on this machine."""

import hashlib
import http.server
import shutil
import threading
from pathlib import Path

import pytest
import torch
from fid.features import FID_WEIGHTS_URL, find_weights, read_weights
from fid.files import ScoreError

BODY = bytes(range(256)) * 40


class Server(http.server.BaseHTTPRequestHandler):
    """Serves BODY; breaks off after `send` bytes."""

    send, asked = None, 0

    def do_GET(self):
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: self.send])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Server, "asked", 0)
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/"
    web.shutdown()
    web.server_close()


NAME = f"weights-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_public_file_is_the_default():
    assert FID_WEIGHTS_URL.endswith("/fid_weights/pt_inception-2015-12-05-6726825d.pth")
    from pytorch_fid.inception import FID_WEIGHTS_URL as THEIRS

    assert FID_WEIGHTS_URL == THEIRS


def test_a_missing_file_is_downloaded_once(server, tmp_path):
    found = find_weights(None, tmp_path / "cache", server + NAME)
    assert found.read_bytes() == BODY
    assert find_weights(None, tmp_path / "cache", server + NAME) == found
    assert Server.asked == 1
    assert names(tmp_path / "cache") == [NAME]


@pytest.mark.parametrize(("name", "send"), [(NAME, 1000), ("w-00000000.pth", None)])
def test_a_broken_or_wrong_download_leaves_no_file(server, tmp_path, monkeypatch, name, send):
    monkeypatch.setattr(Server, "send", send)
    with pytest.raises(ScoreError, match=r"cannot download the weights .*: fetch .* by hand"):
        find_weights(None, tmp_path, server + name)
    assert names(tmp_path) == []


def test_without_a_network_the_line_says_what_to_fetch_and_where_to_put_it(tmp_path):
    url = "http://127.0.0.1:9/" + NAME  # nothing listens there
    with pytest.raises(ScoreError) as caught:
        find_weights(None, tmp_path, url)
    line = str(caught.value)
    assert f"fetch {url} by hand and put it at {tmp_path / NAME}" in line
    assert "\n" not in line


def test_a_mistyped_proxy_is_one_line_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request._opener", None)  # which remembers earlier proxies
    monkeypatch.setenv("http_proxy", "http:/me:SECRET@host")
    with pytest.raises(ScoreError, match="cannot download the weights .*proxy URL") as caught:
        find_weights(None, tmp_path, "http://localhost.invalid/" + NAME)
    assert "SECRET" not in str(caught.value)


def test_weights_are_read_with_their_hash(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    shutil.copy(tmp_path / "w.pth", tmp_path / "w-20151205.pth")
    weights, sha256 = read_weights(tmp_path / "w-20151205.pth")  # a date, not a hash
    assert weights["a"].tolist() == [1, 1]
    assert sha256 == hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()


class Code:
    def __reduce__(self):
        return (print, ("code ran",))


def test_bad_weight_files_are_one_line_with_their_hash(tmp_path, capsys):
    torch.save({"a": torch.ones(2)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:-100])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": Code()}, tmp_path / "code.pth")
    for name in ("cut", "text", "empty", "list", "code"):
        path = tmp_path / f"{name}.pth"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        with pytest.raises(ScoreError, match=f"{name}.pth: not a PyTorch .* begins {sha256}") as e:
            read_weights(path)
        assert "\n" not in str(e.value)
    assert "code ran" not in capsys.readouterr().out
    (tmp_path / "pt-6726825d.pth").write_bytes(whole)
    with pytest.raises(ScoreError, match="wrong or truncated: its sha256 begins"):
        read_weights(tmp_path / "pt-6726825d.pth")
    with pytest.raises(ScoreError, match="no such weight file"):
        find_weights(str(tmp_path / "none.pth"), tmp_path)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # PyTorch's, while it writes the file
def test_a_program_in_place_of_weights_is_called_so_without_a_warning(tmp_path, recwarn):
    path = tmp_path / "inception.pt"
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(path)
    recwarn.clear()
    with pytest.raises(ScoreError, match="not a PyTorch weight file but a TorchScript program"):
        read_weights(path)
    assert not recwarn.list


ODD_TENSORS = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "on no device": lambda: torch.empty(2, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch's, about such tensors
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_weights_that_no_network_can_hold_are_one_line(tmp_path, kind):
    torch.save({"a": ODD_TENSORS[kind]()}, tmp_path / "w.pth")
    with pytest.raises(ScoreError, match="w.pth: not a PyTorch weight file or truncated"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("data", [b"Repository not found", b"J0", b"}bX", b"(b.", b"0"])
def test_a_text_that_a_server_sent_for_the_weights_is_one_line(tmp_path, data):
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    with pytest.raises(ScoreError, match="w.pth: not a PyTorch weight file or truncated"):
        read_weights(path)


def test_without_a_home_nothing_is_fetched_into_a_folder_called_tilde(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without an entry
    with pytest.raises(ScoreError, match=r"~/\.cache/torch/hub: this user has no home folder; set"):
        find_weights(None, None)
    assert list(tmp_path.iterdir()) == []
