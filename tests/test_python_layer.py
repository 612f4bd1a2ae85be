"""RelayAttentionIntegration: prefill then decode equals full attention, and every setting acts."""
import gc
import itertools
import logging
import threading
import weakref

import numpy as np
import pytest
from python_package import attention, close

from relay_attention_port import RelayAttentionIntegration, RelayConfig, RelayInfo, RelayMetadata, errors

ON = dict(enabled=True)


class Sequence:
    """One request's tokens, all known in advance, so that any call can be compared with attention over what it saw."""

    def __init__(self, seed, system, length, heads, kv_heads, size):
        rng = np.random.default_rng(seed)
        self.query = rng.standard_normal((length, heads, size)).astype(np.float32)
        self.key, self.value = (rng.standard_normal((length, kv_heads, size)).astype(np.float32) for _ in range(2))
        if system is not None:
            self.key[:len(system[0])], self.value[:len(system[0])] = system

    def given(self, begin, end):
        return self.query[begin:end], self.key[begin:end], self.value[begin:end]

    def wanted(self, begin, end, **more):
        return attention(self.query[begin:end], self.key[:end], self.value[:end], **more)[0]


def system_of(length, kv_heads, size, seed=99):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((length, kv_heads, size)).astype(np.float32) for _ in range(2))


def layer_of(heads=4, kv_heads=2, size=32, config=None, **kw):
    integration = RelayAttentionIntegration(RelayConfig(**{**ON, **(config or {})}))
    return integration, integration.create_attention_layer(heads, size, size**-0.5, kv_heads, **kw)


# ---- right answers ------------------------------------------------------------------


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 2), (8, 1)])
@pytest.mark.parametrize("system, user", [(0, 5), (1, 1), (10, 20), (16, 16), (70, 3), (33, 0)])
@pytest.mark.parametrize("strategy", ["relay", "plain", "auto"])
def test_prefill_then_decode(heads, kv_heads, system, user, strategy):
    _, layer = layer_of(heads, kv_heads, strategy=strategy)
    sequence = Sequence(1, None, system + user + 21, heads, kv_heads, 32)
    metadata = RelayMetadata(RelayInfo(system))
    start = system + user
    close(layer.forward(*sequence.given(0, start), attn_metadata=metadata), sequence.wanted(0, start), 1e-5)
    for begin, end in ((start, start + 1), (start + 1, start + 2), (start + 2, start + 20), (start + 20, start + 21)):
        close(layer.forward(*sequence.given(begin, end), attn_metadata=metadata), sequence.wanted(begin, end), 1e-5)
    assert layer.num_tokens(metadata) == start + 21
    assert layer.stats().relayed == ((4 + (user > 0)) if strategy == "relay" and system else 0)


@pytest.mark.parametrize("features", [
    dict(sliding_window=9), dict(sliding_window=40), dict(logits_soft_cap=2.0), dict(sinks=[0.5, -1.0, 3.0, 0.0]),
    dict(alibi_slopes=[0.5, 0.25, 0.125, 0.0625]), dict(sliding_window=17, alibi_slopes=[1.0, 0.5, 0.1, 0.0])])
@pytest.mark.parametrize("enabled", [True, False])
def test_features_hold_across_the_split(features, enabled):
    _, layer = layer_of(config=dict(enabled=enabled), strategy="relay", **features)
    more = dict(window=features.get("sliding_window", 0), soft_cap=features.get("logits_soft_cap", 0),
                slopes=features.get("alibi_slopes"), sinks=features.get("sinks"))
    sequence = Sequence(2, None, 60, 4, 2, 32)
    metadata = RelayMetadata(RelayInfo(25))
    for begin, end in ((0, 50), (50, 51), (51, 60)):
        close(layer.forward(*sequence.given(begin, end), attn_metadata=metadata), sequence.wanted(begin, end, **more),
              1e-5)


def batch(sequences, spans):
    return [np.concatenate(parts) for parts in zip(*(s.given(*span) for s, span in zip(sequences, spans)))]


@pytest.mark.parametrize("strategy", ["relay", "auto"])
def test_batch_of_different_prompts(strategy):
    """Two system prompts, requests without any, of different lengths, in any order; rows of any number."""
    _, layer = layer_of(strategy=strategy)
    systems = {"a": system_of(40, 2, 32, 5), "b": system_of(17, 2, 32, 6), None: None}
    names = ["a", None, "b", "a", "b", None, "a"]
    sequences, requests, at = [], [], []
    for number, name in enumerate(names):
        length = 0 if name is None else len(systems[name][0])
        sequences.append(Sequence(number, systems[name], length + 60, 4, 2, 32))
        requests.append(RelayMetadata(None if name is None else RelayInfo(length)))
        requests[-1].set_cache_keys(name, f"user {number}")
        at.append(length + 2 + 3 * number)
        close(layer.forward(*sequences[-1].given(0, at[-1]), attn_metadata=requests[-1]),
              sequences[-1].wanted(0, at[-1]), 1e-5)
    assert layer.stats().prompts == 2 and layer.stats().memory_hits == 3
    for counts in ([1] * 7, [1, 4, 0, 2, 1, 1, 3], [1] * 7):
        spans = [(begin, begin + count) for begin, count in zip(at, counts)]
        out = layer.forward(*batch(sequences, spans), attn_metadata=requests, query_lens=counts)
        close(out, np.concatenate([s.wanted(*span) for s, span in zip(sequences, spans)]), 1e-5)
        at = [end for _, end in spans]
    if strategy == "relay":
        assert layer.stats().tokens_saved > 0


@pytest.mark.parametrize("flat", [False, True])
def test_batch_under_one_metadata(flat):
    """[batch, tokens, heads, size], or heads and size in one: every row is a request of the same system prompt."""
    integration, layer = layer_of(strategy="relay")
    system = system_of(30, 2, 32)
    sequences = [Sequence(n, system, 50, 4, 2, 32) for n in range(3)]
    metadata = integration.create_relay_metadata(30)
    for begin, end in ((0, 40), (40, 41), (41, 50)):
        given = [np.stack(parts) for parts in zip(*(s.given(begin, end) for s in sequences))]
        if flat:
            given = [x.reshape(*x.shape[:2], -1) for x in given]
        out = layer.forward(*given, attn_metadata=metadata)
        assert out.shape == given[0].shape
        close(out.reshape(3, end - begin, 4, 32), np.stack([s.wanted(begin, end) for s in sequences]), 1e-5)
    assert layer.stats().relayed == 3 and layer.stats().requests == 3


def test_batch_whose_system_tokens_differ_is_refused():
    _, layer = layer_of()
    given = [np.stack(parts) for parts in zip(*(Sequence(n, None, 40, 4, 2, 32).given(0, 40) for n in range(2)))]
    with pytest.raises(errors.InvalidArgumentError, match="key: the system tokens of row 1"):
        layer.forward(*given, attn_metadata=RelayMetadata(RelayInfo(30)))
    assert layer.stats().requests == 0


def test_without_metadata_nothing_is_kept():
    _, layer = layer_of()
    sequence = Sequence(0, None, 40, 4, 2, 32)
    close(layer.forward(*sequence.given(0, 40)), sequence.wanted(0, 40), 1e-5)
    query, key, value = sequence.given(0, 40)
    close(layer(query[-3:], key, value), sequence.wanted(37, 40), 1e-5)  # the last queries of all keys
    assert layer.stats().requests == 0 and layer.stats().page_bytes == 0


def test_queries_of_the_user_alone():
    _, layer = layer_of(strategy="relay")
    sequence = Sequence(0, None, 41, 4, 2, 32)
    metadata = RelayMetadata(RelayInfo(30))
    query, key, value = sequence.given(0, 40)
    close(layer.forward(query[-10:], key, value, metadata), sequence.wanted(30, 40), 1e-5)
    close(layer.forward(*sequence.given(40, 41), metadata), sequence.wanted(40, 41), 1e-5)
    other = RelayMetadata(RelayInfo(30))
    close(layer.forward(query[-15:], key, value, other), sequence.wanted(25, 40), 1e-5)  # and some of the system's


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 3e-3), ("bfloat16", 3e-2)])
def test_torch(dtype, tolerance):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    _, layer = layer_of(strategy="relay")
    tensors = [torch.from_numpy(x).to(kind) for x in Sequence(3, None, 60, 4, 2, 32).given(0, 60)]
    exact = [x.float().numpy() for x in tensors]
    metadata, output = RelayMetadata(RelayInfo(20)), torch.empty(10, 4 * 32, dtype=kind)
    for begin, end in ((0, 45), (45, 50), (50, 60)):
        query, key, value = (x[begin:end] for x in tensors)
        query = query.transpose(0, 1).contiguous().transpose(0, 1)  # strided
        if end == 60:
            out = layer.forward(query.reshape(10, -1), key.reshape(10, -1), value, metadata, output)
            assert out is output
        else:
            out = layer.forward(query, key, value, metadata)
            assert out.dtype == kind and out.shape == query.shape
        wanted = attention(exact[0][begin:end], exact[1][:end], exact[2][:end])[0]
        close(out.float().numpy().reshape(wanted.shape), wanted, tolerance)
    with pytest.raises(errors.UnsupportedError, match="key: requires a gradient"):
        layer.forward(query, key.requires_grad_(), value, metadata)


def test_strides_that_are_no_rows_are_copied():
    _, layer = layer_of()
    sequences = [Sequence(n, None, 12, 4, 2, 32) for n in range(3)]
    given = [np.stack(parts).transpose(1, 0, 2, 3).copy().transpose(1, 0, 2, 3)[:, ::-1][:, ::-1]
             for parts in zip(*(s.given(0, 12) for s in sequences))]
    close(layer.forward(*given), np.stack([s.wanted(0, 12) for s in sequences]), 1e-5)


# ---- settings act -------------------------------------------------------------------


def prefill(layer, system, key, info=None, user=None, seed=0):
    metadata = RelayMetadata(info or RelayInfo(len(system[0])))
    metadata.set_cache_keys(key, user)
    sequence = Sequence(seed, system, len(system[0]) + 4, 4, 2, 32)
    close(layer.forward(*sequence.given(0, len(sequence.key)), metadata), sequence.wanted(0, len(sequence.key)), 1e-5)
    return metadata


def test_system_key_finds_the_prompt():
    _, layer = layer_of(strategy="relay")
    system = system_of(30, 2, 32)
    kept = [prefill(layer, system, "k", seed=n) for n in range(3)]
    stats = layer.stats()
    assert (stats.prompts, stats.misses, stats.memory_hits) == (1, 1, 2)
    # another request brings its own tokens only
    sequence, metadata = Sequence(7, system, 36, 4, 2, 32), RelayMetadata(RelayInfo(30))
    metadata.set_cache_keys("k", "u")
    close(layer.forward(*sequence.given(30, 36), metadata, system_included=False), sequence.wanted(30, 36), 1e-5)
    unknown = RelayMetadata(RelayInfo(30))
    unknown.set_cache_keys("other", "v")
    with pytest.raises(errors.NotFoundError, match="system_cache_key: 'other'"):
        layer.forward(*sequence.given(30, 36), unknown, system_included=False)
    wrong = RelayMetadata(RelayInfo(29))
    wrong.set_cache_keys("k", "w")
    with pytest.raises(errors.InvalidArgumentError, match="system_length: 29, but the prompt of system key 'k' has 30"):
        layer.forward(*sequence.given(0, 36), wrong)
    del kept


def test_user_key_goes_on_with_the_request():
    _, layer = layer_of()
    sequence = Sequence(1, None, 20, 4, 2, 32)
    for begin, end in ((0, 15), (15, 18), (18, 20)):
        metadata = RelayMetadata(RelayInfo(10))  # another object each time
        metadata.set_cache_keys("s", "u")
        close(layer.forward(*sequence.given(begin, end), metadata), sequence.wanted(begin, end), 1e-5)
    assert layer.stats().requests == 1
    other = RelayMetadata(RelayInfo(9))
    other.set_cache_keys("s", "u")
    with pytest.raises(errors.InvalidArgumentError, match="system_length: 9, but this request began with 10"):
        layer.forward(*sequence.given(0, 1), other)
    other = RelayMetadata(RelayInfo(10))
    other.set_cache_keys("t", "u")
    with pytest.raises(errors.InvalidArgumentError, match="system_cache_key: 't'"):
        layer.forward(*sequence.given(0, 1), other)
    with pytest.raises(errors.InvalidArgumentError, match="the same request twice"):
        layer.forward(*sequence.given(0, 2), [metadata, metadata])


@pytest.mark.parametrize("where", ["config", "info", "layer of infos"])
def test_disabled_is_plain_attention(where):
    _, layer = layer_of(config=dict(enabled=where != "config"), strategy="relay")
    info = RelayInfo(30, enabled=where == "config")
    requests = [prefill(layer, system_of(30, 2, 32), "k", info, seed=n) for n in range(3)]
    sequence = Sequence(9, None, 3, 4, 2, 32)
    layer.forward(*sequence.given(0, 3), requests)
    stats = layer.stats()
    assert (stats.relayed, stats.plain, stats.prompts, stats.misses, stats.tokens_saved) == (0, 4, 0, 0, 0)
    assert [layer.num_tokens(request) for request in requests] == [35] * 3


@pytest.mark.parametrize("where", ["config", "info"])
def test_turned_off_and_on_again(where):
    """A request that began with the relay goes on plainly, and back."""
    integration, layer = layer_of(strategy="relay")
    sequence, metadata = Sequence(1, None, 60, 4, 2, 32), RelayMetadata(RelayInfo(30))
    at, relayed = 0, []
    for end, enabled in ((40, True), (41, False), (45, False), (60, True)):
        (integration.config if where == "config" else metadata.relay_info).enabled = enabled
        close(layer.forward(*sequence.given(at, end), metadata), sequence.wanted(at, end), 1e-5)
        at, relayed = end, [*relayed, layer.stats().relayed]
    assert relayed == [1, 1, 1, 2]


def test_plain_and_relay_give_the_same_text():
    """The same requests with the relay on and off: equal to the last digits."""
    outs = []
    for enabled in (True, False):
        _, layer = layer_of(config=dict(enabled=enabled), strategy="relay")
        requests = [prefill(layer, system_of(100, 2, 32), "k", seed=n) for n in range(4)]
        outs.append(layer.forward(*Sequence(5, None, 4, 4, 2, 32).given(0, 4), requests))
        assert (layer.stats().relayed > 0) == enabled
    close(outs[0], outs[1], 1e-5)


@pytest.mark.parametrize("config, info, left", [(dict(max_cached_system_prompts=2), dict(), 2),
                                                (dict(), dict(max_cached_system_prompts=3), 3), (dict(), dict(), 5),
                                                (dict(cache_system_prompts=False), dict(cache_system_prompts=False), 0),
                                                (dict(cache_system_prompts=False), dict(), 0),
                                                (dict(), dict(cache_system_prompts=False), 0)])
def test_bounds_of_the_cache(config, info, left):
    _, layer = layer_of(config=config, strategy="relay")
    for number in range(5):
        metadata = prefill(layer, system_of(20, 2, 32, number), f"k{number}", RelayInfo(20, **info))
        layer.release(metadata)
    assert layer.stats().prompts == left
    again = [prefill(layer, system_of(20, 2, 32, number), f"k{number}", RelayInfo(20, **info)) for number in (4, 3)]
    assert layer.stats().memory_hits == min(left, 2)
    del again


def test_more_prompts_in_use_than_the_bound(caplog):
    """Requests are served all the same; their prompts are just not kept."""
    _, layer = layer_of(config=dict(max_cached_system_prompts=2), strategy="relay")
    with caplog.at_level(logging.WARNING, "relay_attention_port"):
        requests = [prefill(layer, system_of(20, 2, 32, n), f"k{n}") for n in range(4)]
    assert layer.stats().prompts == 2 and caplog.text.count("is not kept") == 2
    assert [layer.num_tokens(r) for r in requests] == [24] * 4


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("enable", [True, False])
def test_prefetch(tmp_path, batch_size, enable):
    keys = [f"k{n}" for n in range(5)]
    for step in range(2):
        config = RelayConfig(enabled=True, enable_prefetch=enable, prefetch_batch_size=batch_size)
        integration = RelayAttentionIntegration(config, cache_dir=str(tmp_path), model_id="m")
        layers = [integration.create_attention_layer(4, 32, 0.2, 2, strategy="relay") for _ in range(2)]
        if step == 0:  # every layer writes its own files
            for layer, (number, key) in itertools.product(layers, enumerate(keys)):
                prefill_scale(layer, number, key)
            continue
        integration.prefetch(keys)  # before the first call: remembered until the dtype is known
        for layer in layers:
            layer.prompts.open("f32")
            layer.prompts.wait()
        stats = integration.stats()
        assert stats.prefetched == (10 if enable else 0)
        assert stats.prefetch_groups == (2 * -(-5 // batch_size) if enable else 0)
        prefill_scale(layers[0], 3, "k3")
        stats = integration.stats()
        assert (stats.memory_hits, stats.file_hits, stats.misses) == ((1, 0, 0) if enable else (0, 1, 0))


def test_metadata_announces_its_prompt(tmp_path):
    """While the first layer computes, the others read the prompt's file."""
    for step in range(2):
        integration = RelayAttentionIntegration(RelayConfig(enabled=True), cache_dir=str(tmp_path))
        layer = integration.create_attention_layer(4, 32, 0.2, 2)
        layer.prompts.open("f32")
        metadata = integration.create_relay_metadata(20, "k0")
        layer.prompts.wait()
        assert layer.stats().prefetched == step
        sequence = Sequence(1, system_of(20, 2, 32, 0), 24, 4, 2, 32)
        close(layer.forward(*sequence.given(0, 24), metadata), sequence.wanted(0, 24, scale=0.2), 1e-5)


def prefill_scale(layer, number, key):
    sequence = Sequence(1, system_of(20, 2, 32, number), 24, 4, 2, 32)
    metadata = RelayMetadata(RelayInfo(20))
    metadata.set_cache_keys(key)
    close(layer.forward(*sequence.given(0, 24), metadata), sequence.wanted(0, 24, scale=0.2), 1e-5)


# ---- what is kept -------------------------------------------------------------------


def test_requests_go_and_memory_stays_flat():
    integration, layer = layer_of()
    system = system_of(30, 2, 32)
    sizes = set()
    for number in range(60):
        metadata = prefill(layer, system, "k", user=f"u{number}" if number % 2 else None)
        if number % 2:
            integration.release(metadata)
            assert layer.num_tokens(metadata) == 0
        del metadata  # a request without user key goes with its object
        assert layer.stats().requests == 0
        sizes.add(layer.stats().page_bytes)
    assert len(sizes) == 1 and layer.stats().prompts == 1


def test_layer_is_not_kept_by_its_metadata():
    integration, layer = layer_of()
    metadata = prefill(layer, system_of(10, 2, 32), "k")
    alive = weakref.ref(layer)
    del layer, integration
    gc.collect()
    assert alive() is None
    del metadata


def test_a_failed_call_changes_nothing():
    _, layer = layer_of(strategy="relay")
    sequence = Sequence(1, None, 60, 4, 2, 32)
    metadata, new = RelayMetadata(RelayInfo(20)), RelayMetadata(RelayInfo(0))
    layer.forward(*sequence.given(0, 30), metadata)
    before = layer.stats()
    query, key, value = sequence.given(30, 50)
    read_only = np.broadcast_to(np.float32(0), query.shape)
    for change in (dict(output=read_only), dict(key=key[:, :1]), dict(value=value.astype(np.float16)),
                   dict(query=query.astype(np.float64)), dict(key=key[:5], value=value[:5]),
                   dict(query_lens=[20]), dict(attn_metadata=[metadata, new], query_lens=[3, 4]),
                   dict(key=key.astype(np.float16), value=value.astype(np.float16)),
                   dict(output=query), dict(attn_metadata="no metadata")):
        with pytest.raises(errors.RelayError):
            layer.forward(**{**dict(query=query, key=key, value=value, attn_metadata=metadata), **change})
        assert layer.stats() == before and layer.num_tokens(metadata) == 30, change
    # the pages that the failed calls took are free again, and nobody else's
    other = Sequence(2, None, 60, 4, 2, 32)
    close(layer.forward(*other.given(0, 55), new), other.wanted(0, 55), 1e-5)
    close(layer.forward(query, key, value, metadata), sequence.wanted(30, 50), 1e-5)
    close(layer.forward(*other.given(55, 60), new), other.wanted(55, 60), 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_random_traffic(dtype):
    """Requests come, go on and go, under three prompts or none, in batches of any make: every row is right."""
    rng = np.random.default_rng(4)
    _, layer = layer_of(config=dict(max_cached_system_prompts=2), block_size=4, strategy="auto")
    systems = [system_of(length, 2, 32, 50 + length) for length in (7, 40, 90)] + [None]
    live, done = [], 0
    for number in range(150):
        if len(live) < 8 and rng.random() < 0.6:
            system = systems[rng.integers(4)]
            length = 0 if system is None else len(system[0])
            metadata = RelayMetadata(None if system is None else RelayInfo(length, enabled=bool(rng.random() < 0.8)))
            metadata.set_cache_keys(None if system is None else f"s{length}", f"u{number}" if number % 2 else None)
            live.append([metadata, Sequence(number, system, length + 60, 4, 2, 32), 0, length])
        chosen = [entry for entry in live if rng.random() < 0.7]
        spans = [(at, min(len(sequence.key), max(least, at) + int(rng.integers(0, 12))))
                 for _, sequence, at, least in chosen]
        given = [x.astype(dtype) for x in batch([entry[1] for entry in chosen], spans)] if chosen else []
        if not given or not any(end for _, end in spans):
            continue
        out = layer.forward(*given, [entry[0] for entry in chosen], query_lens=[end - begin for begin, end in spans])
        wanted = [entry[1].wanted(*span) for entry, span in zip(chosen, spans) if span[1] > 0]
        close(out, np.concatenate(wanted), 1e-5 if dtype == "float32" else 2e-2)
        for entry, span in zip(chosen, spans):
            entry[2], entry[3] = span[1], 0
        for entry in [entry for entry in live if entry[2] == len(entry[1].key) or rng.random() < 0.05]:
            if entry[0].user_cache_key is not None:
                layer.release(entry[0])
            live.remove(entry)
            done += 1
        del chosen, entry
    assert done > 10 and layer.stats().forwards > 100
    assert sum(at > 0 for _, _, at, _ in live) <= layer.stats().requests <= len(live)


def test_threads_share_a_layer():
    _, layer = layer_of(strategy="relay")
    system, failed = system_of(50, 2, 32), []

    def serve(number):
        try:
            for turn in range(5):
                sequence, metadata = Sequence(10 * number + turn, system, 70, 4, 2, 32), RelayMetadata(RelayInfo(50))
                metadata.set_cache_keys("k", f"{number}/{turn}")
                for begin, end in ((0, 60), (60, 61), (61, 70)):
                    close(layer.forward(*sequence.given(begin, end), metadata), sequence.wanted(begin, end), 1e-5)
                layer.release(metadata)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and layer.stats().requests == 0 and layer.stats().misses == 1


# ---- refused, and said --------------------------------------------------------------


@pytest.mark.parametrize("kw, kind, named", [
    (dict(num_kv_heads=3), errors.InvalidArgumentError, "num_heads: 4, expected a multiple of num_kv_heads"),
    (dict(num_heads=0), errors.InvalidArgumentError, "num_heads"),
    (dict(head_size=33), errors.InvalidArgumentError, "head_dim"),
    (dict(scale=0.0), errors.InvalidArgumentError, "scale: 0.0"),
    (dict(scale=float("nan")), errors.InvalidArgumentError, "scale: nan"),
    (dict(kv_cache_dtype="fp8"), errors.UnsupportedError, "kv_cache_dtype: 'fp8'"),
    (dict(blocksparse_params={}), errors.UnsupportedError, "blocksparse_params"),
    (dict(attn_type="encoder"), errors.UnsupportedError, "attn_type: 'encoder'"),
    (dict(alibi_slopes=[1.0]), errors.BadShapeError, "alibi_slopes"),
    (dict(sliding_window=-1), errors.InvalidArgumentError, "sliding_window"),
    (dict(block_size=0), errors.InvalidArgumentError, "block_size"),
    (dict(strategy="fast"), errors.InvalidArgumentError, "strategy: 'fast'"),
    (dict(dropout=0.1), TypeError, "dropout"),
])
def test_layer_refuses_what_it_does_not_compute(kw, kind, named):
    integration = RelayAttentionIntegration(RelayConfig(enabled=True))
    with pytest.raises(kind, match=named):
        integration.create_attention_layer(**{**dict(num_heads=4, head_size=32, scale=0.2, num_kv_heads=2), **kw})
    assert integration.layers == []


def test_system_length_beyond_the_keys():
    _, layer = layer_of()
    with pytest.raises(errors.InvalidArgumentError, match="system_length: 11, but there are only 10 keys"):
        layer.forward(*Sequence(1, None, 10, 4, 2, 32).given(0, 10), RelayMetadata(RelayInfo(11)))


def test_debug_log_says_what_the_relay_does(caplog):
    with caplog.at_level(logging.DEBUG, "relay_attention_port"):
        integration, layer = layer_of(strategy="relay")
        system = system_of(30, 2, 32)
        requests = [prefill(layer, system, "handbook", seed=n) for n in range(2)]
        layer.forward(*Sequence(5, None, 2, 4, 2, 32).given(0, 2), requests)
    for said in ("layer-0: 4 query heads over 2 of size 32, relay on", "'handbook': packed, 30 tokens",
                 "'handbook': found in the cache", "2 rows of 2 requests; 1 system prompts read once",
                 "30 tokens not read again"):
        assert said in caplog.text, said
    caplog.clear()
    with caplog.at_level(logging.INFO, "relay_attention_port"):
        RelayAttentionIntegration()
    assert "enabled is False: plain attention" in caplog.text
