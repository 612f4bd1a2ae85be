"""Requests that come and go against a pool that is too small: preemption, aborts, eviction of cached prefixes and block
ids that are used again. Every answer must be right. What the process holds is printed, not judged: vLLM and PyTorch grow
by themselves; that the backend does not is test_backend.py's test_memory_is_flat."""
import os
import random

import pytest
from engines import counted, engine, greedy
from serving import LOOKUP, handbook
from vllm.v1.worker.cpu_worker import CPUWorker

BOOKS, BLOCKS, RUNNING = 24, 140, 32  # the books alone need some 250 blocks
LONG = int(os.environ.get("CHURN_REQUESTS", 5000))  # takes minutes for each thousand
BLOCK_BYTES = 4 * 2 * 16 * 2 * 64 * 2  # layers, K and V, tokens, kv heads, head size, bf16


def resident_mib():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Churn:
    """Keeps about RUNNING requests going; some are aborted on the way."""

    def __init__(self, llm, asks, seed):
        self.engine, self.asks, self.rng = llm.llm_engine, asks, random.Random(seed)
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.expected, self.begun, self.right, self.aborted = {}, 0, 0, 0
        self.preempted = set()

    def add(self):
        prompt, expected = self.rng.choice(self.asks)
        name = str(self.begun)
        self.begun += 1
        self.expected[name] = expected
        # long answers go on behind the end of the text, so that they need blocks while others run
        self.engine.add_request(name, prompt, greedy(self.rng.choice([4, 8, 16, 100]), ignore_eos=True, detokenize=True))

    def abort(self):
        name = self.rng.choice(list(self.expected))
        del self.expected[name]
        self.engine.abort_request([name])
        self.aborted += 1

    def take(self, output):
        expected = self.expected.pop(output.request_id)
        text = output.outputs[0].text.split()
        assert " ".join(text[:2]) == expected, f"request {output.request_id}: {text[:4]}, expected {expected}"
        self.right += 1

    def step(self, total):
        while self.begun < total and len(self.expected) < RUNNING and self.rng.random() < 0.7:
            self.add()
        if self.expected and self.rng.random() < 0.02:
            self.abort()
        for output in self.engine.step():
            if output.finished and output.request_id in self.expected:
                self.take(output)
        self.preempted |= {request.request_id for request in self.scheduler.waiting
                           if request.status.name == "PREEMPTED"}

    def run(self, total):
        """All of them; returns what the process held after a quarter."""
        early = None
        while self.begun < total or self.engine.has_unfinished_requests():
            self.step(total)
            if early is None and self.right >= total // 4:
                early = resident_mib()
        return early


def small_pool(monkeypatch):
    """BLOCKS blocks: vLLM 0.9.1 says that it applies num_gpu_blocks_override, and does not."""
    monkeypatch.setattr(CPUWorker, "determine_available_memory", lambda self: BLOCKS * BLOCK_BYTES)


def asks_of(folder):
    """(prompt, answer) of BOOKS handbooks."""
    rng, asks = random.Random(2), []
    for book in range(BOOKS):
        path, requests = handbook(folder / str(book), rng.choice([8, 20, 40, 60]), 40, 100 + book)
        text = open(path).read().rstrip("\n")
        asks += [(text + " " + request["text"], request["expected"]) for request in requests]
    return asks


@pytest.mark.parametrize("total", [200, pytest.param(LONG, marks=pytest.mark.long)])
def test_churn(total, tmp_path, monkeypatch):
    small_pool(monkeypatch)
    asks = asks_of(tmp_path)
    with engine(LOOKUP, "relay", max_model_len=1024, max_num_seqs=RUNNING,
                max_num_batched_tokens=512) as llm:
        before = counted(llm)
        churn = Churn(llm, asks, total)
        early = churn.run(total)
        late = resident_mib()
        did = counted(llm)
        free = churn.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert churn.right + churn.aborted == total and churn.right > 0.6 * total and churn.aborted > 0
    assert len(churn.preempted) > total // 100, "the pool was never too small"
    assert did["relayed_steps"] > before["relayed_steps"]
    assert free == BLOCKS - 1  # all but vLLM's null block
    print(f"{total} requests: {churn.right} right, {churn.aborted} aborted, {len(churn.preempted)} preempted, "
          f"{early:.0f} -> {late:.0f} MiB")
