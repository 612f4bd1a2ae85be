"""Plan.run with torch's CUDA tensors: values, graphs, streams, bad input."""
import ctypes

import numpy as np
import pytest
import torch
from traffic import ALLOWED, DTYPES, HERE, Traffic, decode, mixed_chunks, numbers, off_by, two_prompts

from relay_attention_port import Attention, Device, Forest, Plan, RelayError, Segment, Span, c_structs, errors

HEADS = [(32, 8, 128), (8, 1, 128), (4, 4, 64), (28, 4, 128), (6, 2, 80)]


@pytest.fixture(scope="module")
def device():
    return Device("cuda:0")


def kind(dtype="bf16", heads=(32, 8, 128), **more):
    return Attention(*heads, dtype, dtype, dtype, **more)


def check(traffic, plan, dtype, **more):
    lse = torch.full((traffic.starts[-1], traffic.attention.num_heads), float("nan"), device=HERE)
    output = traffic.run(plan, lse=lse, **more)
    wanted, wanted_lse = traffic.wanted()
    assert off_by(output, wanted) <= ALLOWED[dtype]
    assert (lse - wanted_lse).abs().max() <= 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: "/".join(map(str, heads)))
@pytest.mark.parametrize("batch", [two_prompts, mixed_chunks], ids=lambda batch: batch.__name__)
@pytest.mark.parametrize("strategy", ["auto", "relay"])
def test_run(device, dtype, heads, batch, strategy):
    traffic = Traffic(device, kind(dtype, heads), *batch())
    plan = Plan(device, traffic.attention, strategy=strategy).build(traffic.forest)
    check(traffic, plan, dtype)
    check(traffic, plan, dtype)  # the work list is in the workspace already


def test_run_with_a_window(device):
    traffic = Traffic(device, kind(sliding_window=300), *two_prompts())
    check(traffic, Plan(device, traffic.attention).build(traffic.forest), "bf16")


def test_queries_and_outputs_of_any_strides(device):
    traffic = Traffic(device, kind("f16"), *mixed_chunks())
    plan = Plan(device, traffic.attention, strategy="relay").build(traffic.forest)
    tokens, heads, size = traffic.query.shape
    query = torch.empty(heads, tokens, size + 3, device=HERE, dtype=torch.float16)[:, :, 1:size + 1].transpose(0, 1)
    query.copy_(traffic.query)
    output = torch.full((tokens, heads * 2, size), float("nan"), device=HERE, dtype=torch.float16)[:, ::2]
    lse = torch.empty(heads, tokens, device=HERE).T
    traffic.run(plan, output, query, lse=lse)
    wanted, wanted_lse = traffic.wanted()
    assert off_by(output, wanted) <= 1e-3 and (lse - wanted_lse).abs().max() <= 1e-3


def test_contiguous_spans(device):
    key, value = numbers(1, 400, 8, 128), numbers(2, 400, 8, 128)
    own = [(numbers(3, n, 8, 128), numbers(4, n, 8, 128)) for n in (1, 30)]
    forest = Forest(device).set([0, 1, 2], [Span.contiguous(1, 1), Span.contiguous(30, 2)],
                                [Segment(Span.contiguous(400, 0), 0, 2)])
    plan = Plan(device, kind("f16"), strategy="relay").build(forest)
    query, output = numbers(5, 2, 32, 128), torch.full((2, 32, 128), float("nan"), device=HERE, dtype=torch.float16)
    plan.run(query, output, contiguous=[(key, value), *own])
    for i in range(2):
        k, v = (torch.cat(pair).double().repeat_interleave(4, 1) for pair in zip((key, value), own[i]))
        scores = torch.einsum("hd,khd->hk", query[i].double(), k) * 128**-0.5
        assert off_by(output[i], torch.einsum("hk,khd->hd", scores.softmax(-1), v)) <= 1e-3


def test_tensors_by_dlpack(device):
    cupy = pytest.importorskip("cupy")
    traffic = Traffic(device, kind("f16"), *two_prompts())
    plan = Plan(device, traffic.attention).build(traffic.forest)
    query, output = (cupy.from_dlpack(tensor) for tensor in (traffic.query, torch.zeros_like(traffic.query)))
    plan.run(query, output, key_pool=traffic.keys, value_pool=traffic.values)
    assert off_by(torch.from_dlpack(output), traffic.wanted()[0]) <= 1e-3


# ---- graphs ---------------------------------------------------------------------------


def bounded(device, attention, requests, **more):
    return Plan(device, attention, max_requests=requests, max_rows=requests, max_depth=2, max_tokens=4096,
                max_blocks=4096, **more)


def test_one_graph_serves_later_steps(device):
    """Two layers of eight requests; lengths, prompts and depth change between replays."""
    traffic = Traffic(device, kind(), *two_prompts(each=2), num_blocks=600)
    plan = bounded(device, traffic.attention, 8, strategy="relay").build(traffic.forest)
    query = traffic.query.clone()
    outputs = [torch.full_like(query, float("nan")) for _ in range(2)]
    traffic.run(plan, outputs[0], query)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        traffic.run(plan, outputs[0], query)
        traffic.run(plan, outputs[1], query * 0.5, plan_in_workspace=True)
    for step in range(12):
        prompts = [(100 + 190 * step, None), (40, 0), (16 * step + 16, None)]
        requests = [*decode(3, 0, step), *decode(2, 1, step + 50, 1000), *decode(3 - step % 2, 2, step + 90)]
        traffic.set(prompts, requests, seed=step + 1)
        plan.build(traffic.forest)
        rows = len(traffic.query)
        query[:rows] = traffic.query
        for output in outputs:
            output.fill_(float("nan"))
        graph.replay()
        for output, scale in zip(outputs, (1.0, 0.5)):
            assert off_by(output[:rows], traffic.wanted(traffic.query * scale)[0]) <= ALLOWED["bf16"], f"step {step}"
            assert output[rows:].isnan().all(), "rows beyond the batch are not touched"
        if step % 3 == 0:  # a run of the same plan outside the graph, in between
            eager = traffic.run(plan, query=query)
            assert off_by(eager[:rows], traffic.wanted()[0]) <= ALLOWED["bf16"]
    with pytest.raises(errors.BadShapeError, match="query: shape.0. is 7, expected at least 8"):
        traffic.run(plan, query=query[:7])  # the graph's launches are for as many rows as the plan may have


def test_building_does_not_overtake_queued_replays(device):
    traffic = Traffic(device, kind(), *two_prompts(each=2), num_blocks=600)
    plan = bounded(device, traffic.attention, 8, strategy="relay").build(traffic.forest)
    output = traffic.run(plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        traffic.run(plan, output)
    wanted = traffic.wanted()[0]
    output.fill_(float("nan"))
    torch.cuda._sleep(200_000_000)  # about 0.1 s: what follows is still queued when the plan is built again
    graph.replay()
    kept = output.clone()
    alone = Forest(device).set(list(range(9)), [Span.paged(1, [i]) for i in range(8)], num_blocks=600)
    plan.build(alone)
    assert off_by(kept, wanted) <= ALLOWED["bf16"]


# ---- streams --------------------------------------------------------------------------


def test_runs_follow_torchs_stream(device):
    traffic = Traffic(device, kind(), *two_prompts())
    plan = Plan(device, traffic.attention).build(traffic.forest)
    side = torch.cuda.Stream()
    query = torch.zeros_like(traffic.query)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        query.copy_(traffic.query)  # a run on another stream would read zeros
        output = traffic.run(plan, query=query)
    torch.cuda.synchronize()
    assert off_by(output, traffic.wanted()[0]) <= ALLOWED["bf16"]


@pytest.mark.parametrize("named", [False, True])
def test_one_plan_on_several_streams(device, named):
    """Its workspace serves one run at a time, so they come one after the other; and building waits for all of them."""
    traffic = Traffic(device, kind(), *two_prompts())
    plan = Plan(device, traffic.attention, strategy="relay").build(traffic.forest)
    wanted = [traffic.wanted(traffic.query * scale)[0] for scale in (1.0, 0.5, 0.25)]
    queries = [traffic.query * scale for scale in (1.0, 0.5, 0.25)]
    outputs = [torch.full_like(query, float("nan")) for query in queries]
    streams = [torch.cuda.Stream() for _ in queries]
    torch.cuda.synchronize()
    for stream, query, output in zip(streams, queries, outputs):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            if not named:
                traffic.run(plan, output, query)
        if named:
            traffic.run(plan, output, query, stream=stream.cuda_stream)
    other = Forest(device).set([0, 1], [Span.paged(1, [0])], num_blocks=traffic.num_blocks)
    plan.build(other)
    torch.cuda.synchronize()
    for output, right in zip(outputs, wanted):
        assert off_by(output, right) <= ALLOWED["bf16"]


def test_the_library_itself_waits_for_all_streams(device):
    """Runs with workspaces of their own, as the C interface allows: a list that any waits for may not change."""
    traffic = Traffic(device, kind(), *two_prompts())
    plan = Plan(device, traffic.attention, strategy="relay").build(traffic.forest)
    wanted, kept = traffic.wanted()[0], []
    traffic.run(plan)  # what is loaded by a first launch waits for the device
    plan.build(traffic.forest)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for stream, sleep in zip(streams, (300_000_000, 0)):  # the first one's copy comes last
        with torch.cuda.stream(stream):
            torch.cuda._sleep(sleep + 1)
        args, output = c_structs.RunArgs.from_buffer_copy(plan._args), torch.full_like(traffic.query, float("nan"))
        space = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=HERE)
        from relay_attention_port import tensor_view
        args.query, args.output = tensor_view(traffic.query).c, tensor_view(output).c
        args.key_pool, args.value_pool = tensor_view(traffic.keys).c, tensor_view(traffic.values).c
        args.workspace, args.workspace_bytes = space.data_ptr(), space.numel()
        args.stream = stream.cuda_stream
        device.lib.call(device.lib.c.relay_run, plan.pointer, ctypes.byref(args))
        kept.append((output, space))
    other = Forest(device).set([0, 1], [Span.paged(1, [0])], num_blocks=traffic.num_blocks)
    plan.build(other)
    torch.cuda.synchronize()
    for output, _ in kept:
        assert off_by(output, wanted) <= ALLOWED["bf16"]


# ---- bad input ------------------------------------------------------------------------


def test_bad_input_is_named_and_nothing_runs(device):
    traffic = Traffic(device, kind(), *two_prompts())
    plan = Plan(device, traffic.attention).build(traffic.forest)
    output = torch.full_like(traffic.query, 7.0)
    good = dict(query=traffic.query, output=output, key_pool=traffic.keys, value_pool=traffic.values)
    room = torch.empty(traffic.keys.numel() + 1, device=HERE, dtype=traffic.dtype)
    cases = [(dict(query=traffic.query.cpu()), errors.WrongDeviceError, "query: on cpu:0"),
             (dict(output=output.cpu()), errors.WrongDeviceError, "output: on cpu:0"),
             (dict(key_pool=traffic.keys.cpu()), errors.WrongDeviceError, "key_pool: on cpu:0"),
             (dict(query=np.zeros(traffic.query.shape, np.float16)), errors.WrongDeviceError, "query: a numpy array"),
             (dict(query=traffic.query.half()), errors.BadDtypeError, "query"),
             (dict(query=traffic.query.double()), errors.BadDtypeError, "query: torch.float64"),
             (dict(query=traffic.query[:, :-1]), errors.BadShapeError, "query"),
             (dict(query=traffic.query[:3]), errors.BadShapeError, "query"),
             (dict(key_pool=traffic.keys.transpose(2, 3)), errors.RelayError, "key_pool"),
             (dict(value_pool=room[1:].view(traffic.keys.shape)), errors.MisalignedError, "value_pool"),
             (dict(output=traffic.query), errors.OverlapError, "output"),
             (dict(key_pool=None), errors.RelayError, "key_pool"),
             (dict(lse=torch.zeros(len(output), 32).cpu()), errors.WrongDeviceError, "lse: on cpu:0"),
             (dict(contiguous=[(traffic.keys[0].cpu(), traffic.values[0])]), errors.WrongDeviceError,
              r"contiguous\[0\].key")]
    for change, error, said in cases:
        with pytest.raises(error, match=said):
            plan.run(**{**good, **change})
    torch.cuda.synchronize()
    assert (output == 7.0).all()
    plan.run(**good)
    assert off_by(output, traffic.wanted()[0]) <= ALLOWED["bf16"]


def test_objects_that_do_not_fit(device):
    with pytest.raises(errors.NoDeviceError, match="device 99 of"):
        Device("cuda:99")
    with pytest.raises(errors.UnsupportedError, match="f32"):
        Plan(device, Attention(8, 8, 128, "f32", "f32", "f32"))
    cpu = Device()
    forest = Forest(cpu).set([0, 1], [Span.paged(1, [0])], num_blocks=1)
    with pytest.raises(errors.WrongDeviceError):
        Plan(device, kind()).build(forest)
    with pytest.raises(errors.UnsupportedError, match="block_size of 24"):
        Plan(device, kind()).build(Forest(device).set([0, 1], [Span.paged(1, [0])], block_size=24, num_blocks=1))
    on_gpu = numbers(1, 1, 8, 128)
    plan = Plan(cpu, Attention(8, 8, 128, "f16", "f16", "f16")).build(forest)
    with pytest.raises(errors.WrongDeviceError, match="query: on cuda:0, expected a tensor on cpu:0"):
        plan.run(on_gpu, on_gpu)
    assert issubclass(errors.WrongDeviceError, RelayError)
