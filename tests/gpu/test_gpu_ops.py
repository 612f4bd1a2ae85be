"""Fusion by both backends, cache write, PyTorch's operators, the layer and vLLM's classes on a GPU."""
import re

import numpy as np
import pytest
import python_package
import torch
from pretended import vllm_classes  # noqa: F401
from traffic import ALLOWED, BLOCK, HERE, Traffic, decode, numbers, off_by, two_prompts

import relay_attention_port as relay
from relay_attention_port import Attention, Device, Plan, cache_write, errors, fuse, relayattn_ops_v091, torch_ops

ops = torch.ops.relay_attention
INF = float("inf")


@pytest.fixture(scope="module")
def device():
    return Device("cuda")


# ---- fusion ---------------------------------------------------------------------------


def merged(a, lse_a, b, lse_b):
    lse_a, lse_b = (torch.where(lse == INF, -INF, lse.double()) for lse in (lse_a, lse_b))
    weights = [torch.where(x == -INF, 0.0, 1 / (1 + torch.exp(y - x))) for x, y in ((lse_a, lse_b), (lse_b, lse_a))]
    return sum(torch.where(w[..., None] == 0, 0.0, w[..., None] * o.double()) for w, o in zip(weights, (a, b)))


def spread(tensor, how):
    """The same numbers by other strides, NaN in between."""
    if how == "dense":
        return tensor.contiguous()
    if how == "turned":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.full([n + 8 for n in tensor.shape], float("nan"), device=HERE, dtype=tensor.dtype)
    return wide[tuple(slice(8, None) for _ in tensor.shape)].copy_(tensor)


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize("shape", [(1, 1, 8), (37, 5, 80), (256, 32, 128)])
@pytest.mark.parametrize("how", ["dense", "turned", "padded"])
@pytest.mark.parametrize("layouts", [(False, False), (True, False), (False, True), (True, True)])
def test_fusion(backend, dtype, allowed, shape, how, layouts, caplog):
    outs = [numbers(i, *shape, dtype=dtype) for i in (1, 2)]
    lses = [numbers(i, *shape[:2], dtype=torch.float32) * 3 for i in (3, 4)]
    if shape[0] > 30:
        lses[0][3], lses[1][4], lses[0][5], lses[1][5] = -INF, INF, -INF, -INF
        outs[0][3], outs[1][4] = float("nan"), float("nan")  # empty parts are not read
    wanted = merged(outs[0], lses[0], outs[1], lses[1])
    given = [spread(out, how) for out in outs]
    turned = [spread(lse.T if trans else lse, how) for lse, trans in zip(lses, layouts)]
    got = relay.relay_fusion(given[0], turned[0], given[1], turned[1], backend, *layouts)
    assert got.dtype == dtype and got.device == HERE and "natively" not in caplog.text
    assert not got.isnan().any() and (got.double() - wanted).abs().max() <= allowed


def test_triton_is_really_used(monkeypatch):
    from relay_attention_port import triton_fusion
    calls, real = [], triton_fusion.fuse
    monkeypatch.setattr(triton_fusion, "fuse", lambda *tensors: (calls.append(1), real(*tensors)))
    part = numbers(1, 4, 2, 64), numbers(2, 4, 2, dtype=torch.float32)
    relay.relay_fusion(*part, *part, backend="triton")
    relay.relay_fusion(*part, *part, backend="native")
    assert len(calls) == 1 and relayattn_ops_v091.why_no_triton("cuda") is None


def test_fusion_in_a_graph():
    part, other = ((numbers(i, 4, 2, 64), numbers(i + 1, 4, 2, dtype=torch.float32)) for i in (1, 3))
    for backend in ("native", "triton"):
        relay.relay_fusion(*part, *other, backend=backend)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = relay.relay_fusion(*part, *other, backend=backend)
        part[1].add_(1.0)
        graph.replay()
        assert (got.double() - merged(*part, *other)).abs().max() <= 2e-3


def test_fusion_of_mixed_devices_is_refused(device):
    part = numbers(1, 4, 2, 64), numbers(2, 4, 2, dtype=torch.float32)
    with pytest.raises(errors.WrongDeviceError, match="lse_usr"):
        relay.relay_fusion(*part, part[0], part[1].cpu())
    with pytest.raises(errors.WrongDeviceError, match=r"lses\[1\]: on cpu:0"):
        fuse(device, [part[0]] * 2, [part[1], part[1].cpu()], torch.empty_like(part[0]))


# ---- cache write ------------------------------------------------------------------------


@pytest.mark.parametrize("new, kept", [("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "bfloat16"),
                                       ("float32", "float16"), ("bfloat16", "float32")])
def test_cache_write(device, new, kept):
    new, kept = getattr(torch, new), getattr(torch, kept)
    wide = numbers(1, 70, 3, 2, 80, dtype=new)
    key, value = wide[:, 0], wide[:, 2]  # as a projection of all three lies
    pools = [torch.full((9, 2 * BLOCK, 2, 80), 7.0, device=HERE, dtype=kept) for _ in range(2)]
    slots = torch.randperm(9 * 2 * BLOCK, generator=torch.Generator().manual_seed(1))[:70]
    slots[5], slots[6] = -1, 9 * 2 * BLOCK  # skipped, and beyond the pool
    cache_write(device, key, value, *pools, slots.to(HERE))
    for pool, tensor in zip(pools, (key, value)):
        wanted = torch.full_like(pool, 7.0).flatten(0, 1)
        for i, slot in enumerate(slots.tolist()):
            if 0 <= slot < len(wanted):
                wanted[slot] = tensor[i].to(kept)
        assert torch.equal(pool.flatten(0, 1), wanted)
    for wrong, error in ((slots, errors.WrongDeviceError), (slots.numpy(), errors.WrongDeviceError),
                         (slots.int().to(HERE), errors.BadDtypeError)):
        with pytest.raises(error, match="slot_mapping"):
            cache_write(device, key, value, *pools, wrong)
    with pytest.raises(errors.WrongDeviceError, match="value: on cpu:0"):
        cache_write(device, key, value.cpu(), *pools, slots.to(HERE))


# ---- operators --------------------------------------------------------------------------


def layer(query, key, value, keys, values, slots, plan):
    ops.cache_write(key * 0.5, value, keys, values, slots)
    output = torch.empty_like(query)
    ops.run(query * 2.0, output, plan, keys, values)
    return output + query


class Decode:
    """Eight requests under two prompts, a token each; its own plan with bounds."""

    def __init__(self, device):
        attention = Attention(32, 8, 128)
        self.traffic = Traffic(device, attention, *two_prompts(each=2), num_blocks=600)
        self.plan = Plan(device, attention, strategy="relay", max_requests=8, max_rows=8, max_depth=2, max_tokens=4096,
                         max_blocks=4096)
        self.number = torch_ops.number_of(self.plan)
        self.new = [numbers(i, 8, 8, 128, dtype=torch.bfloat16) for i in (91, 92)]
        self.slots = torch.zeros(8, dtype=torch.int64, device=HERE)
        self.query = self.traffic.query.clone()
        self.place()

    def place(self):
        """Where the new tokens go: over the last one of each request."""
        self.slots.copy_(torch.tensor([blocks[(n - 1) // BLOCK] * BLOCK + (n - 1) % BLOCK
                                       for _, blocks, n, _ in self.traffic.requests]))
        self.query.copy_(self.traffic.query)
        self.plan.build(self.traffic.forest)

    def arguments(self):
        return self.query, *self.new, self.traffic.keys, self.traffic.values, self.slots, self.number

    def next(self, seed):
        self.traffic.set([(200 * seed, None), (64, None)], [*decode(5, 0, seed), *decode(3, 1, seed + 9)], seed)
        self.place()

    def check(self, output):
        assert torch.equal(self.traffic.keys.flatten(0, 1)[self.slots], self.new[0] * 0.5)
        wanted = self.traffic.wanted(self.query * 2.0)[0] + self.query.double()
        assert off_by(output, wanted) <= ALLOWED["bf16"]


def test_opcheck(device):
    step = Decode(device)
    output, lse = torch.empty_like(step.query), torch.empty(8, 32, device=HERE)
    pools = step.traffic.keys.nan_to_num(0.0), step.traffic.values.nan_to_num(0.0)  # it compares, and NaN is not NaN
    torch.library.opcheck(ops.run.default, (step.query, output, step.number, *pools), {"lse": lse})
    torch.library.opcheck(ops.cache_write.default, (*step.new, *pools, step.slots))
    outs, lses = [numbers(i, 5, 3, 64) for i in (1, 2)], [numbers(i, 5, 3, dtype=torch.float32) for i in (3, 4)]
    torch.library.opcheck(ops.fuse.default, (outs, lses))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(device, mode):
    torch._dynamo.reset()
    step = Decode(device)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for seed in range(1, 5):
        step.check(compiled(*step.arguments()).clone())
        step.next(seed)
    step.check(compiled(*step.arguments()).clone())


@pytest.mark.parametrize("compiling", [False, True])
def test_operators_in_a_graph(device, compiling):
    torch._dynamo.reset()
    step = Decode(device)
    function = torch.compile(layer, fullgraph=True) if compiling else layer
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        function(*step.arguments())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*step.arguments())
    for seed in range(1, 6):
        step.next(seed)
        graph.replay()
        step.check(output)


def test_the_documented_code():
    """docs/pytorch.md as it is written."""
    page = (python_package.ROOT / "docs" / "pytorch.md").read_text()
    step, graph, compiled = re.findall(r"```python\n(.*?)```", page, re.S)
    torch._dynamo.reset()
    names = {}
    exec(step, names)
    first = names["output"].clone()
    exec(graph, names)
    last = names["output"].clone()
    assert not first.isnan().any() and not torch.equal(first, last), "more tokens at each replay"
    exec(compiled, names)
    assert torch.equal(names["output"], last)


# ---- the layer, and vLLM's classes --------------------------------------------------------


def test_layer_prefills_and_decodes(device):
    config = relay.RelayConfig(enabled=True)
    integration = relay.RelayAttentionIntegration(config, device=device)
    attention = integration.create_attention_layer(8, 128, 128**-0.5, 2)
    system = [numbers(i, 700, 2, 128, dtype=torch.bfloat16) for i in (1, 2)]
    requests = [integration.create_relay_metadata(700, "handbook", f"user {i}") for i in range(24)]
    keys, values = [], []

    def check(output, query, i):
        k, v = (x.double().repeat_interleave(4, 1) for x in (keys[i], values[i]))
        scores = torch.einsum("qhd,khd->hqk", query.double(), k) * 128**-0.5
        at = torch.arange(len(k), device=HERE)
        scores = scores.masked_fill(at > at[len(k) - len(query):, None], -INF)
        assert off_by(output, torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)) <= ALLOWED["bf16"]

    for i, request in enumerate(requests):
        new = [numbers(10 * i + j, 5 + i, 2, 128, dtype=torch.bfloat16) for j in (3, 4)]
        keys.append(torch.cat([system[0], new[0]])), values.append(torch.cat([system[1], new[1]]))
        query = numbers(10 * i + 5, len(keys[i]), 8, 128, dtype=torch.bfloat16)
        check(attention.forward(query, keys[i], values[i], request), query, i)
    for step in range(6):
        query, key, value = (numbers(900 + 3 * step + j, 24, heads, 128, dtype=torch.bfloat16)
                             for j, heads in enumerate((8, 2, 2)))
        output = attention.forward(query, key, value, requests)
        for i in range(24):
            keys[i], values[i] = torch.cat([keys[i], key[i:i + 1]]), torch.cat([values[i], value[i:i + 1]])
            check(output[i:i + 1], query[i:i + 1], i)
    stats = attention.stats()
    assert stats.relayed >= 6 and stats.memory_hits == 23 and stats.misses == 1


@pytest.mark.parametrize("slopes", [None, [0.1 * i for i in range(8)]])
def test_vllms_classes(device, vllm_classes, slopes):
    """Two layers of a step: 20 requests of 600 shared tokens, by a planner on the GPU."""
    from relay_attention_port.vllm.settings import Settings
    from relay_attention_port.vllm.steps import StepPlanner
    count, shared, blocks = 20, 608, 700
    layers = [vllm_classes.RelayAttentionImpl(8, 128, 128**-0.5, 2, slopes) for _ in range(2)]
    pools = [numbers(i, 2, blocks, BLOCK, 2, 128, dtype=torch.bfloat16) for i in (1, 2)]
    lens = np.array([shared + 5 + i for i in range(count)], np.int32)
    table = np.full((count, 50), 2**31 - 1, np.int32)
    for i in range(count):
        table[i, :38], table[i, 38:41] = np.arange(38), 38 + 3 * i + np.arange(3)
    planner = StepPlanner(device, Settings(strategy="relay"), BLOCK)
    planner.begin(np.arange(count + 1, dtype=np.int32), lens, table, blocks, None)
    slots = torch.tensor([int(table[i, (n - 1) // BLOCK]) * BLOCK + (n - 1) % BLOCK for i, n in enumerate(lens)],
                         device=HERE, dtype=torch.int64)
    metadata = vllm_classes.RelayAttentionMetadata(count, slots, planner)
    for number, (impl, pool) in enumerate(zip(layers, pools)):
        query, key, value = (numbers(50 * number + j, count, heads, 128, dtype=torch.bfloat16)
                             for j, heads in enumerate((8, 2, 2)))
        output = impl.forward(None, query, key, value, pool, metadata, torch.full_like(query, float("nan")))
        for i, n in enumerate(lens):
            k, v = (kv[table[i, :41].tolist()].flatten(0, 1)[:n].double().repeat_interleave(4, 1) for kv in pool)
            assert torch.equal(pool[0].flatten(0, 1)[slots[i]], key[i])
            scores = torch.einsum("hd,khd->hk", query[i].double(), k) * 128**-0.5
            if slopes:
                distance = torch.arange(int(n), device=HERE) - int(n) + 1
                scores = scores + torch.tensor(slopes, device=HERE, dtype=torch.float64)[:, None] * distance
            assert off_by(output[i], torch.einsum("hk,khd->hd", scores.softmax(-1), v)) <= ALLOWED["bf16"]
