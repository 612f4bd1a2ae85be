"""`vllm serve` on this machine, from health to a clean end: what vllm_demo.py and bench/serve_vllm.py share."""
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

COUNTERS = re.compile(r"RelayAttention: (\d+) of (\d+) steps relayed, (\d+) groups, (\d+) K/V tokens")
HEALTHY_WITHIN = 900  # seconds; a server that ends is seen at once


def environment(plain):
    """For a server with the plugin, with the relay or without."""
    env = {**os.environ, "RELAY_VLLM": "plain" if plain else "on", "RELAY_VLLM_LOG_INTERVAL": "0.2",
           "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    env.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return env


class Server:
    """One server on a free port, started at once and stopped at the end of its context. ``arguments`` are those of
    `vllm serve`, ``python`` the interpreter whose vLLM serves."""

    def __init__(self, log_path, env, arguments, python=sys.executable):
        self.log_path = log_path
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [python, "-m", "vllm.entrypoints.cli.main", "serve", *arguments, "--host", "127.0.0.1",
                   "--port", str(self.port)]
        self.log = open(self.log_path, "w")
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def wait(self):
        """Until it is healthy."""
        began = time.monotonic()
        while time.monotonic() - began < HEALTHY_WITHIN and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    print(f"  healthy after {time.monotonic() - began:.0f} s")
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        sys.exit(f"the server did not come up; see {self.log_path}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.code = self.process.wait()
        self.log.close()

    def __exit__(self, *_):
        self.stop()
        print("  the server has stopped" if self.code == 0 else f"  the server ended with {self.code}")

    def counters(self):
        """(relayed steps, steps, groups, tokens saved), as logged last."""
        with open(self.log_path) as log:
            found = COUNTERS.findall(log.read())
        return tuple(map(int, found[-1])) if found else (0, 0, 0, 0)
