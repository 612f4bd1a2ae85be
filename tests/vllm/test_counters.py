"""Where the counters are seen: the log, also after the last step, and Prometheus' page."""
import logging
import os
import subprocess
import sys
import time

import pytest
from relay_attention_port.vllm.counters import Tally

WORKER = """
import multiprocessing, sys
def work(steps):
    from relay_attention_port.vllm.counters import tally
    class Holder:
        num_bytes = 1000 * steps
    holder = Holder()
    tally.watch(holder)
    for step in range(steps):
        tally.add(2, 100)
    sys.exit(0 if tally.read().steps == steps else 3)
if __name__ == "__main__":
    workers = [multiprocessing.get_context("spawn").Process(target=work, args=(steps,), name=f"Worker-{steps}")
               for steps in (3, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    print(generate_latest(registry).decode())
    sys.exit(max(worker.exitcode for worker in workers))
"""


def lines(caplog):
    return [record.getMessage() for record in caplog.records if "steps relayed" in record.getMessage()]


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_last_step_is_logged(caplog):
    caplog.set_level(logging.INFO, "relay_attention_port")
    tally = Tally()
    tally.log_if_due(0.2)
    tally.add(1, 10)
    assert until(lambda: len(lines(caplog)) == 1)
    tally.log_if_due(0.2)
    for _ in range(4):
        tally.add(1, 10)  # no step follows
    assert len(lines(caplog)) == 1
    assert until(lambda: len(lines(caplog)) == 2) and "5 of 5 steps relayed, 5 groups, 50 K/V" in lines(caplog)[1]
    tally.log_if_due(0.2)
    assert not until(lambda: len(lines(caplog)) > 2, 0.5)  # nothing new, no line


def test_every_step_is_logged(caplog):
    caplog.set_level(logging.INFO, "relay_attention_port")
    tally = Tally()
    for _ in range(3):
        tally.log_if_due(0)
        tally.add(0, 0)
    assert len(lines(caplog)) == 2 and "0 of 2 steps" in lines(caplog)[1]


def run_workers(tmp_path, folder):
    script = tmp_path / "workers.py"
    script.write_text(WORKER)
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=120)


def test_prometheus_joins_workers(tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    done = run_workers(tmp_path, folder)
    assert done.returncode == 0, done.stderr
    page = done.stdout.splitlines()
    for steps in (3, 5):
        assert f'relay_attention_steps_total{{worker="Worker-{steps}"}} {steps}.0' in page
        assert f'relay_attention_groups_total{{worker="Worker-{steps}"}} {2 * steps}.0' in page
        assert f'relay_attention_tokens_saved_total{{worker="Worker-{steps}"}} {100 * steps}.0' in page
        assert f'relay_attention_packed_bytes{{worker="Worker-{steps}"}} {1000 * steps}.0' in page


def test_prometheus_folder_that_is_none(tmp_path):
    """Counting goes on; each worker says once what is wrong."""
    folder = tmp_path / "metrics"
    code = ("from relay_attention_port.vllm.counters import tally\n"
            "for _ in range(3): tally.add(1, 1)\nassert tally.read().steps == 3")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no counters on /metrics") == 1 and str(folder) in done.stderr


@pytest.mark.parametrize("folder", [None, ""])
def test_prometheus_off(folder):
    code = ("import sys\nfrom relay_attention_port.vllm.counters import tally\ntally.add(1, 1)\n"
            "assert 'prometheus_client' not in sys.modules")
    env = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    if folder is not None:
        env["PROMETHEUS_MULTIPROC_DIR"] = folder
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
