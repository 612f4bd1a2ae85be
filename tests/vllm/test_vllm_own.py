"""vLLM's own kernel tests with our functions in place of its CUDA ones: their cases, their comparisons, their tolerances.

An item here is a group of cases that share inputs or shapes. The end of pytest's output counts the cases of every test:
passed, skipped by the test itself, left out and why.
"""
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Callable, NamedTuple

import own_functions as ours
import pytest
import torch
import vllm._custom_ops  # noqa: F401  (first, so that the operators of a vLLM that has them are there)
from own_modules import PROCESSOR, TALLY, free_bytes, grid, load, run_case, stand_ins
from vllm.utils import create_kv_caches_with_random_flash
from vllm.v1.attention.backends import flash_attn as backend

attention = load("tests.kernels.attention.test_flash_attn")
cascade = load("tests.kernels.attention.test_cascade_flash_attn")
merge = load("tests.kernels.attention.test_merge_attn_states")
cache = load("tests.kernels.attention.test_cache")

# ---- stand-ins ------------------------------------------------------------------------------------------------------

FLASH = {"flash_attn_varlen_func": ours.flash_attn_varlen_func, "flash_attn_with_kvcache": ours.flash_attn_with_kvcache,
         "is_fa_version_supported": lambda version: True}  # the version is nothing to our function
theirs = backend.cascade_attention


def cascade_by_their_code(merge_states=ours.merge_attn_states, **arguments):
    """vLLM's own two calls and merge, each of them computed by ours."""
    with stand_ins(backend, flash_attn_varlen_func=ours.flash_attn_varlen_func, merge_attn_states=merge_states):
        theirs(**arguments)


def merged_by_their_reference(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse):
    """In place of the Triton kernel that theirs compares with: the formula in PyTorch, from the same file. It writes to
    its LSEs."""
    result, lse = merge.merge_attn_states_torch(output, prefix_output, prefix_lse.clone(), suffix_output,
                                                suffix_lse.clone(), output_lse)
    output.copy_(result)
    output_lse.copy_(lse)


MERGE = {"merge_attn_states_cuda": ours.merge_attn_states, "merge_attn_states_triton": merged_by_their_reference,
         "range": lambda times: range(min(times, 1))}  # their stopwatch's loops, 2 and 20 times round
_operators = torch.library.Library("_C_cache_ops", "FRAGMENT")


def define_cache_operator():
    """vLLM's wrapper looks it up; theirs also checks its registration. A vLLM with extensions has it, for CUDA."""
    if not hasattr(torch.ops._C_cache_ops, "reshape_and_cache_flash"):
        _operators.define("reshape_and_cache_flash(Tensor key, Tensor value, Tensor! key_cache, Tensor! value_cache, "
                          "Tensor slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()")
        torch.library.register_fake("_C_cache_ops::reshape_and_cache_flash", lambda *arguments: None, lib=_operators)
    _operators.impl("reshape_and_cache_flash", ours.reshape_and_cache_flash, "CPU")


define_cache_operator()


# ---- which cases ----------------------------------------------------------------------------------------------------


def bytes_of(dtype, *shape):
    return torch.Size(shape).numel() * dtype.itemsize


def too_big(needed):
    """A reason, if so much memory is not free."""
    return f"{needed / 2**30:.0f} GiB of memory are not free" if needed * 1.2 > free_bytes() else None


def attention_left_out(case):
    if case["q_dtype"] is not None and case["dtype"] == torch.bfloat16 and case["fa_version"] == 3:
        return "fp8 is not computed"  # the others with a q_dtype are skipped by theirs
    shape = case["num_blocks"], case["block_size"], case["num_heads"][1], case["head_size"]
    return too_big(2 * bytes_of(case["dtype"], *shape))


def cache_left_out(case):
    if case["kv_cache_dtype"] == "fp8":
        return "fp8 is not computed"
    shape = case["num_blocks"] // 2, 2, case["block_size"], case["num_heads"], case["head_size"]
    return too_big(5 * bytes_of(case["dtype"], *shape))  # the pools, three copies of them, what compares them


class Suite(NamedTuple):
    """A test of theirs. names: what stands in; group: what an item's cases have in common; quick: the groups that run
    without --long; left_out: a reason for a case not to run; fixtures: what pytest would give it."""

    module: ModuleType
    test: str
    names: dict
    group: Callable
    quick: set
    left_out: Callable = lambda case: None
    fixtures: dict = {}
    way: tuple = ("", "")  # for the item's name, and in words

    @property
    def function(self):
        return getattr(self.module, self.test)

    @property
    def title(self):
        return title(self.module, self.test) + self.way[1]

    def run(self, case):
        with stand_ins(self.module, **self.names):
            run_case(self.title, self.function, case, self.left_out(case), **self.fixtures)


def title(module, test):
    return f"{module.__name__.rpartition('.')[2]}.py::{test}"


def pool_of(case):
    return case["num_heads"][1], case["head_size"], case["block_size"], case["dtype"], case["num_blocks"]


def shape_of(case):
    return case["num_heads"], case["head_size"], case["dtype"]


QUICK_CASCADE = {((8, 2), 128, torch.bfloat16), ((4, 4), 192, torch.float16)}
VARLEN = Suite(attention, "test_varlen_with_paged_kv", FLASH, pool_of, {(2, 256, 32, torch.float16, 2048)},
               attention_left_out)
KVCACHE = Suite(attention, "test_flash_attn_with_paged_kv", FLASH, pool_of, {(2, 128, 16, torch.bfloat16, 2048)},
                attention_left_out)
RELAYED = Suite(cascade, "test_cascade", {**FLASH, "cascade_attention": ours.cascade_by_relay}, shape_of,
                QUICK_CASCADE, way=("-relay", " (one run of a relay plan)"))
CASCADED = Suite(cascade, "test_cascade", {**FLASH, "cascade_attention": cascade_by_their_code}, shape_of,
                 QUICK_CASCADE, way=("-cascade", " (vLLM's code, each call by ours)"))
MERGED = Suite(cascade, "test_merge_kernel", {"merge_attn_states": ours.merge_attn_states}, shape_of,
               {((8, 2), 128, torch.bfloat16)})
STATES = Suite(merge, "test_merge_attn_states", MERGE, lambda case: (case["head_size"], case["output_dtype"]),
               {(32, torch.float32), (48, torch.bfloat16)})
WRITTEN = Suite(cache, "test_reshape_and_cache_flash", {},
                lambda case: (case["block_size"], case["num_blocks"], case["dtype"]),
                {(8, 1024, torch.float32), (16, 1024, torch.bfloat16)}, cache_left_out,
                {"kv_cache_factory_flashinfer": create_kv_caches_with_random_flash})
SUITES = [VARLEN, KVCACHE, RELAYED, CASCADED, MERGED, STATES, WRITTEN]

# The other tests of these four files.
NOT_OURS = {
    "test_copy_blocks": "the V1 engine copies no blocks", "test_copy_blocks_mla": "the V1 engine copies no blocks",
    "test_swap_blocks": "the V1 engine swaps no blocks", "test_swap_blocks_mla": "the V1 engine swaps no blocks",
    "test_reshape_and_cache": "pages of the V0 engine", "test_fp8_e4m3_conversion": "fp8 is not computed",
    "test_concat_and_cache_mla": "latent attention is not computed",
    "test_concat_and_cache_mla_cpu": "latent attention is not computed",
    "test_gather_cache_mla": "latent attention is not computed"}


# ---- the tests ------------------------------------------------------------------------------------------------------


def text(part):
    return "_".join(map(str, part)) if isinstance(part, tuple) else str(part).removeprefix("torch.")


def items():
    """An item for each group. Those of the attention tests that read the same pool of K/V run one after another."""
    found = []
    for suite in SUITES:
        groups = {}
        for case in grid(suite.function):
            groups.setdefault(suite.group(case), []).append(case)
        assert suite.quick <= groups.keys()
        TALLY.expect(suite.title, sum(map(len, groups.values())))
        found += [(suite.group is pool_of and text(group), suite, group, cases) for group, cases in groups.items()]
    for _, suite, group, cases in sorted(found, key=lambda item: str(item[0])):
        yield pytest.param(suite, cases, id="-".join([suite.test + suite.way[0], *map(text, group)]),
                           marks=[] if group in suite.quick else pytest.mark.long)


@pytest.fixture(scope="module", autouse=True)
def summary(request):
    TALLY.register(request.config)
    yield
    PROCESSOR.pools.clear()


@pytest.mark.parametrize("suite, cases", items())
def test_theirs(suite, cases):
    for case in cases:
        suite.run(case)


def test_none_is_forgotten():
    for module in (attention, cascade, merge, cache):
        for test in (name for name in vars(module) if name.startswith("test_")):
            if not any(suite.module is module and suite.test == test for suite in SUITES):
                size = len(grid(getattr(module, test)))
                TALLY.expect(title(module, test), size)
                TALLY.add(title(module, test), f"left out: {NOT_OURS[test]}", size)


# ---- would they notice? ---------------------------------------------------------------------------------------------


def other_scale(function):
    return lambda **arguments: function(**{**arguments, "softmax_scale": arguments["softmax_scale"] * 1.03})


def other_pages(function):
    def wrong(**arguments):
        table = arguments["block_table"].clone()
        table[0, 0] = table[0, 1]
        return function(**{**arguments, "block_table": table})
    return wrong


def lse_by_tokens(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse=None):
    """Reads their [H, T] memory as [T, H]."""
    prefix_lse, suffix_lse = (lse.reshape(lse.shape[::-1]).T for lse in (prefix_lse, suffix_lse))
    ours.merge_attn_states(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse)


def infinity_is_large(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse=None):
    prefix_lse = prefix_lse.nan_to_num(posinf=100.0)
    ours.merge_attn_states(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse)


def next_slot(key, value, key_cache, value_cache, slots, *rest):
    ours.reshape_and_cache_flash(key, value, key_cache, value_cache, (slots + 1) % key_cache[:, :, 0, 0].numel(), *rest)


@pytest.mark.parametrize("suite, wrong", [
    (VARLEN, {"flash_attn_varlen_func": other_scale(ours.flash_attn_varlen_func)}),
    (VARLEN, {"flash_attn_varlen_func": other_pages(ours.flash_attn_varlen_func)}),
    (KVCACHE, {"flash_attn_with_kvcache": other_scale(ours.flash_attn_with_kvcache)}),
    (KVCACHE, {"flash_attn_with_kvcache": other_pages(ours.flash_attn_with_kvcache)}),
    (RELAYED, {"cascade_attention": other_scale(ours.cascade_by_relay)}),
    (CASCADED, {"cascade_attention": other_scale(cascade_by_their_code)}),
    (CASCADED, {"cascade_attention": partial(cascade_by_their_code, merge_states=lse_by_tokens)}),
    (MERGED, {"merge_attn_states": lse_by_tokens}),
    (STATES, {"merge_attn_states_cuda": lse_by_tokens}), (STATES, {"merge_attn_states_cuda": infinity_is_large}),
    (WRITTEN, {"ops": SimpleNamespace(reshape_and_cache_flash=next_slot)})],
    ids=lambda value: value.test if isinstance(value, Suite) else "")
def test_a_wrong_function_is_noticed(suite, wrong):
    group = next(iter(suite.quick))
    case = next(case for case in grid(suite.function) if suite.group(case) == group and case.get("num_tokens") != 1
                and suite.left_out(case) is None)
    with stand_ins(suite.module, **{**suite.names, **wrong}), pytest.raises(AssertionError, match="not close"):
        suite.function(**case, **suite.fixtures)
