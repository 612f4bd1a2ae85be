"""The binding over the C interface: structures, errors that name the argument, lifetimes, tensors without copies."""
import ctypes
import gc
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import python_package
from python_package import attention, close

import relay_attention_port as relay
from relay_attention_port import c_library, c_structs, errors
from relay_attention_port import Attention, Device, Forest, Plan, PromptCache, Segment, Span

HEADS, KV_HEADS, SIZE, BLOCK = 8, 2, 64, 16
F32 = dict(query_dtype="f32", kv_dtype="f32", output_dtype="f32")


@pytest.fixture(scope="module")
def device():
    return Device(threads=2)


def floats(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cache_of(device, **options):
    usual = dict(num_layers=1, num_kv_heads=KV_HEADS, head_dim=SIZE, kv_dtype="f32")
    return PromptCache(device, **{**usual, **options})


def add_prompt(cache, key, count, seed=0):
    k, v = floats(seed, count, KV_HEADS, SIZE), floats(seed + 1, count, KV_HEADS, SIZE)
    prompt = cache.begin(key, count)
    prompt.write(0, 0, k, v)
    prompt.commit()
    return prompt, k, v


# ---- the structures are the C ones --------------------------------------------------


def c_name(struct):
    return struct.__doc__


STRUCTS = [struct for struct in vars(c_structs).values()
           if isinstance(struct, type) and issubclass(struct, ctypes.Structure) and struct is not ctypes.Structure]


def test_structures_have_the_compilers_layout(tmp_path):
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed to compare with"
    lines = ["#include <stdio.h>", "#include <relay/relay.h>", "int main(void) {"]
    for struct in STRUCTS:
        lines.append(f'printf("{c_name(struct)} %zu\\n", sizeof({c_name(struct)}));')
        for field, *_ in struct._fields_:
            lines.append(f'printf("{c_name(struct)}.{field} %zu %zu\\n", offsetof({c_name(struct)}, {field}), '
                         f'sizeof((({c_name(struct)} *)0)->{field}));')
    (tmp_path / "sizes.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run([compiler, "-I", python_package.ROOT / "include", tmp_path / "sizes.c", "-o", tmp_path / "sizes"],
                   check=True)
    told = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout.splitlines()
    mine = []
    for struct in STRUCTS:
        mine.append(f"{c_name(struct)} {ctypes.sizeof(struct)}")
        for field, *_ in struct._fields_:
            mine.append(f"{c_name(struct)}.{field} {getattr(struct, field).offset} {getattr(struct, field).size}")
    assert told == mine and len(mine) > 100


def test_every_status_has_its_exception():
    lib = c_library.library()
    for number in range(1, 22):
        kind = errors.BY_STATUS[number]
        plain = lib.c.relay_status_name(number).decode().replace("_", "")
        assert kind.__name__.removesuffix("Error").upper() in (plain, {"IOERROR": "FILEOPERATION",
                                                                     "DEVICEERROR": "DEVICEFAULT"}.get(plain))
    assert lib.c.relay_status_name(22) == b"UNKNOWN" and len(errors.BY_STATUS) == 21
    for kind, usual in ((errors.InvalidArgumentError, ValueError), (errors.BadDtypeError, TypeError),
                        (errors.OutOfRangeError, IndexError), (errors.OutOfMemoryError, MemoryError),
                        (errors.NotFoundError, LookupError), (errors.FileOperationError, OSError)):
        assert issubclass(kind, usual) and issubclass(kind, relay.RelayError)
    assert type(errors.error_of(99, "what")) is relay.RelayError


# ---- loading ------------------------------------------------------------------------


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})


def test_import_needs_numpy_alone():
    done = python("import sys, relay_attention_port as r\n"
                  "r.RelayConfig(); r.RelayAttentionIntegration\n"
                  "assert not {'torch', 'vllm', 'triton'} & set(sys.modules), 'too much imported'")
    assert done.returncode == 0, done.stderr


def test_library_that_does_not_load_is_named(tmp_path):
    for content, said in ((None, "No such file"), (b"no library" * 100, "invalid ELF header")):
        path = tmp_path / "librelayattn-here.so"
        if content is not None:
            path.write_bytes(content)
        done = python("import relay_attention_port as r; r.Device()", RELAY_LIBRARY=str(path))
        assert done.returncode == 1 and "LibraryLoadError" in done.stderr
        assert str(path) in done.stderr and said in done.stderr, done.stderr


def compile_fake(tmp_path, version, change):
    """Another library: the real one's names where they matter, with `change` in a size or a name left out."""
    source = ["#include <stdint.h>", f'const char *relay_version(void) {{ return "{version}"; }}']
    names = [*c_library._CALLS, *c_library._DESTROYS, *(n for n in c_library._GETTERS if n != "relay_version")]
    source += [f"int {name}(void) {{ return 0; }}" for name in names if name != change]
    for name, struct in c_structs.DEFAULTS.items():
        size = ctypes.sizeof(struct) + (8 if name == change else 0)
        source.append(f"typedef struct {{ uint32_t size; char rest[{size - 4}]; }} t_{name};")
        source.append(f"t_{name} {name}(void) {{ t_{name} x = {{ {size} }}; return x; }}")
    (tmp_path / "fake.c").write_text("\n".join(source))
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "fake.c", "-o", tmp_path / "fake.so"], check=True)
    return tmp_path / "fake.so"


@pytest.mark.parametrize("version, change, said", [
    ("0.1.7", None, None), ("0.2.0", None, "is version 0.2.0"), ("1.1.0", None, "is version 1.1.0"),
    ("0.1.0", "relay_run_args_defaults", "relay_run_args has"), ("0.1.0", "relay_fuse", "relay_fuse")])
def test_library_of_another_version_is_refused(tmp_path, version, change, said):
    path = compile_fake(tmp_path, version, change)
    if said is None:
        assert c_library.Library(str(path)).version == version
        return
    with pytest.raises(relay.LibraryLoadError, match=said) as raised:
        c_library.Library(str(path))
    assert str(path) in str(raised.value)


# ---- a whole step -------------------------------------------------------------------


def small_step(device, strategy="relay", **more):
    """Two requests under one packed prompt: (plan, arguments of a run, wanted outputs, wanted LSE)."""
    cache = cache_of(device)
    prompt, pk, pv = add_prompt(cache, "system", 100)
    pools = floats(2, 4, BLOCK, KV_HEADS, SIZE), floats(3, 4, BLOCK, KV_HEADS, SIZE)
    tables, query = [[3, 0], [1, 2]], floats(4, 2, HEADS, SIZE)
    forest = Forest(device).set([0, 1, 2], [Span.paged(20, table) for table in tables],
                                [Segment(Span.packed(prompt), 0, 2)], num_blocks=4)
    plan = Plan(device, Attention(HEADS, KV_HEADS, SIZE, **F32), strategy=strategy).build(forest)
    wanted = [attention(query[r:r + 1], *(np.concatenate([p, pool[tables[r]].reshape(-1, KV_HEADS, SIZE)[:20]])
                                          for p, pool in zip((pk, pv), pools))) for r in range(2)]
    run = dict(query=query, output=np.empty_like(query), key_pool=pools[0], value_pool=pools[1],
               lse=np.empty((2, HEADS), np.float32))
    return plan, run, np.concatenate([w[0] for w in wanted]), np.concatenate([w[1] for w in wanted])


@pytest.mark.parametrize("strategy", ["relay", "plain", "auto"])
def test_step_equals_attention(device, strategy):
    plan, run, wanted, lse = small_step(device, strategy)
    relay.run(plan, **run)
    close(run["output"], wanted, 2e-5)
    close(run["lse"], lse, 2e-5)
    info = plan.info()
    assert info.num_requests == 2 and info.relay_segments + info.plain_segments == 1
    if strategy != "auto":
        assert (info.relay_segments, info.shared_tokens_saved) == ((1, 100) if strategy == "relay" else (0, 0))


def test_lse_in_heads_by_tokens_memory(device):
    plan, run, _, lse = small_step(device)
    memory = np.empty((HEADS, 2), np.float32)
    plan.run(**{**run, "lse": memory.T})
    close(memory, lse.T, 2e-5)


def test_forest_found_in_block_tables(device):
    table = np.array([[5, 6, 7, 0], [5, 6, 8, 0], [9, 1, 2, 3], [5, 6, 7, 4]], np.int32)
    forest = Forest(device).find(np.arange(5), [50, 40, 60, 49], table, block_size=16, num_blocks=10)
    shared = {(s.span.length, s.num_requests, tuple(s.span.block_table)) for s in forest.segments()}
    assert shared == {(32, 3, (5, 6))} and forest.num_requests == 4 and sorted(forest.order()) == [0, 1, 2, 3]
    deeper = forest.find(np.arange(5), [50, 40, 60, 49], table, block_size=16, num_blocks=10, min_shared_tokens=16)
    nested = deeper.segments()
    assert [s.parent for s in nested] == [None, 0] and nested[1].span.length == 16 and nested[1].num_requests == 2
    assert forest.own(2).length == 60 and list(forest.own(2).block_table) == [9, 1, 2, 3]
    with pytest.raises(errors.OutOfRangeError, match="7 is not in|block"):
        forest.find(np.arange(5), [50, 40, 60, 49], table, block_size=16, num_blocks=7)
    with pytest.raises(errors.BadShapeError, match="block_table"):
        forest.find(np.arange(5), [50, 40, 65, 49], table, block_size=16, num_blocks=10)


def test_cache_write_and_pages_to_prompt(device):
    pools = np.zeros((3, BLOCK, KV_HEADS, SIZE), np.float16), np.zeros((3, BLOCK, KV_HEADS, SIZE), np.float16)
    k, v = floats(1, 20, KV_HEADS, SIZE), floats(2, 20, KV_HEADS, SIZE)
    slots = np.r_[np.arange(32, 48), np.arange(0, 4)]
    relay.cache_write(device, k, v, *pools, slots)
    for pool, given in zip(pools, (k, v)):
        assert np.array_equal(pool[[2, 0]].reshape(-1, KV_HEADS, SIZE)[:20], given.astype(np.float16))
        assert not pool[1].any() and not pool[0, 4:].any()
    cache = cache_of(device, kv_dtype="f16")
    prompt = cache.begin("p", 20)
    prompt.write_pages(0, *pools, [2, 0])
    prompt.commit()
    back = np.empty_like(k), np.empty_like(v)
    prompt.read(0, 0, *back)
    assert np.array_equal(back[0], k.astype(np.float16)) and np.array_equal(back[1], v.astype(np.float16))
    with pytest.raises(errors.OutOfRangeError, match=r"slot_mapping\[1\]"):
        relay.cache_write(device, k, v, *pools, [0, 48])
    with pytest.raises(errors.BadShapeError, match="block_table: 1 ids"):
        cache.begin("q", 20).write_pages(0, *pools, [2])


# ---- errors -------------------------------------------------------------------------


@pytest.mark.parametrize("change, kind, named", [
    (dict(query=floats(0, 2, 7, SIZE)), errors.BadShapeError, "query"),
    (dict(query=floats(0, 2, HEADS, SIZE).astype(np.float16)), errors.BadDtypeError, "query"),
    (dict(query=floats(0, 2, HEADS, SIZE).astype(np.float64)), errors.BadDtypeError, "query: float64"),
    (dict(query="text"), errors.BadDtypeError, "query: str"),
    (dict(query=None), errors.BadDtypeError, "query: NoneType"),
    (dict(query=floats(0, 2, HEADS, SIZE)[:, :, ::-1]), errors.BadStrideError, "query"),
    (dict(query=floats(0, 1, 1, 2, HEADS, SIZE)), errors.BadShapeError, "5 dimensions"),
    (dict(key_pool=None), errors.NullPointerError, "key_pool"),
    (dict(value_pool=floats(0, 2, BLOCK, KV_HEADS, SIZE)), errors.BadShapeError, "value_pool"),
    (dict(layer=1), errors.OutOfRangeError, "layer"),
    (dict(layer=2**40), errors.InvalidArgumentError, "layer: 1099511627776 does not fit"),
    (dict(layer=0.5), errors.InvalidArgumentError, "layer: 0.5"),
    (dict(lse=np.empty((2, HEADS))), errors.BadDtypeError, "lse"),
    (dict(alibi_slopes=np.ones(3)), errors.BadShapeError, "alibi_slopes"),
    (dict(output=np.broadcast_to(np.float32(0), (2, HEADS, SIZE))), errors.InvalidArgumentError, "is read-only"),
])
def test_run_refuses(device, change, kind, named):
    plan, run, *_ = small_step(device)
    run["output"][:] = 7
    with pytest.raises(kind, match=named):
        plan.run(**{**run, **change})
    assert (run["output"] == 7).all()


def test_output_over_input_is_refused(device):
    plan, run, *_ = small_step(device)
    with pytest.raises(errors.OverlapError, match="output"):
        plan.run(**{**run, "output": run["query"]})


@pytest.mark.parametrize("make, kind, named", [
    (lambda d: Device(threads=-1), errors.InvalidArgumentError, "threads"),
    (lambda d: Device("tpu"), errors.InvalidArgumentError, "kind: 'tpu'"),
    (lambda d: Device(cpu_level="sse9"), errors.InvalidArgumentError, "cpu_level"),
    (lambda d: Plan(d, Attention(8, 3, 64)), errors.InvalidArgumentError, "num_heads"),
    (lambda d: Plan(d, Attention(8, 2, 64, kv_dtype="fp8")), errors.BadDtypeError, "kv_dtype: fp8"),
    (lambda d: Plan(d, Attention(8, 2, 63)), errors.InvalidArgumentError, "head_dim"),
    (lambda d: Plan(d, Attention(8, 2, 64), strategy="best"), errors.InvalidArgumentError, "strategy: 'best'"),
    (lambda d: cache_of(d, head_dim=12), errors.InvalidArgumentError, "head_dim"),
    (lambda d: cache_of(d, max_cached_system_prompts=0), errors.InvalidArgumentError, "max_cached_system_prompts"),
    (lambda d: cache_of(d, prefetch_batch_size=0), errors.InvalidArgumentError, "prefetch_batch_size"),
    (lambda d: cache_of(d, directory="/proc/relay"), errors.FileOperationError, "/proc/relay"),
    (lambda d: cache_of(d).acquire("none"), errors.NotFoundError, "no prompt of key 'none'"),
    (lambda d: cache_of(d).acquire(""), errors.InvalidArgumentError, "key: ''"),
    (lambda d: cache_of(d).acquire("a\0b"), errors.InvalidArgumentError, "without NUL"),
    (lambda d: cache_of(d).begin("k", -1), errors.InvalidArgumentError, "num_tokens"),
    (lambda d: cache_of(d).begin("k", 5).commit(), errors.InvalidArgumentError, "token"),
    (lambda d: Forest(d).set([0, 1], []), errors.BadShapeError, "query_start_loc"),
    (lambda d: Forest(d).set([0, 1], [Span.paged(40, [1, 2])]), errors.BadShapeError, r"own\[0\].block_table"),
    (lambda d: Forest(d).set([0, 1], [Span.paged(4, [2])], num_blocks=2), errors.OutOfRangeError, "own"),
    (lambda d: Forest(d).set([0, 1], [Span.paged(4, [0.5])], num_blocks=2), errors.BadDtypeError, "float64"),
    (lambda d: Forest(d).set([0, 1], [Span.paged(4, [2**33])], num_blocks=2), errors.OutOfRangeError, "does not fit"),
    (lambda d: Forest(d).set([0, 1], [Span("sparse", 4)]), errors.InvalidArgumentError, "layout: 'sparse'"),
    (lambda d: Plan(d, Attention(8, 2, 64)).info(), errors.StalePlanError, "built"),
])
def test_wrong_values_are_named(device, make, kind, named):
    with pytest.raises(kind, match=named):
        make(device)


def test_stale_plan(device):
    plan, run, *_ = small_step(device)
    forest = Forest(device).set([0], [])
    plan.build(forest)
    forest.set([0], [])
    with pytest.raises(errors.StalePlanError):
        plan.run(**run)
    forest.set([0], [])
    plan.build(forest).drop()
    with pytest.raises(errors.StalePlanError, match="not built"):
        plan.run(**run)
    with pytest.raises(errors.StalePlanError, match="not built"):
        Plan(device, Attention(8, 2, 64)).run(**run)


def test_messages_belong_to_their_thread(device):
    """Each of many threads gets the message of its own mistake."""
    wrong = []

    def work(number):
        for _ in range(200):
            try:
                Device(threads=-number)
            except errors.InvalidArgumentError as error:
                if f": -{number} " not in str(error):
                    wrong.append(str(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- lifetimes ----------------------------------------------------------------------


def test_what_a_plan_uses_outlives_its_objects():
    device = Device(threads=2)
    plan, run, wanted, _ = small_step(device)  # cache, prompt and forest are gone when this returns
    device.close()
    gc.collect()
    plan.run(**run)
    close(run["output"], wanted, 2e-5)
    plan.close()
    with pytest.raises(errors.ClosedError, match="this Plan is closed"):
        plan.workspace_bytes


@pytest.mark.parametrize("order", [1, -1])
def test_garbage_with_cycles(caplog, order):
    """Python finalises a cycle in the order in which its objects were made, or in any other."""
    with caplog.at_level(logging.ERROR, "relay_attention_port"):
        for _ in range(20):
            device = Device(threads=1)
            cache = cache_of(device)
            things = [device, cache, add_prompt(cache, "p", 20)[0], Forest(device), Plan(device, Attention(8, 2, 64))]
            forest, plan = things[3:]
            forest.set([0, 1], [Span.contiguous(4, 0)], [Segment(Span.packed(things[2]), 0, 1)])
            plan.__init__(device, Attention(HEADS, KV_HEADS, SIZE, **F32))
            plan.build(forest)
            handles = [thing.handle for thing in things][::order]
            for thing, handle in zip(things, handles):
                thing._handle = handle  # any handle: the cycle holds them all
            alive = [weakref.ref(handle) for handle in handles]
            things.append(things)
            del device, cache, forest, plan, handles, thing, handle, things
            gc.collect()
            assert not any(handle() for handle in alive)
    assert caplog.text == ""


def test_prompt_in_a_forest_stays_pinned(device):
    cache = cache_of(device, max_cached_system_prompts=1)
    prompt, *_ = add_prompt(cache, "a", 10)
    forest = Forest(device).set([0, 1], [Span.contiguous(4, 0)], [Segment(Span.packed(prompt), 0, 1)])
    prompt.release()
    prompt.release()  # again does nothing
    with pytest.raises(errors.CacheFullError):
        cache.begin("b", 10)
    forest.set([0], [])
    add_prompt(cache, "b", 10)[0].release()
    assert cache.find("a") is None and cache.stats().evictions == 1
    with pytest.raises(errors.ClosedError):
        prompt.num_tokens


def test_a_found_segment_moves_to_a_packed_copy(device):
    """The same attention from the copy; the forest keeps it pinned; what was planned before is stale."""
    pools = [floats(seed, 6, BLOCK, KV_HEADS, SIZE) for seed in (1, 2)]
    table, query = np.array([[4, 2, 5, 0], [4, 2, 5, 1]], np.int32), floats(3, 2, HEADS, SIZE)
    lens = [3 * BLOCK + 5, 3 * BLOCK + 9]
    cache = cache_of(device, max_cached_system_prompts=1, num_layers=2)
    forest = Forest(device).find([0, 1, 2], lens, table, block_size=BLOCK, num_blocks=6)
    length, raw = forest.segment_blocks(0)
    assert length == 3 * BLOCK and list(np.frombuffer(raw, np.int32)) == [4, 2, 5]
    plan = Plan(device, Attention(HEADS, KV_HEADS, SIZE, "f32", "f32", "f32"), strategy="relay").build(forest)
    pages, packed = np.empty_like(query), np.empty_like(query)
    plan.run(query, pages, key_pool=pools[0], value_pool=pools[1])
    prompt = cache.begin("copy", 4 * BLOCK)
    for layer in range(2):
        prompt.write_pages(layer, *pools, [4, 2, 5, 3])
    prompt.commit()
    forest.move_segment(0, Span.packed(prompt, length))
    assert forest.segment_blocks(0) == (length, b"") and forest.segments()[0].span.layout == "packed"
    with pytest.raises(errors.StalePlanError):
        plan.run(query, packed, key_pool=pools[0], value_pool=pools[1])
    plan.build(forest).run(query, packed, key_pool=pools[0], value_pool=pools[1], layer=1)
    close(packed, pages, 1e-5)
    prompt.release()
    with pytest.raises(errors.CacheFullError):
        cache.begin("b", 10)
    with pytest.raises(errors.InvalidArgumentError, match="kv.length: 16, but segment 0 has 48"):
        forest.move_segment(0, Span.contiguous(BLOCK, 0))
    with pytest.raises(errors.OutOfRangeError):
        forest.move_segment(1, Span.contiguous(BLOCK, 0))
    with pytest.raises(errors.InvalidArgumentError, match="PAGED"):
        forest.move_segment(0, Span.paged(length, [4, 2, 5]))


def test_prompt_that_is_given_up_is_dropped(device):
    cache = cache_of(device)
    with cache.begin("a", 3) as prompt:
        with pytest.raises(errors.AlreadyExistsError):
            cache.begin("a", 3)
        assert (prompt.key, prompt.num_tokens) == ("a", 3)
    assert cache.find("a") is None and cache.stats().prompts == 0


def test_prefetch_from_a_directory(device, tmp_path):
    cache = cache_of(device, directory=str(tmp_path), model_id="m")
    for number in range(5):
        add_prompt(cache, f"p{number}", 40, number)[0].release()
    assert cache.stats().files_written == 5
    cache.close()
    again = cache_of(device, directory=str(tmp_path), model_id="m", prefetch_batch_size=2)
    again.prefetch([f"p{number}" for number in range(5)] + ["unknown"])
    again.wait()
    stats = again.stats()
    assert (stats.prefetched, stats.prompts) == (5, 5) and stats.prefetch_groups >= 3
    assert again.acquire("p3").num_tokens == 40 and again.stats().memory_hits == 1
    again.forget("p3")
    with pytest.raises(errors.NotFoundError, match="p3"):
        again.forget("p3")


def test_damaged_file_is_logged_as_a_warning(device, tmp_path, caplog):
    cache = cache_of(device, directory=str(tmp_path))
    add_prompt(cache, "p", 40)[0].release()
    cache.close()
    [file] = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = cache_of(device, directory=str(tmp_path))
    with caplog.at_level(logging.WARNING, "relay_attention_port"):
        again.prefetch(["p"])  # on the background thread
        again.wait()
    assert again.find("p") is None and again.stats().rejected_files >= 1
    assert file.name in caplog.text


def test_end_of_program_with_everything_open(tmp_path):
    """Objects in globals, a prefetch in the background, a daemon thread in a run: the program ends well."""
    done = python(f"""
import sys; sys.path.insert(0, {str(python_package.ROOT / "tests")!r})
import threading, time, test_python_binding as t
from relay_attention_port import Device
device = Device(threads=2)
cache = t.cache_of(device, directory={str(tmp_path)!r})
for n in range(6): t.add_prompt(cache, f"p{{n}}", 2000, n)[0].release()
cache.close()
cache = t.cache_of(device, directory={str(tmp_path)!r})
plan, run, *_ = t.small_step(device)
cache.prefetch([f"p{{n}}" for n in range(6)])
print("done")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_child_of_fork_leaves_the_parents_objects_alone(tmp_path):
    done = python(f"""
import os, sys; sys.path.insert(0, {str(python_package.ROOT / "tests")!r})
import test_python_binding as t
from relay_attention_port import Device
device = Device(threads=1)
cache = t.cache_of(device, directory={str(tmp_path)!r})
prompt = t.add_prompt(cache, "p", 20)[0]
cache.prefetch(["q"]); cache.wait()  # there is a background thread now, which the child will not have
if os.fork() == 0:
    sys.exit(0)
assert os.wait()[1] == 0
print(cache.acquire("p").num_tokens)
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "20\n", "")


# ---- tensors ------------------------------------------------------------------------


class OnlyDLPack:
    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **more):
        return self.tensor.__dlpack__(**more)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_views_do_not_copy():
    torch = pytest.importorskip("torch")
    array = floats(0, 6, 8, 10)
    for given, address, strides in (
            (array, array.ctypes.data, (80, 10, 1)), (array[1::2, ::3], array[1].ctypes.data, (160, 30, 1)),
            (torch.from_numpy(array)[:, 2:], array[:, 2:].ctypes.data, (80, 10, 1)),
            (torch.from_numpy(array).transpose(0, 1), array.ctypes.data, (10, 80, 1)),
            (OnlyDLPack(array[2:4]), array[2].ctypes.data, (80, 10, 1)),
            (OnlyDLPack(torch.from_numpy(array)[:, 1]), array[0, 1].ctypes.data, (80, 1))):
        view = relay.tensor_view(given)
        assert (view.c.data, view.strides, view.dtype) == (address, strides, "f32")
        assert view.shape == tuple(getattr(given, "shape", view.shape)) and relay.tensor_view(view) is view
    bf16 = torch.ones(2, 3, dtype=torch.bfloat16)
    assert relay.tensor_view(bf16).dtype == relay.tensor_view(OnlyDLPack(bf16)).dtype == "bf16"
    assert relay.tensor_view(np.zeros(3, np.uint16), dtype="bf16").dtype == "bf16"
    assert (relay.tensor_view(bf16).array() == 0x3F80).all()
    for bad in (np.zeros(3, np.uint16), np.zeros(3, np.int32), torch.zeros(3, dtype=torch.int64),
                OnlyDLPack(torch.zeros(3, dtype=torch.float64)), np.zeros(3, ">f4"), [1.0, 2.0]):
        with pytest.raises(errors.BadDtypeError, match="^what: "):
            relay.tensor_view(bad, "what")
    odd = np.zeros(20, np.uint8)[:18].view([("a", "<f4"), ("b", "<u2")])["a"]
    with pytest.raises(errors.BadStrideError, match="no multiples"):
        relay.tensor_view(odd, "what")


def test_a_dlpack_capsule_is_given_back():
    """A borrowed capsule keeps the memory, and frees it once."""
    released = []

    class Noted(np.ndarray):
        def __del__(self):
            released.append(1)

    array = np.zeros((2, 3), np.float32).view(Noted)
    view = relay.tensor_view(OnlyDLPack(array))
    del array
    gc.collect()
    assert not released and (view.array() == 0).all()
    del view
    gc.collect()
    assert released == [1]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("float16", 2e-3), ("bfloat16", 2e-2)])
def test_torch_tensors_of_each_dtype(device, dtype, tolerance):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    key, value = (torch.from_numpy(floats(n, 50, KV_HEADS, SIZE)).to(kind) for n in (1, 2))
    query = torch.from_numpy(floats(3, HEADS, 5, SIZE)).to(kind).transpose(0, 1)  # strided
    plan = Plan(device, Attention(HEADS, KV_HEADS, SIZE, kind, kind, kind))
    plan.build(Forest(device).set([0, 5], [Span.contiguous(50, 0)]))
    output, lse = torch.empty(5, HEADS, SIZE, dtype=kind), torch.empty(5, HEADS)
    plan.run(query, output, contiguous=[(key, value)], lse=lse)
    wanted, wanted_lse = attention(query.float().numpy(), key.float().numpy(), value.float().numpy())
    close(output.float().numpy(), wanted, tolerance)
    close(lse.numpy(), wanted_lse, tolerance)


def test_empty_batch(device):
    plan = Plan(device, Attention(HEADS, KV_HEADS, SIZE, **F32)).build(Forest(device).set([0], []))
    plan.run(np.empty((0, HEADS, SIZE), np.float32), np.empty((0, HEADS, SIZE), np.float32))
    assert plan.info().num_rows == 0


def test_the_gil_is_free_during_a_run(device):
    """Another thread counts while a long run goes on."""
    tokens = 6000
    key = floats(0, tokens, KV_HEADS, SIZE)
    plan = Plan(device, Attention(HEADS, KV_HEADS, SIZE, **F32)).build(
        Forest(device).set([0, tokens], [Span.contiguous(tokens, 0)]))
    query, counted, stop = floats(1, tokens, HEADS, SIZE), [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1
            time.sleep(1e-4)

    thread = threading.Thread(target=count)
    output = np.empty_like(query)
    old = sys.getswitchinterval()
    sys.setswitchinterval(100)  # no thread gives the GIL away unless it is asked to release it
    try:
        thread.start()
        before = counted[0]
        plan.run(query, output, contiguous=[(key, key)])
        during = counted[0] - before
    finally:
        stop.set()
        sys.setswitchinterval(old)
        thread.join()
    assert during > 20
