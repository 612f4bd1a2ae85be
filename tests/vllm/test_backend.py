"""The backend as vLLM 0.9.1 calls it, without an engine: steps over random pools against attention in float64."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from python_package import attention, close

from relay_attention_port import errors
from relay_attention_port.relay_attention_backend import RelayAttentionBackend, RelayAttentionImpl
from relay_attention_port.vllm import counters

BLOCK = 16
POOL = 400  # blocks


class Table:
    """What a builder uses of vLLM's BlockTable."""

    def __init__(self, rows, slots):
        self.rows, self.slot_mapping_np = rows, slots

    def get_numpy_array(self):
        return self.rows


class Step:
    """Requests with (tokens, new rows, ids of their leading blocks), the rest of their blocks their own."""

    def __init__(self, requests, heads, kv_heads, size, dtype=torch.bfloat16, seed=0, **settings):
        rng = np.random.default_rng(seed)
        self.requests, self.dtype = requests, dtype
        self.num_blocks = POOL
        taken = {block for _, _, shared in requests for block in shared}
        free = iter(rng.permutation(sorted(set(range(self.num_blocks)) - taken)))
        longest = max(-(-tokens // BLOCK) for tokens, _, _ in requests)
        self.table = np.full((len(requests), longest + 2), 2**30, np.int32)  # behind a request's blocks: wild
        self.ids = []
        for r, (tokens, _, shared) in enumerate(requests):
            count = -(-tokens // BLOCK)
            ids = (list(shared) + [next(free) for _ in range(count - len(shared))])[:count]
            self.table[r, :count] = ids
            self.ids.append(ids)
        self.lens = np.array([tokens for tokens, _, _ in requests], np.int32)
        rows = np.array([new for _, new, _ in requests])
        self.starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)
        self.slots = np.array([ids[at // BLOCK] * BLOCK + at % BLOCK for (tokens, new, _), ids in zip(requests, self.ids)
                               for at in range(tokens - new, tokens)], np.int64)
        draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(dtype)
        self.kv_cache = draw(*RelayAttentionBackend.get_kv_cache_shape(self.num_blocks, BLOCK, kv_heads, size))
        total, padded = int(self.starts[-1]), int(self.starts[-1]) + 3
        width = (heads + 2 * kv_heads) * size
        packed = draw(padded, width)  # one product gives all three, as in vLLM's models
        self.query = packed[:, :heads * size].view(padded, heads, size)
        self.key = packed[:, heads * size:(heads + kv_heads) * size].view(padded, kv_heads, size)
        self.value = packed[:, (heads + kv_heads) * size:].view(padded, kv_heads, size)
        self.output = torch.full((padded, heads, size), 7.0, dtype=dtype)
        self.total = total
        self.runner = SimpleNamespace(query_start_loc_np=self.starts, seq_lens_np=self.lens,
                                      kv_cache_config=SimpleNamespace(num_blocks=self.num_blocks),
                                      vllm_config=SimpleNamespace(additional_config={"relay": settings}))
        spec = SimpleNamespace(block_size=BLOCK)
        self.builder = RelayAttentionBackend.get_builder_cls()(self.runner, spec, Table(self.table, self.slots))

    def build(self):
        return self.builder.build(len(self.requests), self.total, int(np.diff(self.starts).max()), 0, None)

    def expected(self, write=True, **options):
        pools = self.kv_cache.clone()
        if write:
            for pool, new in ((pools[0], self.key), (pools[1], self.value)):
                pool.view(-1, *pool.shape[2:])[self.slots] = new[:self.total]
        parts = []
        for r, (tokens, _, _) in enumerate(self.requests):
            keys, values = (pool[self.ids[r]].flatten(0, 1)[:tokens].float().numpy() for pool in pools)
            query = self.query[self.starts[r]:self.starts[r + 1]].float().numpy()
            parts.append(attention(query, keys, values, **options)[0])
        return np.concatenate(parts)

    def check(self, impl, tolerance=2e-2, metadata=None, **options):
        expected = self.expected(impl.writes_cache, **options)
        assert impl.forward(None, self.query, self.key, self.value, self.kv_cache, metadata or self.build(),
                            self.output) is self.output
        close(self.output[:self.total].float().numpy(), expected, tolerance)
        assert (self.output[self.total:] == 7).all(), "padding was written"


A, B, TOOLS = list(range(0, 20)), list(range(30, 37)), list(range(40, 46))
DECODE = [(330, 1, A), (345, 1, B), (420, 1, A + TOOLS), (17, 1, []), (321, 1, A), (430, 1, A + TOOLS), (130, 1, B)]
MIXED = [(330, 1, A), (200, 80, B), (420, 3, A + TOOLS), (40, 40, []), (321, 1, A), (430, 9, A + TOOLS), (115, 2, B)]


def impl_of(heads, kv_heads, size, **options):
    return RelayAttentionImpl(heads, size, size**-0.5, kv_heads, **options)


@pytest.mark.parametrize("strategy", ["auto", "relay", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads, kv_heads, size", [(4, 2, 64), (8, 1, 128), (3, 3, 80), (6, 2, 256)])
@pytest.mark.parametrize("requests", [DECODE, MIXED], ids=["decode", "mixed"])
def test_equals_unsplit(requests, heads, kv_heads, size, dtype, strategy):
    before = counters()
    Step(requests, heads, kv_heads, size, dtype, strategy=strategy).check(impl_of(heads, kv_heads, size))
    assert counters().steps == before.steps + 1
    assert strategy != "plain" or counters().relayed_steps == before.relayed_steps
    assert strategy != "relay" or counters().groups == before.groups + 3
    assert strategy != "relay" or counters().tokens_saved > before.tokens_saved


@pytest.mark.parametrize("requests", [DECODE, MIXED], ids=["decode", "mixed"])
@pytest.mark.parametrize("ours, theirs", [
    (dict(sliding_window=100), dict(window=100)), (dict(logits_soft_cap=10.0), dict(soft_cap=10.0)),
    (dict(alibi_slopes=[0.5, 0.25, 0.125, 0.0625]), dict(slopes=[0.5, 0.25, 0.125, 0.0625])),
    (dict(sliding_window=50, logits_soft_cap=20.0, alibi_slopes=[0.1, 0.2, 0.3, 0.4]),
     dict(window=50, soft_cap=20.0, slopes=[0.1, 0.2, 0.3, 0.4]))], ids=["window", "cap", "alibi", "all"])
def test_features(requests, ours, theirs):
    Step(requests, 4, 2, 64, strategy="relay").check(impl_of(4, 2, 64, **ours), **theirs)


def test_layers_of_two_kinds_share_a_step():
    """Gemma's layers take turns: one build, a plan for each kind."""
    step = Step(MIXED, 4, 2, 64, strategy="relay")
    metadata = step.build()
    before = counters().steps
    for window in (0, 64, 0, 64):
        step.check(impl_of(4, 2, 64, sliding_window=window or None), metadata=metadata, window=window)
    assert counters().steps == before + 1


def test_layers_share_keys():
    """A layer that uses another's keys writes nothing."""
    step = Step(MIXED, 4, 2, 64)
    cache = step.kv_cache.clone()
    step.check(impl_of(4, 2, 64, kv_sharing_target_layer_name="model.layers.0.self_attn.attn"))
    assert torch.equal(cache, step.kv_cache)


def test_cache_write_is_exact():
    step = Step(MIXED, 4, 2, 64)
    expected = step.kv_cache.clone()
    for pool, new in ((expected[0], step.key), (expected[1], step.value)):
        pool.view(-1, *pool.shape[2:])[step.slots] = new[:step.total]
    step.check(impl_of(4, 2, 64))
    assert torch.equal(step.kv_cache, expected)


def test_block_ids_are_used_again():
    """The same ids with other content in the next step: nothing of the last is remembered."""
    step, impl = Step(DECODE, 4, 2, 64, strategy="relay"), impl_of(4, 2, 64)
    for _ in range(3):
        step.check(impl)
        step.kv_cache.copy_(step.kv_cache.flip(1) * 0.5)


def test_memory_is_flat():
    def resident_mib():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096 / 2**20
    step, impl = Step(MIXED, 4, 2, 64, strategy="relay"), impl_of(4, 2, 64)
    longest, rng = step.lens.copy(), np.random.default_rng(1)
    for i in range(700):
        if i == 100:
            before = resident_mib()
        step.lens[:] = np.maximum(longest - rng.integers(0, 10, len(longest)), np.diff(step.starts))
        impl.forward(None, step.query, step.key, step.value, step.kv_cache, step.build(), step.output)
    assert resident_mib() - before < 4


def test_settings_bound_what_is_shared():
    def groups(**settings):
        before = counters().groups
        Step(DECODE, 4, 2, 64, strategy="relay", **settings).check(impl_of(4, 2, 64))
        return counters().groups - before
    assert groups() == 3
    assert groups(min_prefix=100) == 2       # the tools have 96 tokens, B 112
    assert groups(min_prefix=1000) == 0
    assert groups(max_groups=2) == 2
    assert groups(max_groups=1) == 1
    assert groups(max_depth=1) == 2
    assert groups(max_depth=0) == 0
    assert groups(deterministic=True) == 0


def test_many_equal_prefixes_beyond_the_bound():
    requests = [(20 + 16 * 4, 1, range(4 * (i // 2), 4 * (i // 2) + 4)) for i in range(20)]
    before = counters().groups
    Step(requests, 4, 2, 64, strategy="relay", max_groups=3).check(impl_of(4, 2, 64))
    assert counters().groups == before


def test_deterministic_is_bitwise():
    """A request's output does not depend on what else is in the batch."""
    def first(requests):
        step = Step(requests, 4, 2, 64, deterministic=True)
        step.check(impl_of(4, 2, 64))
        return step
    alone, together = first(DECODE[:1]), Step(DECODE, 4, 2, 64, deterministic=True)
    together.query[0], together.key[0], together.value[0] = alone.query[0], alone.key[0], alone.value[0]
    together.kv_cache[:, together.ids[0]] = alone.kv_cache[:, alone.ids[0]]
    together.check(impl_of(4, 2, 64))
    assert torch.equal(alone.output[0], together.output[0])


def test_profiling_leaves_the_output():
    output = torch.full((4, 4, 64), 3.0, dtype=torch.bfloat16)
    impl = impl_of(4, 2, 64)
    assert impl.forward(None, torch.zeros_like(output), None, None, torch.tensor([]), None, output) is output
    assert (output == 3).all()


@pytest.mark.parametrize("options, named", [
    (dict(head_size=260), "head_size 260"), (dict(head_size=70), "head_size 70"), (dict(head_size=512), "head_size 512"),
    (dict(kv_cache_dtype="fp8"), "kv_cache_dtype fp8"), (dict(kv_cache_dtype="fp8_e5m2"), "kv_cache_dtype fp8_e5m2"),
    (dict(blocksparse_params={"x": 1}), "block-sparse"), (dict(attn_type="encoder"), "attn_type 'encoder'"),
    (dict(attn_type="encoder_decoder"), "attn_type 'encoder_decoder'"), (dict(num_kv_heads=3), "num_kv_heads 3"),
    (dict(dual_chunk_attention_config={}), "dual_chunk_attention_config")])
def test_refused(options, named):
    arguments = dict(num_heads=4, head_size=64, scale=0.125, num_kv_heads=2)
    with pytest.raises(NotImplementedError, match=named):
        RelayAttentionImpl(**{**arguments, **options})


def test_refused_in_a_run():
    step = Step(DECODE, 4, 2, 64)
    with pytest.raises(NotImplementedError, match="dtype torch.float32"):
        impl_of(4, 2, 64).forward(None, step.query.float(), None, None, step.kv_cache, step.build(), step.output)
    with pytest.raises(ValueError, match=r"kv_cache: shape \(400, 16, 2, 64\)"):
        impl_of(4, 2, 64).forward(None, step.query, step.key, step.value, step.kv_cache[0], step.build(), step.output)


@pytest.mark.parametrize("which, change, kind, named", [
    ("query", lambda t: t.flatten(1), errors.BadShapeError, "query: 2 dimensions"),
    ("query", lambda t: t[:1], errors.BadShapeError, "query"),
    ("key", lambda t: t.unsqueeze(0), errors.BadShapeError, "key: 4 dimensions"),
    ("value", lambda t: t.int(), errors.BadDtypeError, "value: torch.int32"),
    ("value", lambda t: t[:, :1], errors.BadShapeError, "value"),
    ("output", lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), errors.BadStrideError, "output"),
    ("query", lambda t: t.to("meta"), errors.WrongDeviceError, "query: on meta")])
def test_tensors_that_do_not_fit(which, change, kind, named):
    step = Step(DECODE, 4, 2, 64)
    tensors = {name: getattr(step, name) for name in ("query", "key", "value", "output")}
    tensors[which] = change(tensors[which])
    with pytest.raises(kind, match=named):
        impl_of(4, 2, 64).forward(None, tensors["query"], tensors["key"], tensors["value"], step.kv_cache, step.build(),
                                  tensors["output"])


@pytest.mark.parametrize("arguments, named", [
    ((None, 64, torch.float32, "auto", 16, True, False), "dtype torch.float32"),
    ((None, 300, torch.bfloat16, "auto", 16, True, False), "head_size 300"),
    ((None, 64, torch.bfloat16, "fp8", 16, True, False), "kv_cache_dtype fp8"),
    ((None, 64, torch.bfloat16, torch.float8_e4m3fn, 16, True, False), "kv_cache_dtype torch.float8_e4m3fn"),
    ((None, 64, torch.bfloat16, "auto", 8, True, False), "block_size 8"),
    ((None, 64, torch.bfloat16, "auto", 16, False, False), "V0"),
    ((None, 64, torch.bfloat16, "auto", 16, True, True), "latent")])
def test_platform_refuses(arguments, named):
    from relay_attention_port.vllm.v0_9_1 import RelayCpuPlatform
    with pytest.raises(NotImplementedError, match=named):
        RelayCpuPlatform.get_attn_backend_cls(*arguments)


def test_platform_answers_alike():
    """vLLM asks with a name for the K/V type when layers are made, with a torch dtype when the cache is."""
    from relay_attention_port.vllm.v0_9_1 import BACKEND, RelayCpuPlatform
    for kv_cache_dtype in ("auto", torch.bfloat16):
        assert RelayCpuPlatform.get_attn_backend_cls(None, 64, torch.bfloat16, kv_cache_dtype, 32, True, False) == BACKEND
