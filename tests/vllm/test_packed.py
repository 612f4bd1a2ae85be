"""Packed copies of prefixes that stay shared: what is read from them is what vLLM's pages hold, whatever happens to the
blocks. A worker here is a builder, some layers and their pools; blocks are written through the slots of its steps alone,
as in vLLM. Every step's answer is compared with attention in float64 over the pages."""
import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chain_model import chain_model
from churn import RUNNING, Traffic, questions, small_pool
from engines import counted, counted_since, engine, greedy
from python_package import attention, close
from serving import LOOKUP, handbook
from test_backend import BLOCK, Table, impl_of
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

from relay_attention_port.relay_attention_backend import RelayAttentionBackend
from relay_attention_port.vllm import counters, packed
from relay_attention_port.vllm.packed import PackedPrefixes

HEADS, KV_HEADS, SIZE = 4, 2, 64
POOL = 120
SYSTEM = list(range(3, 23))  # blocks of a prompt
TOKEN_BYTES = 2 * KV_HEADS * SIZE * 2  # of one layer, packed


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Packed after three steps."""
    monkeypatch.setattr(packed, "AFTER_STEPS", 3)


class Worker:
    def __init__(self, layers=2, windows=(), config=None, **settings):
        self.rng = np.random.default_rng(7)
        self.runner = SimpleNamespace(kv_cache_config=SimpleNamespace(num_blocks=POOL), vllm_config=SimpleNamespace(
            additional_config={"relay": {"strategy": "relay", **settings}}, **(config or {})))
        self.table = Table(None, None)
        self.builder = RelayAttentionBackend.get_builder_cls()(self.runner, SimpleNamespace(block_size=BLOCK), self.table)
        self.layers = []
        for _ in range(layers):
            self.add_layer()
        for window in windows:
            self.add_layer(window)
        self.before = counters()

    def add_layer(self, window=None, cache=None, **options):
        shape = RelayAttentionBackend.get_kv_cache_shape(POOL, BLOCK, KV_HEADS, SIZE)
        cache = self.draw(*shape) if cache is None else cache
        self.layers.append((impl_of(HEADS, KV_HEADS, SIZE, sliding_window=window, **options), cache, window or 0))

    def draw(self, *shape):
        return torch.from_numpy(self.rng.standard_normal(shape).astype(np.float32)).to(torch.bfloat16)

    def since(self, name):
        """How much a counter grew."""
        return getattr(counters(), name) - getattr(self.before, name)

    @property
    def copies(self):
        return self.builder.planner.packed

    def step(self, requests):
        """Requests of (ids of all blocks, tokens, new ones among them): the new K/V are written, each layer answers."""
        lens = np.array([tokens for _, tokens, _ in requests], np.int32)
        rows = [new for _, _, new in requests]
        starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)
        self.runner.seq_lens_np, self.runner.query_start_loc_np = lens, starts
        self.table.rows = np.full((len(requests), int(lens.max()) // BLOCK + 2), 2**30, np.int32)
        for row, (ids, _, _) in zip(self.table.rows, requests):
            row[:len(ids)] = ids
        self.table.slot_mapping_np = np.array([ids[at // BLOCK] * BLOCK + at % BLOCK for ids, tokens, new in requests
                                               for at in range(tokens - new, tokens)], np.int64)
        metadata = self.builder.build(len(requests), int(starts[-1]), max(rows), 0, None)
        for impl, cache, window in self.layers:
            self.check(impl, cache, window, metadata, requests, starts)

    def check(self, impl, cache, window, metadata, requests, starts):
        query, key, value = (self.draw(int(starts[-1]), heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS))
        output = torch.empty_like(query)
        impl.forward(None, query, key, value, cache, metadata, output)
        for r, (ids, tokens, _) in enumerate(requests):
            mine = slice(int(starts[r]), int(starts[r + 1]))
            keys, values = (pool[ids].flatten(0, 1)[:tokens].float().numpy() for pool in cache)
            close(output[mine].float().numpy(), attention(query[mine].float().numpy(), keys, values, window=window)[0],
                  2e-2)

    def decode(self, steps, prefix=SYSTEM, count=3, first=40, length=40):
        """Some requests that decode over a prefix, in blocks of their own from `first` on."""
        own = -(-(length + steps) // BLOCK)
        tables = [[*prefix, *range(first + own * r, first + own * (r + 1))] for r in range(count)]
        for step in range(steps):
            self.step([(ids, len(prefix) * BLOCK + length + step - r, 1) for r, ids in enumerate(tables)])

    def write(self, ids):
        """A request's prefill into these blocks."""
        self.step([(list(ids), len(ids) * BLOCK, len(ids) * BLOCK)])


def test_packed_and_read():
    worker = Worker()
    worker.decode(12)
    assert worker.since("packed_prefixes") == 1
    assert worker.since("packed_steps") == 12 - 4  # the first step shows what layers there are, three the prefix
    assert worker.copies.num_bytes == 2 * len(SYSTEM) * BLOCK * TOKEN_BYTES
    assert worker.since("forgotten") == 0
    assert f"{counters().packed_prefixes} prefixes packed" in counters().line()


@pytest.mark.parametrize("block", [0, 7, 19])
def test_a_block_used_again(block):
    """One block of the prefix gets other content under the same id: the copy is dropped before it is read."""
    worker = Worker()
    worker.decode(8)
    worker.write([SYSTEM[block]])
    assert worker.since("forgotten") == 1 and worker.copies.num_bytes == 0
    worker.decode(3)
    assert worker.since("packed_prefixes") == 1
    worker.decode(8)
    assert worker.since("packed_prefixes") == 2


@pytest.mark.parametrize("mutation", ["no write is noted", "every copy is valid"])
def test_the_checks_are_needed(mutation, monkeypatch):
    """What the test above would see if writes did not matter."""
    worker = Worker()
    worker.decode(8)
    if mutation == "no write is noted":
        begin = PackedPrefixes.begin
        monkeypatch.setattr(PackedPrefixes, "begin", lambda self, slots, blocks: begin(self, slots[:0], blocks))
    else:
        monkeypatch.setattr(PackedPrefixes, "_is_valid", lambda self, copy: True)
    worker.write([SYSTEM[7]])
    with pytest.raises(AssertionError):
        worker.decode(3)


def test_written_while_it_is_packed(monkeypatch):
    """Layers are packed in several steps; a write between them spoils all."""
    monkeypatch.setattr(packed, "BYTES_A_STEP", 1)
    worker = Worker(layers=4)
    worker.decode(5)  # seen three times, two of four layers packed
    assert worker.copies.num_bytes > 0 and worker.since("packed_prefixes") == 0
    worker.write(SYSTEM[:1])
    assert worker.copies.num_bytes == 0
    worker.decode(12)
    assert worker.since("packed_prefixes") == 1 and worker.since("packed_steps") > 0


def test_written_in_the_step_that_would_pack():
    """Two requests may be given blocks that a third fills in the same step."""
    worker = Worker()
    worker.decode(2)
    tables = [[*SYSTEM, 40 + r] for r in range(2)]
    for _ in range(6):
        worker.step([*((ids, len(SYSTEM) * BLOCK + 3, 1) for ids in tables),
                     (SYSTEM, len(SYSTEM) * BLOCK, len(SYSTEM) * BLOCK)])
    assert worker.since("packed_prefixes") == 0


@pytest.mark.parametrize("bytes_a_step", [1, 1 << 30], ids=["layer by layer", "at once"])
@pytest.mark.parametrize("at", range(1, 10))
def test_a_write_at_any_moment(at, bytes_a_step, monkeypatch):
    """Before, in, and after the steps that see the prefix, pack it and read it: a request fills the prefix's first block
    while the others read it."""
    monkeypatch.setattr(packed, "BYTES_A_STEP", bytes_a_step)
    worker = Worker()
    tables = [[*SYSTEM, 40 + r] for r in range(2)]
    for step in range(12):
        writer = [(SYSTEM[:1], BLOCK, BLOCK)] if step == at else []
        worker.step([*((ids, len(SYSTEM) * BLOCK + 1 + step, 1) for ids in tables), *writer])
    assert worker.since("packed_prefixes") == worker.since("forgotten") + 1 or at > 7


def test_the_beginning_of_a_copy_is_read():
    worker = Worker()
    worker.decode(8)
    before = worker.since("packed_steps")
    worker.decode(2, prefix=SYSTEM[:9])
    assert worker.since("packed_steps") == before + 2 and worker.since("packed_prefixes") == 1


def test_a_longer_copy_replaces_a_shorter():
    worker = Worker()
    worker.decode(8, prefix=SYSTEM[:9])
    worker.decode(8)
    assert worker.since("packed_prefixes") == 2 and worker.since("forgotten") == 1
    assert worker.copies.num_bytes == 2 * len(SYSTEM) * BLOCK * TOKEN_BYTES
    worker.decode(2, prefix=SYSTEM[:9])
    assert worker.since("packed_prefixes") == 2


def test_nested_and_side_by_side():
    worker = Worker()
    tools, other = [25, 24, 27, 26, 30, 29], list(range(100, 112))
    tables = [[*SYSTEM, *tools, 40], [*SYSTEM, *tools, 41], [*SYSTEM, 42, 43], [*other, 44], [*other, 45]]
    for step in range(10):
        worker.step([(ids, len(ids) * BLOCK - 12 + step, 1) for ids in tables])
    assert worker.since("packed_prefixes") == 3
    assert worker.copies.num_bytes == 2 * (20 * BLOCK + 128 + 192) * TOKEN_BYTES  # 96 tokens fill two tiles of 64


def test_prefill_over_a_copy():
    worker = Worker()
    worker.decode(8)
    before = worker.since("packed_steps")
    worker.step([([*SYSTEM, 40, 41, 42], len(SYSTEM) * BLOCK + 48, 48), ([*SYSTEM, 43], len(SYSTEM) * BLOCK + 5, 1)])
    assert worker.since("packed_steps") == before + 1


def test_layers_with_a_window_read_pages():
    worker = Worker(layers=2, windows=(100, 1000))
    worker.decode(10)
    assert worker.since("packed_steps") > 0
    assert worker.copies.num_bytes == 2 * len(SYSTEM) * BLOCK * TOKEN_BYTES  # of the two without


def test_a_window_alone_packs_nothing():
    worker = Worker(layers=0, windows=(100,))
    worker.decode(10)
    assert worker.since("packed_prefixes") == 0


def test_layers_that_share_keys_share_the_copy():
    worker = Worker(layers=1)
    worker.add_layer(cache=worker.layers[0][1], kv_sharing_target_layer_name="layers.0")
    worker.decode(8)
    assert worker.since("packed_steps") > 0
    assert worker.copies.num_bytes == len(SYSTEM) * BLOCK * TOKEN_BYTES


def test_a_layer_that_comes_late():
    worker = Worker()
    worker.decode(8)
    worker.add_layer()
    worker.decode(1)
    assert worker.since("forgotten") == 1 and worker.copies.num_bytes == 0
    worker.decode(8)
    assert worker.copies.num_bytes == 3 * len(SYSTEM) * BLOCK * TOKEN_BYTES


def test_layers_of_two_shapes_pack_nothing():
    worker = Worker()
    other = worker.draw(*RelayAttentionBackend.get_kv_cache_shape(POOL, BLOCK, KV_HEADS * 2, SIZE))
    impl = impl_of(HEADS, KV_HEADS * 2, SIZE)
    worker.decode(1)
    draw = worker.draw
    impl.forward(None, draw(3, HEADS, SIZE), draw(3, 2 * KV_HEADS, SIZE), draw(3, 2 * KV_HEADS, SIZE), other,
                 worker.builder.build(3, 3, 1, 0, None), draw(3, HEADS, SIZE))
    worker.decode(8)
    assert worker.since("packed_prefixes") == 0


def gib(tokens, layers=2):
    return layers * tokens * TOKEN_BYTES / 2**30


def test_the_bound_holds():
    """Room for one prompt of 20 blocks: the one in use stays, an idle one makes room."""
    bound = gib(20 * BLOCK)
    worker = Worker(packed_gib=bound)
    other = list(range(100, 120))
    worker.decode(8)
    for step in range(6):  # both in use
        worker.step([([*prefix, 40 + r], 20 * BLOCK + 1 + step, 1) for r, prefix in enumerate([SYSTEM, SYSTEM, other, other])])
        assert 0 < worker.copies.num_bytes <= bound * 2**30
    assert worker.since("packed_prefixes") == 1 and worker.since("forgotten") == 0
    worker.decode(12, prefix=other)
    assert worker.since("packed_prefixes") == 2 and worker.since("forgotten") == 1
    assert worker.copies.num_bytes <= bound * 2**30


def test_the_least_recently_used_goes_first():
    worker = Worker(packed_gib=gib(2 * 12 * BLOCK))
    first, second, third = (list(range(at, at + 12)) for at in (0, 12, 24))
    for prefix in (first, second, first, third):
        worker.decode(6, prefix=prefix)
    before = worker.since("packed_prefixes")
    assert before == 3
    worker.decode(1, prefix=first)
    packed_steps = worker.since("packed_steps")
    worker.decode(1, prefix=second)
    assert worker.since("packed_steps") == packed_steps


def test_what_does_not_fit_drops_nothing():
    worker = Worker(packed_gib=gib(12 * BLOCK))
    worker.decode(6, prefix=SYSTEM[:12])
    worker.decode(12, prefix=list(range(100, 120)))
    assert worker.since("packed_prefixes") == 1 and worker.since("forgotten") == 0


@pytest.mark.parametrize("settings, config", [
    (dict(packed_gib=0), {}), (dict(deterministic=True), {}), (dict(strategy="plain"), {}), (dict(max_depth=0), {}),
    ({}, dict(kv_transfer_config=object()))], ids=["packed_gib", "deterministic", "plain", "max_depth", "connector"])
def test_turned_off(settings, config):
    worker = Worker(config=config, **settings)
    worker.decode(8)
    assert worker.copies is None and worker.since("packed_prefixes") == 0


def test_memory_is_given_back():
    def resident_mib():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096 / 2**20
    worker = Worker(layers=100)
    worker.decode(5)
    held, full = worker.copies.num_bytes / 2**20, resident_mib()
    assert held > 12 and counters().packed_bytes >= held * 2**20
    worker.write(SYSTEM[:1])
    worker.decode(1)  # the last step's forest has let go
    assert full - resident_mib() > held * 0.8
    del worker
    gc.collect()
    assert counters().packed_bytes == 0


def test_random_traffic():
    """Requests over prompts whose blocks are taken, freed, and taken by others in a pool that is too small."""
    worker, rng = Worker(layers=1), np.random.default_rng(3)
    free, running, cached = set(range(POOL)), [], {}
    for _ in range(400):
        if len(running) < 6:
            name = int(rng.integers(0, 12))
            if name not in cached:
                for old in [key for key in cached if not any(r[0] == key for r in running)]:
                    if len(free) >= 40:
                        break
                    free |= set(cached.pop(old))
                if len(free) >= 40:
                    cached[name] = [free.pop() for _ in range(int(rng.integers(5, 25)))]
                    worker.write(cached[name])
            if name in cached and len(free) > 8:
                running.append([name, [free.pop() for _ in range(2)], int(rng.integers(1, 8)), int(rng.integers(3, 24))])
        if running:
            worker.step([([*cached[name], *own], len(cached[name]) * BLOCK + length, 1)
                         for name, own, length, _ in running])
        for request in running[:]:
            request[2] += 1
            if request[2] > request[3]:
                free |= set(request[1])
                running.remove(request)
    assert worker.since("packed_prefixes") > 5 and worker.since("forgotten") > 5 and worker.since("packed_steps") > 50


def test_engine_with_a_pool_too_small(tmp_path, monkeypatch):
    """vLLM evicts cached prompts and gives their blocks to others."""
    monkeypatch.setattr(packed, "AFTER_STEPS", 2)
    small_pool(monkeypatch.setattr)
    with engine(chain_model(tmp_path), "relay", max_model_len=1024, max_num_seqs=RUNNING,
                max_num_batched_tokens=512) as llm:
        before, traffic = counted(llm), Traffic(llm, questions(3), 5)
        traffic.more(150)
        did = counted_since(llm, before)
    assert traffic.happened["right"] > 100
    assert did["packed_prefixes"] > 10 and did["packed_steps"] > 50 and did["forgotten"] > 5


def hand_out_in_order(llm):
    """The next prompt gets the block ids that the first one got; by itself vLLM comes back to an order late."""
    assert llm.reset_prefix_cache() is not False
    pool = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    blocks = [block for block in pool.blocks if block is not pool.null_block]
    for block in blocks:
        block.prev_free_block = block.next_free_block = None
    pool.free_block_queue = FreeKVCacheBlockQueue(blocks)


@pytest.mark.parametrize("writes_matter", [True, False])
def test_engine_gives_the_same_ids_to_another_prompt(writes_matter, tmp_path, monkeypatch):
    """Two handbooks of one length, one after the other in the same blocks; were writes not noted, the second one's
    questions would be answered from the first."""
    monkeypatch.setattr(packed, "AFTER_STEPS", 2)
    if not writes_matter:
        begin = PackedPrefixes.begin
        monkeypatch.setattr(PackedPrefixes, "begin", lambda self, slots, blocks: begin(self, slots[:0], blocks))
    small_pool(monkeypatch.setattr)
    wrong = []
    with engine(LOOKUP, "relay", max_model_len=1024, max_num_seqs=RUNNING) as llm:
        before = counted(llm)
        for book in range(2):
            path, requests = handbook(tmp_path / str(book), 60, 8, 100 + book)
            text = open(path).read().rstrip("\n")
            hand_out_in_order(llm)
            llm.generate([text + " " + requests[0]["text"]], greedy(1))  # the others find it in the cache
            outputs = llm.generate([text + " " + request["text"] for request in requests], greedy(16, ignore_eos=True))
            wrong.append(sum(" ".join(output.outputs[0].text.split()[:2]) != request["expected"]
                             for request, output in zip(requests, outputs)))
        did = counted_since(llm, before)
    assert wrong[0] == 0 and did["packed_steps"] > 10
    if writes_matter:
        assert wrong[1] == 0 and did["packed_prefixes"] == 2 and did["forgotten"] == 1
    else:
        assert wrong[1] > 4 and did["packed_prefixes"] == 1
