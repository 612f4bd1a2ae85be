#!/usr/bin/env python3
"""Decode attention under one shared prompt on a GPU, by this library and by what else there is, side by side.

    PYTHONPATH=python python bench/peers_cuda.py --out bench/results/h200/peers.jsonl

Needs torch with CUDA, Triton, the package relay_attention_port and librelayattn_cuda. flashinfer (FlashInfer) and
fa3_fwd_interface (FlashAttention-3, forward only) are compared where they can be imported; what cannot run is named
with its reason. Every output is checked against float64 on a sample of requests before anything is timed.

Time is "ev": the caches are cleaned by reading 192 MB, then event, a CUDA graph's launch, event; the median of many.
(What the smallest kernel reads is printed first.) Making plans is not in it, for none of them. Each system's readings
follow each other, in two passes in opposite order. With --in-turn the systems take turns at every reading: then a
kernel's instructions, too, have left the caches near the multiprocessors, as between the layers of a model.
"""
import argparse
import json
import statistics
import sys

import torch

PAGE, DIM = 16, 128
POINTS = ["32/8 32 8192 512", "32/8 32 2048 128", "32/8 8 8192 128", "32/8 128 8192 128", "64/8 128 32768 512",
          "32/32 32 2048 128", "8/1 8 4000 128", "32/8 1 2048 128"]
MOST_BYTES = 40 << 30  # of K/V that a system which cannot share has to be given
ALLOWED = 1e-2
SAMPLE = 5


class Unavailable(Exception):
    """Why a system cannot be run here."""


class Point:
    """K/V in shuffled pages, and the same numbers as contiguous tensors. query [B, Hq, D] bf16."""

    def __init__(self, heads, batch, system, user):
        self.heads, self.batch, self.system, self.user = heads, int(batch), int(system), int(user)
        self.num_heads, self.num_kv_heads = (int(n) for n in heads.split("/"))
        self.group = self.num_heads // self.num_kv_heads
        generator = torch.Generator("cuda").manual_seed(1)
        self.system_pages, self.user_pages = -(-self.system // PAGE), -(-self.user // PAGE)
        pages = self.system_pages + self.batch * self.user_pages
        shape = (pages, PAGE, self.num_kv_heads, DIM)
        self.keys, self.values = (torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
                                  for _ in range(2))
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(2)).to(torch.int32)
        self.shared, self.own = order[:self.system_pages], order[self.system_pages:].view(self.batch, -1)
        self.query = torch.randn(self.batch, self.num_heads, DIM, generator=generator, device="cuda",
                                 dtype=torch.bfloat16)

    def name(self):
        return f"{self.heads} B{self.batch} S{self.system} U{self.user}"

    def prompt(self):
        """K, V [S, Hkv, D]."""
        return tuple(pool[self.shared.cuda()].flatten(0, 1)[:self.system].contiguous()
                     for pool in (self.keys, self.values))

    def users(self):
        """K, V [B, U, Hkv, D]."""
        return tuple(pool[self.own.cuda()].flatten(1, 2)[:, :self.user].contiguous()
                     for pool in (self.keys, self.values))

    def whole(self):
        """K, V [B, S + U, Hkv, D]: what plain attention reads."""
        size = 4 * self.batch * (self.system + self.user) * self.num_kv_heads * DIM
        if size > MOST_BYTES:
            raise Unavailable(f"its K/V would take {size / 2**30:.0f} GiB")
        made = []
        for shared, own in zip(self.prompt(), self.users()):
            made.append(torch.cat([shared.expand(self.batch, *shared.shape), own], 1))
        return tuple(made)

    def packed_query(self, rows):
        """[rows, Hkv, B / rows * G, D]: the heads of a group as rows of its kv head."""
        q = self.query.view(rows, self.batch // rows, self.num_kv_heads, self.group, DIM)
        return q.transpose(1, 2).reshape(rows, self.num_kv_heads, -1, DIM)

    def unpacked(self, tensor):
        """packed_query's rows back as [B, Hq, ...]."""
        rows, tail = tensor.shape[0], tensor.shape[3:]
        t = tensor.view(rows, self.num_kv_heads, self.batch // rows, self.group, *tail).transpose(1, 2)
        return t.reshape(self.batch, self.num_heads, *tail)

    def error(self, output):
        """Relative Frobenius error against float64, of a sample of requests."""
        (pk, pv), (uk, uv), off, size = self.prompt(), self.users(), 0.0, 0.0
        for b in sorted({round(i * (self.batch - 1) / (SAMPLE - 1)) for i in range(SAMPLE)}):
            k, v = (torch.cat(pair).double() for pair in ((pk, uk[b]), (pv, uv[b])))
            q = self.query[b].double().view(self.num_kv_heads, self.group, DIM)
            weights = (torch.einsum("hgd,khd->hgk", q, k) * DIM**-0.5).softmax(-1)
            wanted = torch.einsum("hgk,khd->hgd", weights, v).reshape(self.num_heads, DIM)
            off += float((output[b].double() - wanted).square().sum())
            size += float(wanted.square().sum())
        return (off / size)**0.5


# ---- the systems: each gives a function that may be captured, and returns [B, Hq, D] --------------------------------


def plan_of(point, device, strategy):
    from relay_attention_port import Attention, Forest, Plan, Segment, Span
    own = [Span.paged(point.user, row.numpy()) for row in point.own]
    prompt = Segment(Span.paged(point.system, point.shared.numpy()), 0, point.batch)
    forest = Forest(device).set(range(point.batch + 1), own, [prompt], block_size=PAGE, num_blocks=len(point.keys))
    return Plan(device, Attention(point.num_heads, point.num_kv_heads, DIM), strategy=strategy).build(forest)


def relay(point, strategy="auto"):
    from relay_attention_port import Device
    plan, output = plan_of(point, Device("cuda"), strategy), torch.empty_like(point.query)
    plan.run(point.query, output, key_pool=point.keys, value_pool=point.values)

    def run():  # a model's second layer: the first has brought the plan
        plan.run(point.query, output, key_pool=point.keys, value_pool=point.values, plan_in_workspace=True)
        return output
    run.note = plan.info().kernel + (", shared" if plan.info().relay_segments else ", plain")
    return run


def relay_plain(point):
    return relay(point, "plain")


def _flashinfer():
    try:
        import flashinfer
    except ImportError as error:
        raise Unavailable(f"flashinfer: {error}") from error
    return flashinfer


def _space():
    return torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")


def _last(tokens, count):
    return torch.full((count,), (tokens - 1) % PAGE + 1, dtype=torch.int32, device="cuda")


def flashinfer_cascade(point, backend=None):
    flashinfer = _flashinfer()
    space = _space()
    cascade = flashinfer.MultiLevelCascadeAttentionWrapper(2, space, "NHD")
    if backend is not None:
        cascade._batch_prefill_wrappers = [
            flashinfer.BatchPrefillWithPagedKVCacheWrapper(_space(), "NHD", backend=backend) for _ in range(2)]
    rows = torch.arange(point.batch + 1, dtype=torch.int32, device="cuda")
    cascade.plan([torch.tensor([0, point.batch], dtype=torch.int32, device="cuda"), rows],
                 [torch.tensor([0, point.system_pages], dtype=torch.int32, device="cuda"), rows * point.user_pages],
                 [point.shared.cuda(), point.own.flatten().cuda()],
                 [_last(point.system, 1), _last(point.user, point.batch)],
                 point.num_heads, point.num_kv_heads, DIM, PAGE, q_data_type=torch.bfloat16,
                 kv_data_type=torch.bfloat16)

    def run():
        return cascade.run(point.query, (point.keys, point.values))
    run.note = "/".join(str(wrapper._backend) for wrapper in cascade._batch_prefill_wrappers)
    return run


def flashinfer_cascade_fa2(point):
    return flashinfer_cascade(point, "fa2")


def flashinfer_plain(point, tensor_cores=False):
    flashinfer = _flashinfer()
    decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_space(), "NHD", use_tensor_cores=tensor_cores)
    if point.system % PAGE:
        raise Unavailable("a prompt that does not end with a page cannot be shared through block tables")
    tables = torch.cat([point.shared.expand(point.batch, -1), point.own], 1)
    decode.plan(torch.arange(point.batch + 1, dtype=torch.int32, device="cuda") * tables.shape[1],
                tables.flatten().contiguous().cuda(), _last(point.user, point.batch), point.num_heads,
                point.num_kv_heads, DIM, PAGE, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
    return lambda: decode.run(point.query, (point.keys, point.values))


def flashinfer_plain_tensor_cores(point):
    return flashinfer_plain(point, True)


def _merge():
    """One Triton launch, this package's: the parts' makers have none."""
    from relay_attention_port.triton_fusion import fuse

    def merge(out_a, lse_a, out_b, lse_b):
        output = torch.empty_like(out_a)
        fuse(output, out_a, lse_a, out_b, lse_b)
        return output
    return merge


def _torch_flash(query, key, value):
    made = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    return made[0], made[1]


def _torch_cudnn(query, key, value):
    made = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)
    return made[0], made[1].view(query.shape[:3])


def _torch_twice(point, attend):
    prompt = [t.transpose(0, 1)[None] for t in point.prompt()]
    users = [t.transpose(1, 2) for t in point.users()]
    merge = _merge()

    def run():
        shared = attend(point.packed_query(1), *prompt)
        own = attend(point.packed_query(point.batch), *users)
        return merge(*(point.unpacked(t) for t in (*shared, *own)))
    return run


def torch_flash_twice(point):
    return _torch_twice(point, _torch_flash)


def torch_cudnn_twice(point):
    return _torch_twice(point, _torch_cudnn)


def _torch_plain(point, attend):
    whole = [t.transpose(1, 2) for t in point.whole()]
    return lambda: point.unpacked(attend(point.packed_query(point.batch), *whole)[0])


def torch_flash_plain(point):
    return _torch_plain(point, _torch_flash)


def torch_cudnn_plain(point):
    return _torch_plain(point, _torch_cudnn)


def _fa3():
    try:
        from fa3_fwd_interface import flash_attn_func
    except (ImportError, OSError) as error:
        raise Unavailable(f"fa3_fwd: {error}") from error
    return lambda *tensors: flash_attn_func(*tensors, num_splits=0, return_attn_probs=True)


def fa3_plain(point):
    attend, whole = _fa3(), point.whole()
    return lambda: attend(point.query[:, None], *whole)[0][:, 0]


def fa3_twice(point):
    attend, merge = _fa3(), _merge()
    prompt, users = [t[None] for t in point.prompt()], point.users()

    def run():
        out_a, lse_a = attend(point.query[None], *prompt)[:2]
        out_b, lse_b = attend(point.query[:, None], *users)[:2]
        return merge(out_a[0], lse_a[0].T, out_b[:, 0], lse_b[:, :, 0])
    return run


SYSTEMS = {
    "relay": relay, "relay, plain": relay_plain,
    "FlashInfer cascade": flashinfer_cascade, "FlashInfer cascade, fa2": flashinfer_cascade_fa2,
    "FlashInfer plain": flashinfer_plain, "FlashInfer plain, tensor cores": flashinfer_plain_tensor_cores,
    "FA3 twice + merge": fa3_twice, "FA3 plain": fa3_plain,
    "torch flash twice + merge": torch_flash_twice, "torch cuDNN twice + merge": torch_cudnn_twice,
    "torch flash plain": torch_flash_plain, "torch cuDNN plain": torch_cudnn_plain,
}


# ---- measuring ------------------------------------------------------------------------------------------------------


def captured(run):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return graph, output


def order_of(systems, count, in_turn):
    """Which system is read when; the first two readings of a row are not counted."""
    if in_turn:
        return [list(range(systems))] * (count + 2)
    half = -(-count // 2)
    return [[i] * (half + 2) for i in (*range(systems), *reversed(range(systems)))]


def readings(graphs, count, flush, in_turn=False):
    """[system][reading] us. The sleep keeps the host ahead, so that its launches are not in the time."""
    times = [[] for _ in graphs]
    for number, row in enumerate(order_of(len(graphs), count, in_turn)):
        pairs = []
        for i in row:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(200_000)
            flush.sum()
            before.record()
            graphs[i].replay()
            after.record()
            pairs.append((i, before, after))
        torch.cuda.synchronize()
        skipped = (pairs if number < 2 else []) if in_turn else pairs[:2]
        for i, before, after in pairs[len(skipped):]:
            times[i].append(before.elapsed_time(after) * 1e3)
    return times


def smallest(count, flush):
    """What a kernel reads that does next to nothing, us."""
    one = torch.zeros(1, device="cuda")
    graph, _ = captured(lambda: one.add_(1.0))
    return round(statistics.median(readings([graph], count, flush)[0]), 2)


def prepare(point, name):
    """(graph, error, what the graph uses, note) of a checked system; a string says why there is none."""
    try:
        run = SYSTEMS[name](point)
        point_output = run()
        torch.cuda.synchronize()
        first = point.error(point_output)
        graph, output = captured(run)
        output.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        error = max(first, point.error(output))
    except Unavailable as reason:
        return str(reason)
    except Exception as error:  # a peer's own; the others are still compared
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    if not error <= ALLOWED:
        return f"wrong: off by {error:.2e}"
    return graph, error, (run, output), getattr(run, "note", "")


def compare(point, names, given, flush, limits):
    read_gbps, peak_gflops = limits
    tokens = point.system + point.batch * point.user
    limit = max(4 * tokens * point.num_kv_heads * DIM / read_gbps / 1e3,
                4 * DIM * point.num_heads * point.batch * (point.system + point.user) / peak_gflops / 1e3)
    made = {name: prepare(point, name) for name in names}
    there = {name: it for name, it in made.items() if not isinstance(it, str)}
    times = dict(zip(there, readings([it[0] for it in there.values()], given.readings, flush,
                                     given.in_turn)))
    for name, it in made.items():
        line = {"heads": point.heads, "batch": point.batch, "system": point.system, "user": point.user, "dtype": "bf16",
                "head_dim": DIM, "page": PAGE, "method": "ev, in turn" if given.in_turn else "ev", "name": name,
                "limit_us": round(limit, 2)}
        if isinstance(it, str):
            line["absent"] = it
        else:
            us = sorted(times[name])
            line |= {"us": round(statistics.median(us), 2), "us_low": round(us[len(us) // 10], 2),
                     "us_high": round(us[-1 - len(us) // 10], 2), "readings": len(us), "error": float(f"{it[1]:.3g}"),
                     "note": it[3]}
        yield line


def host_times():
    """What a call costs the host, us: the fastest of 20 groups of 100, the GPU waited for between them."""
    import time

    from relay_attention_port import Device, cache_write, fuse, tensor_view, torch_ops
    point, device, ops = Point("32/8", 8, 2048, 128), Device("cuda"), torch.ops.relay_attention
    plan, output = plan_of(point, device, "auto"), torch.empty_like(point.query)
    keys, values = (tensor_view(pool) for pool in (point.keys, point.values))
    number, slots = torch_ops.number_of(plan), torch.arange(8, device="cuda")
    new = torch.randn(8, point.num_kv_heads, DIM, device="cuda", dtype=torch.bfloat16)
    lse = torch.zeros(8, point.num_heads, device="cuda")
    calls = {
        "plan.run, pools as kept views": lambda: plan.run(point.query, output, key_pool=keys, value_pool=values),
        "plan.run, all as tensors": lambda: plan.run(point.query, output, key_pool=point.keys, value_pool=point.values),
        "torch.ops.relay_attention.run": lambda: ops.run(point.query, output, number, point.keys, point.values),
        "cache_write, all as tensors": lambda: cache_write(device, new, new, point.keys, point.values, slots),
        "fuse of two parts": lambda: fuse(device, [point.query, output], [lse, lse], torch.empty_like(output)),
        "an addition by torch": lambda: torch.add(output, 1.0, out=output),
    }
    for name, call in calls.items():
        best = float("inf")
        for _ in range(20):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(100):
                call()
            best = min(best, time.perf_counter() - begin)
        print(f"  {name:32} {best * 1e4:6.1f} us of the host")


def versions():
    found = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    for name in ("flashinfer", "triton"):
        if name in sys.modules:
            found[name] = sys.modules[name].__version__
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON lines are written there, too")
    parser.add_argument("--readings", type=int, default=40)
    parser.add_argument("--point", action="append", help=f"heads batch system user; default: {'; '.join(POINTS)}")
    parser.add_argument("--name", action="append", choices=list(SYSTEMS), help="a system; default all")
    parser.add_argument("--in-turn", action="store_true", help="systems take turns at every reading")
    parser.add_argument("--host", action="store_true", help="what this package's calls cost the host, and nothing else")
    given = parser.parse_args()
    if given.host:
        host_times()
        return
    from relay_attention_port import Device
    rates = Device("cuda").calibrate()
    names = given.name or list(SYSTEMS)
    flush = torch.zeros(192 << 18, device="cuda")
    out = open(given.out, "w") if given.out else None
    head = {"read_gbps": round(rates.read_gbps), "peak_tflops": round(rates.peak_gflops / 1e3),
            "smallest_us": smallest(given.readings, flush)}
    print(f"the smallest kernel reads {head['smallest_us']} us", flush=True)
    for text in given.point or POINTS:
        point = Point(*text.split())
        lines = list(compare(point, names, given, flush, (rates.read_gbps, rates.peak_gflops)))
        print(f"\n{point.name()}   limit {lines[0]['limit_us']} us")
        for line in lines:
            what = line.get("absent") or f"{line['us']:8.1f} us  ({line['us_low']}..{line['us_high']})  error " \
                                         f"{line['error']:.1e}  {line['note']}"
            print(f"  {line['name']:32} {what}", flush=True)
            if out:
                out.write(json.dumps({**line, **head, **versions()}) + "\n")
                out.flush()
        del point, lines
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
