"""Ctrl-C of `vllm serve`: it ends soon, and leaves no process behind."""
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from serving import LOOKUP

PORT = 18761
LOADING = "Starting to load model"


class Server:
    """`vllm serve` in a session of its own, as a terminal starts it; Ctrl-C goes to all of its processes."""

    def __init__(self, log):
        self.log = log
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [os.path.join(os.path.dirname(sys.executable), "vllm"), "serve", LOOKUP, "--host", "127.0.0.1", "--port",
                 str(PORT), "--max-model-len", "1024"], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"})

    def said(self):
        with open(self.log) as f:
            return f.read()

    def serves(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5).status == 200
        except OSError:
            return False

    def alive(self):
        """Any of its processes, the ones that have ended and wait for their parent included."""
        try:
            os.killpg(self.process.pid, 0)
            return True
        except ProcessLookupError:
            return False


def within(seconds, what):
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def server(tmp_path):
    it = Server(tmp_path / "log")
    yield it
    if it.alive():
        os.killpg(it.process.pid, signal.SIGKILL)
        it.process.wait()


@pytest.mark.long
@pytest.mark.parametrize("moment", ["loading", "serving"])
def test_ctrl_c(server, moment):
    reached = server.serves if moment == "serving" else lambda: LOADING in server.said()
    assert within(600, lambda: reached() or server.process.poll() is not None) and server.process.poll() is None, server.said()
    os.killpg(server.process.pid, signal.SIGINT)
    assert within(60, lambda: server.process.poll() is not None), server.said()
    assert (server.process.returncode == 0) == (moment == "serving"), server.said()
    assert within(30, lambda: not server.alive()), server.said()
    assert "Segmentation fault" not in server.said() and "core dumped" not in server.said()
