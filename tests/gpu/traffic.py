"""Batches on a GPU, and their attention in float64 there."""
import torch

from relay_attention_port import Forest, Segment, Span

BLOCK = 16
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
ALLOWED = {"bf16": 4e-3, "f16": 1e-3}  # relative Frobenius
HERE = torch.device("cuda", 0)


def numbers(seed, *shape, dtype=torch.float16):
    return torch.randn(*shape, generator=torch.Generator(HERE).manual_seed(seed), device=HERE).to(dtype)


def off_by(got, wanted):
    assert torch.equal(got.isnan(), wanted.isnan()) and not wanted.isnan().any()
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


class Traffic:
    """Requests in pages, in no order, what is unused full of NaN. prompts: tokens, and the prompt each stands on or
    None; requests: (prompt or None, own tokens, query rows), those of one prompt side by side, children's inside."""

    def __init__(self, device, attention, prompts, requests, seed=0, num_blocks=None):
        self.device, self.attention = device, attention
        self.dtype = DTYPES[attention.kv_dtype]
        needed = sum(-(-n // BLOCK) for n, _ in prompts) + sum(-(-n // BLOCK) for _, n, _ in requests)
        self.num_blocks = num_blocks or needed + 7
        shape = (self.num_blocks, BLOCK, attention.num_kv_heads, attention.head_dim)
        self.keys, self.values = (torch.full(shape, float("nan"), device=HERE, dtype=self.dtype) for _ in range(2))
        self.forest = Forest(device)
        self.set(prompts, requests, seed)

    def _place(self, length):
        blocks = self._free[:-(-length // BLOCK)]
        del self._free[:len(blocks)]
        for pool in (self.keys, self.values):
            new = numbers(self._seed, length, *pool.shape[2:], dtype=self.dtype)
            self._seed += 1
            for i, block in enumerate(blocks):
                part = new[i * BLOCK:(i + 1) * BLOCK]
                pool[block, :len(part)] = part
        return blocks

    def set(self, prompts, requests, seed=0):
        """Another batch in the same pools."""
        self._seed = 1000 * seed
        self._free = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
        self.keys.fill_(float("nan")), self.values.fill_(float("nan"))
        self.prompts = [(self._place(n), n, parent) for n, parent in prompts]
        self.requests = [(prompt, self._place(n), n, rows) for prompt, n, rows in requests]
        starts = [0]
        for *_, rows in self.requests:
            starts.append(starts[-1] + rows)
        self.starts = starts
        a = self.attention
        self.query = numbers(self._seed, starts[-1], a.num_heads, a.head_dim, dtype=self.dtype)
        paths = [self.path(prompt) for prompt, *_ in self.requests]
        segments = []
        for number, (blocks, n, parent) in enumerate(self.prompts):
            members = [i for i, path in enumerate(paths) if number in path]
            segments.append(Segment(Span.paged(n, blocks), members[0], len(members), parent))
        own = [Span.paged(n, blocks + [2**31 - 1] * 3) for _, blocks, n, _ in self.requests]  # wild ids past the end
        self.forest.set(starts, own, segments, block_size=BLOCK, num_blocks=self.num_blocks)

    def path(self, prompt):
        return [] if prompt is None else [*self.path(self.prompts[prompt][2]), prompt]

    def _rows_of(self, pool, request):
        prompt, blocks, n, _ = request
        parts = [pool[self.prompts[i][0]].flatten(0, 1)[:self.prompts[i][1]] for i in self.path(prompt)]
        return torch.cat([*parts, pool[blocks].flatten(0, 1)[:n]]).double()

    def wanted(self, query=None):
        """output [T, Hq, D] and lse [T, Hq], float64."""
        query = self.query if query is None else query
        a, outputs, lses = self.attention, [], []
        for i, request in enumerate(self.requests):
            key, value = (self._rows_of(pool, request).repeat_interleave(a.num_heads // a.num_kv_heads, 1)
                          for pool in (self.keys, self.values))
            q = query[self.starts[i]:self.starts[i + 1]].double()
            scores = torch.einsum("qhd,khd->hqk", q, key) * (a.softmax_scale or a.head_dim**-0.5)
            at = torch.arange(len(key), device=HERE)
            last = at[len(key) - len(q):, None]
            hidden = at > last
            if a.sliding_window:
                hidden = hidden | (at <= last - a.sliding_window)
            scores = scores.masked_fill(hidden, -torch.inf)
            lses.append(scores.logsumexp(-1).T)
            outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value))
        return torch.cat(outputs), torch.cat(lses)

    def run(self, plan, output=None, query=None, **more):
        query = self.query if query is None else query
        output = torch.full_like(query, float("nan")) if output is None else output
        plan.run(query, output, key_pool=self.keys, value_pool=self.values, **more)
        return output


def decode(count, prompt, seed, longest=300):
    """`count` requests of one row under a prompt, of lengths up to `longest`."""
    lengths = torch.randint(1, longest, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [(prompt, n, 1) for n in lengths]


def two_prompts(seed=1, each=6):
    """Prompts of 1000 and 517 tokens, one of 70 under the first, and requests under each and under none."""
    return ([(1000, None), (70, 0), (517, None)],
            [*decode(each, 0, seed), *decode(each, 1, seed + 1), *decode(each, 2, seed + 2),
             *decode(2, None, seed + 3)])


def mixed_chunks():
    """Decoding, drafts of 2-8 rows and pieces of prefill in one batch."""
    return ([(640, None), (96, 0)],
            [(0, 30, 1), (0, 45, 3), (0, 200, 130), (1, 8, 8), (1, 77, 1), (None, 150, 150), (None, 61, 5)])
