"""CUDA devices in the package, on a pretended one: what the library is told, on which stream, and what is refused.
tests/gpu runs the same on a GPU."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pretended import pretended, pretended_library, vllm_classes  # noqa: F401
from python_package import attention, close

import relay_attention_port as relay
from relay_attention_port import Attention, Device, Forest, Plan, Segment, Span, errors

HEADS, KV_HEADS, SIZE, BLOCK = 4, 2, 64, 16
F16 = dict(query_dtype="f16", kv_dtype="f16", output_dtype="f16")


def halves(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


class Batch:
    """Requests under one prompt of two blocks, in pages; the last of them has its K/V in tensors of its own."""

    def __init__(self, device, lengths=(5, 20, 1, 33), system=32):
        self.system, self.lengths = system, lengths
        self.keys, self.values = halves(1, 64, BLOCK, KV_HEADS, SIZE), halves(2, 64, BLOCK, KV_HEADS, SIZE)
        self.query = halves(3, len(lengths), HEADS, SIZE)
        self.own = [halves(4, lengths[-1], KV_HEADS, SIZE), halves(5, lengths[-1], KV_HEADS, SIZE)]
        self.table = [list(range(10 + 5 * i, 10 + 5 * i + -(-n // BLOCK))) for i, n in enumerate(lengths)]
        self.forest = Forest(device)
        self.fill()

    def fill(self, order=None):
        spans = [Span.paged(n, self.table[i]) for i, n in enumerate(self.lengths[:-1])]
        spans.append(Span.contiguous(self.lengths[-1], 0))
        segment = Segment(Span.paged(self.system, list(range(self.system // BLOCK))), 0, len(self.lengths))
        self.forest.set(range(len(self.lengths) + 1), spans, [segment], block_size=BLOCK, num_blocks=64)

    def wanted(self):
        made = []
        for i, n in enumerate(self.lengths):
            rows = []
            for pool, own in ((self.keys, self.own[0]), (self.values, self.own[1])):
                tail = own if i == len(self.lengths) - 1 else pool[self.table[i]].flatten(0, 1)[:n]
                rows.append(torch.cat([pool[:self.system // BLOCK].flatten(0, 1), tail]).double())
            made.append(attention(self.query[i:i + 1].double(), *rows))
        return np.concatenate([o for o, _ in made]), np.concatenate([lse for _, lse in made])

    def run(self, plan, output, **more):
        plan.run(self.query, output, key_pool=self.keys, value_pool=self.values, contiguous=[tuple(self.own)], **more)


@pytest.fixture
def batch(pretended):
    return Batch(pretended.device)


@pytest.fixture
def plan(pretended):
    return Plan(pretended.device, Attention(HEADS, KV_HEADS, SIZE, **F16), strategy="relay")


# ---- devices ------------------------------------------------------------------------


@pytest.mark.parametrize("kind, index", [("cuda", None), ("cuda:0", None), ("cuda", 0),
                                         (torch.device("cuda", 0), None)])
def test_device_by_name(pretended, kind, index):
    device = Device(kind, index)
    assert device.place == ("cuda", 0) and device.info().name == "a pretended GPU"


@pytest.mark.parametrize("kind, index, error, said", [
    ("cuda:1", None, errors.NoDeviceError, "device 1 of 1"), ("cuda:1", 0, errors.InvalidArgumentError, "index: 0"),
    ("cuda:", None, errors.InvalidArgumentError, "'cuda:'"), ("cuda:-1", None, errors.InvalidArgumentError, "kind"),
    ("cpu:1", None, errors.InvalidArgumentError, "the CPU is 0"), ("xpu", None, errors.InvalidArgumentError, "kind"),
    ("cuda", 2**40, errors.InvalidArgumentError, "index"),
    ("cuda:9999999999", None, errors.InvalidArgumentError, "kind")])
def test_devices_that_are_not(pretended, kind, index, error, said):
    with pytest.raises(error, match=said):
        Device(kind, index)


# ---- a run --------------------------------------------------------------------------


def test_run(batch, plan):
    output, lse = torch.full((4, HEADS, SIZE), 7.0).half(), torch.zeros(HEADS, 4)
    batch.run(plan.build(batch.forest), output, lse=lse.T)
    wanted, wanted_lse = batch.wanted()
    close(output, wanted, 2e-3)
    close(lse.T, wanted_lse, 1e-4)
    assert plan.info().relay_segments == 1


def test_per_head_numbers_are_device_tensors(pretended, batch):
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    plan = Plan(pretended.device, Attention(HEADS, KV_HEADS, SIZE, use_alibi=True, **F16)).build(batch.forest)
    output = torch.zeros(4, HEADS, SIZE).half()
    batch.run(plan, output, alibi_slopes=slopes)
    assert not torch.equal(output, torch.zeros_like(output))
    for wrong, error in ((slopes.numpy(), errors.WrongDeviceError), (slopes[:3], errors.BadShapeError),
                         (slopes.half(), errors.BadShapeError)):
        with pytest.raises(error, match="alibi_slopes"):
            batch.run(plan, output, alibi_slopes=wrong)


def test_runs_go_to_torchs_stream(pretended, batch, plan):
    plan.build(batch.forest)
    output = torch.zeros(4, HEADS, SIZE).half()
    for stream, given, wanted in ((0, None, None), (8, None, 8), (8, 16, 16)):
        pretended.stream = stream
        batch.run(plan, output, stream=given)
        assert pretended.calls.stream == wanted


def test_the_work_list_is_copied_once_for_a_build(pretended, batch, plan):
    output = torch.zeros(4, HEADS, SIZE).half()
    calls = pretended.calls

    def copies(times=1, **more):
        before = calls.copies
        for _ in range(times):
            batch.run(plan, output, **more)
        return calls.copies - before

    plan.build(batch.forest)
    assert copies(times=3) == 1
    assert copies(plan_in_workspace=False) == 1 and copies(plan_in_workspace=True) == 0
    plan.build(batch.forest)
    assert copies(times=2) == 1
    pretended.stream = 8  # another stream: it may not see what the first has copied
    assert copies(times=2) == 1
    assert copies(times=2, stream=24) == 2, "a stream that the caller names may be one that is captured"
    pretended.capturing = True
    assert copies(times=2) == 2, "each run of a graph brings the list, unless it is told not to"
    assert copies(plan_in_workspace=True) == 0


def test_a_failed_run_brings_the_list_again(pretended, batch, plan):
    output = torch.zeros(4, HEADS, SIZE).half()
    plan.build(batch.forest)
    pretended.failure.value = 21
    with pytest.raises(errors.DeviceFaultError, match="as the test wanted"):
        batch.run(plan, output)
    batch.run(plan, output)
    assert pretended.calls.copies == 1
    close(output, batch.wanted()[0], 2e-3)


def test_runs_of_a_plan_are_ordered_across_streams(pretended, batch, plan):
    """They share the plan's workspace."""
    output = torch.zeros(4, HEADS, SIZE).half()
    plan.build(batch.forest)
    for stream in (0, 0, 8, 8, 16, 0):
        pretended.stream = stream
        batch.run(plan, output)
    assert pretended.ordered == [(0, 8), (8, 16), (16, 0)]
    pretended.ordered.clear()
    pretended.capturing, pretended.stream = True, 32  # a capture begins after a wait of torch's own
    batch.run(plan, output)
    assert pretended.ordered == []


def test_rebuilding_waits_for_queued_runs(pretended, batch, plan):
    plan.build(batch.forest)
    before = pretended.calls.builds_waited
    plan.build(batch.forest)
    assert pretended.calls.builds_waited == before + 1


# ---- what is refused ----------------------------------------------------------------


def test_tensors_elsewhere_are_named(batch, plan):
    plan.build(batch.forest)
    output = torch.zeros(4, HEADS, SIZE).half()
    good = dict(query=batch.query, output=output, key_pool=batch.keys, value_pool=batch.values,
                contiguous=[tuple(batch.own)], lse=torch.zeros(4, HEADS))
    plan.run(**good)
    for name in ("query", "output", "key_pool", "value_pool", "lse"):
        with pytest.raises(errors.WrongDeviceError, match=rf"^{name}: a numpy array, on cpu:0, expected.* on cuda:0"):
            plan.run(**{**good, name: good[name].numpy()})
    with pytest.raises(errors.WrongDeviceError, match=r"^contiguous\[0\].value: a numpy array"):
        plan.run(**{**good, "contiguous": [(batch.own[0], batch.own[1].numpy())]})


class Elsewhere:
    """A tensor by DLPack of some device."""

    def __init__(self, tensor, device):
        self.tensor, self.device, self.streams = tensor, device, []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **more):
        self.streams.append(more.get("stream", "none"))
        return self.tensor.__dlpack__()


def test_dlpack_asks_for_the_device_first(pretended, plan, batch):
    plan.build(batch.forest)
    output = torch.zeros(4, HEADS, SIZE).half()
    foreign = Elsewhere(batch.query, (10, 0))
    with pytest.raises(errors.WrongDeviceError, match="query: on DLPack device 10"):
        plan.run(foreign, output)
    assert foreign.streams == [], "nothing is exported that cannot be taken"
    for stream, told in ((0, 1), (8, 8)):
        pretended.stream = stream
        there = Elsewhere(batch.query, (2, 0))
        with pytest.raises(errors.WrongDeviceError, match="^query: on cpu:0"):
            plan.run(there, output)  # its capsule says otherwise
        assert there.streams == [told]


def test_what_the_device_does_not_compute(pretended):
    for wrong, error in ((dict(F16, query_dtype="f32"), errors.UnsupportedError),
                         (dict(F16, output_dtype="f32"), errors.UnsupportedError)):
        with pytest.raises(error, match="dtype"):
            Plan(pretended.device, Attention(HEADS, KV_HEADS, SIZE, **wrong))


def test_misaligned_pages(batch, plan):
    plan.build(batch.forest)
    output = torch.zeros(4, HEADS, SIZE).half()
    shifted = torch.zeros(batch.keys.numel() + 1).half()[1:].view(batch.keys.shape)
    with pytest.raises(errors.MisalignedError, match="key_pool"):
        plan.run(batch.query, output, key_pool=shifted, value_pool=batch.values, contiguous=[tuple(batch.own)])


# ---- cache write and fusion -----------------------------------------------------------


def test_cache_write(pretended):
    keys, values = torch.zeros(4, BLOCK, KV_HEADS, SIZE).half(), torch.zeros(4, BLOCK, KV_HEADS, SIZE).half()
    new = halves(1, 3, KV_HEADS, SIZE), halves(2, 3, KV_HEADS, SIZE)
    pretended.stream = 40
    relay.cache_write(pretended.device, *new, keys, values, torch.tensor([17, -1, 63]))
    assert pretended.calls.writes == 1 and pretended.calls.stream == 40
    assert torch.equal(keys[1, 1], new[0][0]) and torch.equal(values[3, 15], new[1][2])
    assert keys.count_nonzero() == 2 * KV_HEADS * SIZE
    relay.cache_write(pretended.device, *new, keys, values, torch.tensor([17, -1, 63]), stream=56)
    assert pretended.calls.stream == 56
    for slots, error in ((np.array([1, 2, 3]), errors.WrongDeviceError), ([1, 2, 3], errors.WrongDeviceError),
                         (torch.tensor([1, 2, 3], dtype=torch.int32), errors.BadDtypeError),
                         (torch.tensor([[1, 2, 3]]), errors.BadShapeError),
                         (torch.arange(6)[::2], errors.BadStrideError),
                         (torch.tensor([1, 2, 3], device="meta"), errors.WrongDeviceError)):
        with pytest.raises(error, match="^slot_mapping: "):
            relay.cache_write(pretended.device, *new, keys, values, slots)


def test_fusion_goes_to_the_tensors_device(pretended):
    outs, lses = [halves(i, 5, 3, 24) for i in (1, 2)], [torch.randn(5, 3) for _ in range(2)]
    lses[0][0], lses[1][1], lses[0][2] = -torch.inf, torch.inf, torch.inf
    lses[1][2] = -torch.inf
    pretended.stream = 48
    got = relay.relay_fusion(outs[0], lses[0], outs[1], lses[1].T.contiguous(), trans_lse_usr=True)
    assert pretended.calls.fusions == 1 and pretended.calls.stream == 48
    a, b = (torch.where(lse.abs() == torch.inf, -torch.inf, lse).double() for lse in lses)
    weight = torch.sigmoid(a - b).nan_to_num(0.0)[..., None]
    wanted = weight * outs[0].double() + (1 - weight) * outs[1].double()
    wanted[2] = 0.0
    close(got, wanted, 2e-3)
    relay.fuse(pretended.device, outs, lses, got, stream=64)
    assert pretended.calls.fusions == 2 and pretended.calls.stream == 64


# ---- the layer ------------------------------------------------------------------------


def layer_of(pretended, config=None, **more):
    integration = relay.RelayAttentionIntegration(config or relay.RelayConfig(enabled=True), device=pretended.device)
    return integration, integration.create_attention_layer(HEADS, SIZE, SIZE**-0.5, KV_HEADS, strategy="relay", **more)


class Story:
    """A request's whole K/V, and what attention over it gives."""

    def __init__(self, seed, system):
        self.seed, self.key, self.value = seed, *system

    def more(self, count):
        self.seed += 1
        new = halves(self.seed, count, KV_HEADS, SIZE), halves(self.seed + 100, count, KV_HEADS, SIZE)
        self.key, self.value = torch.cat([self.key, new[0]]), torch.cat([self.value, new[1]])
        return new

    def close(self, output, query):
        close(output, attention(query.double(), self.key.double(), self.value.double())[0], 3e-3)


def test_layer_prefills_and_decodes(pretended):
    integration, layer = layer_of(pretended)
    system = halves(1, 40, KV_HEADS, SIZE), halves(2, 40, KV_HEADS, SIZE)
    stories = [Story(10 * (i + 1), system) for i in range(3)]
    metadata = [integration.create_relay_metadata(40, "handbook", f"user {i}") for i in range(3)]
    for i, story in enumerate(stories):
        story.more(3 + i)
        query = halves(500 + i, len(story.key), HEADS, SIZE)
        story.close(layer.forward(query, story.key, story.value, metadata[i]), query)
    for step in range(20):  # over the end of a page, and of the pool
        new = [story.more(1) for story in stories]
        query = halves(600 + step, 3, HEADS, SIZE)
        output = layer.forward(query, torch.cat([k for k, _ in new]), torch.cat([v for _, v in new]), metadata)
        for i, story in enumerate(stories):
            story.close(output[i:i + 1], query[i:i + 1])
    stats = layer.stats()
    assert stats.relayed >= 20 and stats.misses == 1 and stats.memory_hits == 2 and stats.prompts == 1
    integration.release(metadata)
    assert layer.stats().requests == 0


def test_layers_prompts_come_and_go(pretended):
    integration, layer = layer_of(pretended, relay.RelayConfig(enabled=True, max_cached_system_prompts=2))
    blocks = []
    for i in range(20):
        system = halves(i, 32, KV_HEADS, SIZE), halves(i + 50, 32, KV_HEADS, SIZE)
        story = Story(i * 10, system)
        story.more(2)
        metadata = integration.create_relay_metadata(32, f"prompt {i}", "user")
        query = halves(700 + i, 34, HEADS, SIZE)
        story.close(layer.forward(query, story.key, story.value, metadata), query)
        del metadata
        integration.release(integration.create_relay_metadata(32, f"prompt {i}", "user"))
        blocks.append(layer.stats().page_bytes)
    stats = layer.stats()
    assert stats.prompts == 2 and stats.misses == 20 and stats.evictions == 18
    assert blocks[-1] == blocks[0], "evicted prompts give their pages back"


def test_layers_prompts_in_use_stay(pretended, caplog):
    integration, layer = layer_of(pretended, relay.RelayConfig(enabled=True, max_cached_system_prompts=1))
    stories, metadata = [], []
    for i in range(2):
        stories.append(Story(i * 10, (halves(i, 32, KV_HEADS, SIZE), halves(i + 50, 32, KV_HEADS, SIZE))))
        stories[i].more(1)
        metadata.append(integration.create_relay_metadata(32, f"prompt {i}", f"user {i}"))
        layer.forward(halves(9, 33, HEADS, SIZE), stories[i].key, stories[i].value, metadata[i])
    assert "'prompt 1' is not kept" in caplog.text and layer.stats().prompts == 1
    new = [story.more(1) for story in stories]
    query = halves(8, 2, HEADS, SIZE)
    output = layer.forward(query, torch.cat([k for k, _ in new]), torch.cat([v for _, v in new]), metadata)
    for i in range(2):
        stories[i].close(output[i:i + 1], query[i:i + 1])


def test_layer_batch_under_one_metadata(pretended):
    integration, layer = layer_of(pretended, alibi_slopes=[0.1, 0.2, 0.3, 0.4], sinks=[0.0] * HEADS)
    key, value = halves(1, 3, 40, KV_HEADS, SIZE), halves(2, 3, 40, KV_HEADS, SIZE)
    key[:, :32], value[:, :32] = key[0, :32], value[0, :32]
    query = halves(3, 3, 40, HEADS, SIZE)
    output = layer.forward(query, key, value, integration.create_relay_metadata(32, "p"))
    for i in range(3):
        wanted = attention(query[i].double(), key[i].double(), value[i].double(), slopes=[0.1, 0.2, 0.3, 0.4],
                           sinks=np.zeros(HEADS))[0]
        close(output[i], wanted, 3e-3)
    key[1, 3] += 1.0
    with pytest.raises(errors.InvalidArgumentError, match="key: the system tokens of row 1"):
        layer.forward(query, key, value, integration.create_relay_metadata(32, "q"))


def test_layer_refuses(pretended, tmp_path):
    integration, layer = layer_of(pretended)
    key, value, query = halves(1, 40, KV_HEADS, SIZE), halves(2, 40, KV_HEADS, SIZE), halves(3, 40, HEADS, SIZE)
    metadata = integration.create_relay_metadata(32, "p", "u")
    with pytest.raises(errors.WrongDeviceError, match="key: a numpy array, on cpu:0"):
        layer.forward(query, key.numpy(), value.numpy(), metadata)
    with pytest.raises(errors.NotFoundError, match="'p'"):
        layer.forward(query, key, value, metadata, system_included=False)
    layer.forward(query, key, value, metadata)
    other = integration.create_relay_metadata(16, "p", "v")
    with pytest.raises(errors.InvalidArgumentError, match="system_length: 16.*32"):
        layer.forward(query, key, value, other)
    stored = relay.RelayAttentionIntegration(relay.RelayConfig(enabled=True), device=pretended.device,
                                             cache_dir=str(tmp_path))
    with pytest.raises(errors.UnsupportedError, match="cache_dir"):
        stored.create_attention_layer(HEADS, SIZE, 0.1)


# ---- vLLM's classes ---------------------------------------------------------------------


@pytest.mark.parametrize("slopes", [None, [0.1, 0.2, 0.3, 0.4]])
def test_vllms_classes(pretended, vllm_classes, slopes):
    """Two layers of two steps: three requests of 48 shared tokens, planned for the device."""
    from relay_attention_port.vllm.settings import Settings
    from relay_attention_port.vllm.steps import StepPlanner
    layers = [vllm_classes.RelayAttentionImpl(HEADS, SIZE, SIZE**-0.5, KV_HEADS, slopes) for _ in range(2)]
    pools = [halves(i, 2, 32, BLOCK, KV_HEADS, SIZE) for i in (1, 2)]
    planner = StepPlanner(pretended.device, Settings(strategy="relay"), BLOCK)
    assert planner.packed is None, "copies for the processor's kernels"
    for step in range(2):
        lens = np.array([50 + step, 57 + step, 49 + step], np.int32)
        table = np.array([[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 5]], np.int32)
        planner.begin(np.arange(4, dtype=np.int32), lens, table, 32, None)
        slots = torch.tensor([int(table[i, 3]) * BLOCK + n - 1 - 48 for i, n in enumerate(lens)],
                             dtype=torch.int64)
        metadata = vllm_classes.RelayAttentionMetadata(3, slots, planner)
        pretended.clear()
        for number, (impl, pool) in enumerate(zip(layers, pools)):
            query, key, value = (halves(50 * number + j, 4, heads, SIZE) for j, heads in enumerate((HEADS, 2, 2)))
            output = impl.forward(None, query, key, value, pool, metadata, torch.full_like(query, 7.0))
            assert (output[3] == 7.0).all(), "rows beyond the step are padding"
            for i, n in enumerate(lens):
                k, v = (kv[table[i].tolist()].flatten(0, 1)[:n].double() for kv in pool)
                assert torch.equal(k[-1], key[i].double())
                close(output[i:i + 1], attention(query[i:i + 1].double(), k, v, slopes=slopes)[0], 3e-3)
        assert (pretended.calls.attends, pretended.calls.copies, pretended.calls.writes) == (2, 1, 2)
