"""torch.ops.relay_attention: torch's own checker of operators, torch.compile, and what a plan's number stands for."""
import gc
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pretended import pretended, pretended_library  # noqa: F401
import python_package
from python_package import attention, close

from relay_attention_port import Attention, Device, Forest, Plan, Segment, Span, errors, torch_ops

HEADS, KV_HEADS, SIZE, BLOCK, SYSTEM = 4, 2, 16, 16, 32
ops = torch.ops.relay_attention
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def floats(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Step:
    """Two requests that decode under one prompt of two blocks; their own tokens are in blocks 4 and 5."""

    def __init__(self, device=None, dtype="f32", **options):
        self.device = device or Device(threads=1)
        self.forest = Forest(self.device)
        self.plan = Plan(self.device, Attention(HEADS, KV_HEADS, SIZE, dtype, dtype, dtype, **options))
        self.number = torch_ops.number_of(self.plan)
        self.keys, self.values = floats(1, 8, BLOCK, KV_HEADS, SIZE), floats(2, 8, BLOCK, KV_HEADS, SIZE)
        self.query = floats(3, 2, HEADS, SIZE)
        if dtype == "f16":
            self.keys, self.values, self.query = self.keys.half(), self.values.half(), self.query.half()
        self.build(3, 9)

    def build(self, *lengths):
        self.lengths = lengths
        own = [Span.paged(n, [4 + i]) for i, n in enumerate(lengths)]
        self.forest.set([0, 1, 2], own, [Segment(Span.paged(SYSTEM, [0, 1]), 0, 2)], num_blocks=8)
        self.plan.build(self.forest)

    def wanted(self, keys=None, values=None, query=None):
        keys, values = self.keys if keys is None else keys, self.values if values is None else values
        query, rows = self.query if query is None else query, []
        for i, n in enumerate(self.lengths):
            pair = [torch.cat([pool[:2].flatten(0, 1), pool[4 + i, :n]]).double() for pool in (keys, values)]
            rows.append(attention(query[i:i + 1].double(), *pair)[0])
        return np.concatenate(rows)


# ---- torch's own checker --------------------------------------------------------------


def test_opcheck_run():
    step = Step()
    output, lse = torch.zeros(2, HEADS, SIZE), torch.zeros(2, HEADS)
    for arguments, more in (((step.query, output, step.number, step.keys, step.values), {}),
                            ((step.query, output, step.number, step.keys, step.values), {"lse": lse}),
                            ((step.query, torch.zeros(2, HEADS + 1, SIZE)[:, 1:], step.number), {
                                "key_pool": step.keys, "value_pool": step.values, "lse": torch.zeros(HEADS, 2).T})):
        torch.library.opcheck(ops.run.default, arguments, more)


def test_opcheck_run_of_contiguous_spans():
    device = Device(threads=1)
    plan = Plan(device, Attention(HEADS, KV_HEADS, SIZE, "f32", "f32", "f32", use_alibi=True, use_sinks=True))
    forest = Forest(device).set([0, 1], [Span.contiguous(7, 0)])
    plan.build(forest)
    arguments = dict(query=floats(1, 1, HEADS, SIZE), output=torch.zeros(1, HEADS, SIZE),
                     plan=torch_ops.number_of(plan),
                     contiguous=[floats(2, 7, KV_HEADS, SIZE), floats(3, 7, KV_HEADS, SIZE)],
                     alibi_slopes=floats(4, HEADS), sinks=floats(5, HEADS))
    torch.library.opcheck(ops.run.default, (), arguments)
    ops.run(**arguments)
    wanted, _ = attention(*(x.double() for x in (arguments["query"], *arguments["contiguous"])),
                          slopes=arguments["alibi_slopes"].double(), sinks=arguments["sinks"].double())
    close(arguments["output"], wanted, 1e-5)
    with pytest.raises(errors.BadShapeError, match="contiguous: 1 tensors"):
        ops.run(**{**arguments, "contiguous": arguments["contiguous"][:1]})


def test_opcheck_fuse_and_cache_write():
    outs, lses = [floats(i, 5, 3, 8) for i in (1, 2, 3)], [floats(i, 5, 3) for i in (4, 5, 6)]
    torch.library.opcheck(ops.fuse.default, (outs, lses))
    torch.library.opcheck(ops.fuse.default, ([outs[0].bfloat16(), outs[1]], [lses[0].T.contiguous().T, lses[1]]))
    new = floats(1, 3, KV_HEADS, SIZE), floats(2, 3, KV_HEADS, SIZE)
    pools = torch.zeros(4, BLOCK, KV_HEADS, SIZE), torch.zeros(4, BLOCK, KV_HEADS, SIZE).bfloat16()[:, :, :, :]
    pools = pools[0], pools[1].float()
    torch.library.opcheck(ops.cache_write.default, (*new, *pools, torch.tensor([3, -1, 40])))


def test_fuse_is_the_formula():
    outs, lses = [floats(i, 5, 3, 8) for i in (1, 2, 3)], [floats(i, 5, 3) for i in (4, 5, 6)]
    lses[1][2] = -torch.inf
    output, lse = ops.fuse(outs, lses)
    weights = torch.softmax(torch.stack(lses).double(), 0)
    close(output, (weights[..., None] * torch.stack(outs).double()).sum(0), 1e-5)
    close(lse, torch.logsumexp(torch.stack(lses).double(), 0), 1e-5)


# ---- torch.compile ----------------------------------------------------------------------


def decode(query, key, value, keys, values, slots, plan):
    """A layer: what it is given has been computed, and so is what it gives."""
    ops.cache_write(key * 0.5, value - 1.0, keys, values, slots)
    output = torch.empty_like(query)
    ops.run(query * 2.0, output, plan, keys, values)
    return output + query


def check_compiled(step, compiled):
    new = floats(7, 2, KV_HEADS, SIZE), floats(8, 2, KV_HEADS, SIZE)
    slots = torch.tensor([(4 + i) * BLOCK + n - 1 for i, n in enumerate(step.lengths)])
    keys, values = step.keys.clone(), step.values.clone()
    for i, n in enumerate(step.lengths):
        keys[4 + i, n - 1], values[4 + i, n - 1] = new[0][i] * 0.5, new[1][i] - 1.0
    output = compiled(step.query, *new, step.keys, step.values, slots, step.number)
    assert torch.equal(step.keys, keys) and torch.equal(step.values, values), "the pools were written in place"
    close(output, step.wanted(keys, values, step.query * 2.0) + step.query.numpy(), 1e-5)


def test_compile_takes_them_whole_and_once():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    step = Step()
    compiled = torch.compile(decode, backend=backend, fullgraph=True)
    for lengths in ((3, 9), (4, 10), (16, 1)):  # the plan is built anew: nothing is compiled for that
        step.build(*lengths)
        check_compiled(step, compiled)
    assert len(graphs) == 1
    called = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert ops.run in called and ops.cache_write in called
    for _ in range(3):
        check_compiled(Step(), compiled)  # other plans, one compilation more at most
    assert len(graphs) == 2


def test_compile_by_inductor():
    """Operators alone: nothing that a C++ compiler would have to build for half a minute."""

    def layer(query, key, value, keys, values, slots, plan):
        ops.cache_write(key, value, keys, values, slots)
        output, lse = torch.empty_like(query), query.new_empty(query.shape[:2])
        ops.run(query, output, plan, keys, values, lse=lse)
        return ops.fuse([output, output], [lse, lse])

    torch._dynamo.reset()
    step = Step()
    new = floats(7, 2, KV_HEADS, SIZE), floats(8, 2, KV_HEADS, SIZE)
    slots = torch.tensor([4 * BLOCK + 2, 5 * BLOCK + 8])
    output, lse = torch.compile(layer, fullgraph=True)(step.query, *new, step.keys, step.values, slots, step.number)
    assert torch.equal(step.keys[4, 2], new[0][0]) and torch.equal(step.values[5, 8], new[1][1])
    close(output, step.wanted(), 1e-5)
    assert lse.isfinite().all()


# ---- numbers ------------------------------------------------------------------------------


def test_a_number_is_one_plans_for_ever():
    first, second = Step(), Step()
    assert torch_ops.number_of(first.plan) == first.number != second.number
    gone = first.number
    del first
    gc.collect()
    output = torch.zeros(2, HEADS, SIZE)
    with pytest.raises(errors.ClosedError, match=f"no plan of number {gone}"):
        ops.run(second.query, output, gone, second.keys, second.values)
    assert torch_ops.number_of(Step().plan) not in (gone, second.number)
    second.plan.close()
    with pytest.raises(errors.ClosedError, match="this Plan is closed"):
        ops.run(second.query, output, second.number, second.keys, second.values)
    with pytest.raises(errors.ClosedError):
        ops.run(second.query, output, -1, second.keys, second.values)


def test_what_is_refused():
    step, output = Step(), torch.zeros(2, HEADS, SIZE)
    with pytest.raises(errors.UnsupportedError, match="query: requires a gradient"):
        ops.run(step.query.requires_grad_(), output, step.number, step.keys, step.values)
    with torch.no_grad():
        ops.run(step.query, output, step.number, step.keys, step.values)
    with pytest.raises(errors.UnsupportedError, match=r"outputs\[0\]: requires a gradient"):
        ops.fuse([floats(1, 2, 2, 8).requires_grad_()], [floats(1, 2, 2)])
    with pytest.raises(errors.BadShapeError, match="outputs: no parts"):
        ops.fuse([], [floats(1, 2, 2)])
    with pytest.raises(errors.BadShapeError, match="output"):
        ops.run(step.query.detach(), torch.zeros(2, HEADS, SIZE + 1), step.number, step.keys, step.values)


def test_the_documented_code():
    """docs/pytorch.md, but for CUDA graphs; tests/gpu runs all of it as it is written."""
    page = (python_package.ROOT / "docs" / "pytorch.md").read_text()
    step, graph, compiled = re.findall(r"```python\n(.*?)```", page, re.S)
    assert "CUDAGraph" in graph and 'torch.device("cuda")' in step
    names = {}
    torch._dynamo.reset()
    exec(step.replace('torch.device("cuda")', 'torch.device("cpu")'), names)
    before = names["output"].clone()
    assert before.count_nonzero() > 0
    exec(compiled.replace("fullgraph=True", 'fullgraph=True, backend="aot_eager"'), names)
    assert torch.equal(names["output"], before)


def test_operators_on_a_cuda_device(pretended):
    step = Step(pretended.device, "f16")
    output = torch.zeros(2, HEADS, SIZE).half()
    pretended.stream = 8
    ops.run(step.query, output, step.number, step.keys, step.values)
    close(output, step.wanted(), 2e-3)
    new = torch.ones(1, KV_HEADS, SIZE).half()
    ops.cache_write(new, new, step.keys, step.values, torch.tensor([5]))
    assert torch.equal(step.keys[0, 5], new[0])
    ops.fuse([output, output], [torch.zeros(2, HEADS), torch.zeros(2, HEADS)])
    assert pretended.calls.attends == pretended.calls.writes == pretended.calls.fusions == 1
    assert pretended.calls.stream == 8
