#!/usr/bin/env python3
"""Random traffic against a pool of blocks that is too small, in a process of its own so that its memory can be judged.

    churn.py --warm-up N --requests N --leak N --bytes N

vLLM with the plugin answers: first every question by plain attention, in a large pool and without a prefix cache; then,
with the relay, --warm-up requests, --requests more, and --leak more for each of which --bytes are kept on purpose. Prints
one JSON object: what happened, and what the process held between these parts, packed copies aside. Ends with an error at
the first answer that is not the plain one. test_churn.py runs and judges it."""
import argparse
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
from collections import Counter

from chain_model import HEAD_DIM, KV_HEADS, LAYERS, books, chain_model
from engines import counted, counted_since, engine, greedy
from vllm.v1.request import RequestStatus
from vllm.v1.worker.cpu_worker import CPUWorker

BOOKS, ASKS = 24, 10           # texts, questions to each; the texts alone nearly fill the pool
BLOCKS, RUNNING = 140, 32      # requests at a time at most
BLOCK_BYTES = LAYERS * 2 * 16 * KV_HEADS * HEAD_DIM * 2  # K and V, tokens, bf16
STEP_TOKENS = 128              # longer prompts are read in several steps
LENGTHS = [1, 4, 8, 16, 100]   # words of an answer
ABORTED = 0.04                 # of the steps
LEAST_MARGIN = 5.0             # between a best logit of about 30 and the next; bf16 rounds such logits by 0.125


def questions(seed):
    """[(prompt, the words of its right answer)]."""
    rng = random.Random(seed)
    made = []
    for book in books(rng, BOOKS, [4, 8, 12]):
        for _ in range(ASKS):
            prompt, walk = book.ask(rng, rng.randrange(2, 5))
            made.append((prompt, walk(max(LENGTHS)).split()))
    return made


def plain_answers(model, asks):
    """The words that the plugin's plain attention answers. Checks that they are right, and that rounding decides none."""
    with engine(model, "plain", max_model_len=1024, max_num_seqs=RUNNING, enable_prefix_caching=False) as llm:
        before = counted(llm)
        outputs = llm.generate([prompt for prompt, _ in asks], greedy(max(LENGTHS), ignore_eos=True, logprobs=2),
                               use_tqdm=False)
        assert counted_since(llm, before)["relayed_steps"] == 0
    for output, (_, right) in zip(outputs, asks):
        assert output.outputs[0].text.split() == right
        for best in output.outputs[0].logprobs:
            first, second = sorted((p.logprob for p in best.values()), reverse=True)[:2]
            assert first - second > LEAST_MARGIN
    return [output.outputs[0].text.split() for output in outputs]


class Pool:
    """Counts what vLLM's block pool hands out, and forgets for that, from now on."""

    def __init__(self, pool):
        self.given, self.evicted = Counter(), 0
        get, evict = pool.get_new_blocks, pool._maybe_evict_cached_block

        def count_given(number):
            blocks = get(number)
            self.given.update(block.block_id for block in blocks)
            return blocks

        def count_evicted(block):
            gone = evict(block)
            self.evicted += gone
            return gone
        pool.get_new_blocks, pool._maybe_evict_cached_block = count_given, count_evicted


def mend_resumed(scheduler, runner, happened):
    """vLLM 0.9.1's runner does not know the last word of a request that was preempted. If its tokens are then read up to
    just that word (the rest of them in the next step), the word is sampled a second time and stays in the answer twice,
    with any attention. Here the runner is told."""
    update = runner._update_states

    def tell_and_update(step):
        for data in step.scheduled_cached_reqs:
            if data.resumed_from_preemption:
                request = scheduler.requests[data.req_id]
                runner.requests[data.req_id].output_token_ids[:] = request.output_token_ids
                read = data.num_computed_tokens + step.num_scheduled_tokens[data.req_id]
                happened["mended"] += read == request.num_tokens - 1
        update(step)
    runner._update_states = tell_and_update


class Traffic:
    """Up to RUNNING requests at a time, some of which are aborted; `happened` counts. Every answer is checked, whole."""

    def __init__(self, llm, asks, seed):
        self.engine, self.asks, self.rng = llm.llm_engine, asks, random.Random(seed)
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.open, self.happened = {}, Counter()
        self.waiting_again, self.were_preempted = set(), set()
        self.leak, self.leaked = 0, []
        mend_resumed(self.scheduler, self.engine.model_executor.driver_worker.worker.model_runner, self.happened)

    def add(self):
        prompt, words = self.rng.choice(self.asks)
        length = self.rng.choice(LENGTHS)
        name = str(self.happened["begun"])
        self.open[name] = words[:length]
        self.engine.add_request(name, prompt, greedy(length, ignore_eos=True))
        self.happened["begun"] += 1
        if self.leak:
            self.leaked.append(os.urandom(self.leak))

    def stage(self, name):
        request = self.scheduler.requests[name]
        if request.status == RequestStatus.RUNNING:
            return "answering" if request.num_output_tokens else "reading"
        return request.status.name.lower()

    def abort(self):
        """One of those at a stage that is drawn first: few are seen preempted, or with half of their prompt read."""
        stages = {name: self.stage(name) for name in self.open}
        stage = self.rng.choice(sorted(set(stages.values())))
        name = self.rng.choice([name for name in stages if stages[name] == stage])
        self.engine.abort_request([name])
        del self.open[name]
        self.happened["aborted"] += 1
        self.happened[f"aborted_{stage}"] += 1

    def take(self, output):
        name, expected = output.request_id, self.open.pop(output.request_id)
        words = output.outputs[0].text.split()
        assert words == expected, f"request {name}: {' '.join(words)}, expected {' '.join(expected)}"
        self.happened["right"] += 1
        self.happened["right_after_preemption"] += name in self.were_preempted

    def see_preempted(self):
        """A request that is preempted waits at least until the next step."""
        now = {request.request_id for request in self.scheduler.waiting if request.status == RequestStatus.PREEMPTED}
        self.happened["preempted"] += len(now - self.waiting_again)
        self.waiting_again = now
        self.were_preempted |= now

    def step(self, total):
        burst = self.rng.random() < 0.1
        while self.happened["begun"] < total and len(self.open) < RUNNING and (burst or self.rng.random() < 0.5):
            self.add()
        if self.open and self.rng.random() < ABORTED:
            self.abort()
        for output in self.engine.step():
            if output.finished and output.request_id in self.open:
                self.take(output)
        self.see_preempted()

    def more(self, requests):
        total = self.happened["begun"] + requests
        while self.happened["begun"] < total or self.open:
            self.step(total)
        self.were_preempted.clear()


def held():
    """Bytes that this process holds, without what malloc only keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def small_pool(set_attribute=setattr):
    """BLOCKS blocks: vLLM 0.9.1 says that it applies num_gpu_blocks_override, and does not."""
    set_attribute(CPUWorker, "determine_available_memory", lambda self: BLOCKS * BLOCK_BYTES)


def churn(model, asks, given):
    small_pool()
    with engine(model, "relay", max_model_len=1024, max_num_seqs=RUNNING, max_num_batched_tokens=STEP_TOKENS) as llm:
        traffic, before = Traffic(llm, asks, seed=1), counted(llm)
        blocks = traffic.scheduler.kv_cache_manager.block_pool
        pool, memory = Pool(blocks), []
        for requests, leak in ((given.warm_up, 0), (given.requests, 0), (given.leak, given.bytes)):
            traffic.leak = leak
            traffic.more(requests)
            memory.append(held() - counted(llm)["packed_bytes"])
        return {**traffic.happened, **counted_since(llm, before), "memory": memory, "blocks_evicted": pool.evicted,
                "fewest_uses_of_a_block": min(pool.given[block] for block in range(1, BLOCKS)),  # 0 is vLLM's null block
                "blocks_handed_out_again": sum(pool.given.values()) - len(pool.given),
                "blocks_not_given_back": BLOCKS - 1 - blocks.get_num_free_blocks()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--warm-up", 400), ("--requests", 400), ("--leak", 0), ("--bytes", 0)):
        parser.add_argument(option, type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, asks = chain_model(folder), questions(2)
        plain = plain_answers(model, asks)
        did = churn(model, [(prompt, words) for (prompt, _), words in zip(asks, plain)], given)
    json.dump(did, sys.stdout)


if __name__ == "__main__":
    main()
