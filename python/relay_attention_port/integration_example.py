"""The documented integration, and an example of it: requests under one system prompt, prefilled and decoded.

    python -m relay_attention_port.integration_example          # needs numpy alone
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Iterable, Optional

import numpy as np

from relay_attention_port.devices import Device, default_device
from relay_attention_port.relay_config import RelayConfig, RelayMetadata
from relay_attention_port.relay_layer import LayerStats, RelayAttentionLayer

log = logging.getLogger(__name__)


class RelayAttentionIntegration:
    """Makes attention layers that share system prompts, and the metadata that their calls need.

    config: None is RelayConfig(), which computes plain attention (enabled=False). device: where to compute and to keep
    K/V; default the CPU with all its threads. cache_dir: where system prompts go that leave memory, one folder for each
    layer; without it there is nothing to prefetch, and a CUDA device has none. model_id: names the weights, so that
    files of another model are not used.
    """

    def __init__(self, config: Optional[RelayConfig] = None, *, device: Optional[Device] = None,
                 cache_dir: Optional[str] = None, model_id: str = "") -> None:
        self.config = RelayConfig() if config is None else config
        self.config.check()
        self.device = default_device() if device is None else device
        self.layers: list[RelayAttentionLayer] = []
        self._cache_dir, self._model_id = cache_dir, model_id
        if not self.config.enabled:
            log.info("RelayConfig.enabled is False: plain attention")

    def create_attention_layer(self, num_heads: int, head_size: int, scale: float,
                               num_kv_heads: Optional[int] = None, **kw: Any) -> RelayAttentionLayer:
        """A layer of num_heads query heads over num_kv_heads (default: as many) of head_size.

        kw: alibi_slopes, sliding_window, logits_soft_cap, sinks (computed exactly, in positions that count the system
        prompt); block_size of the pages (16); strategy "auto", "relay" or "plain"; repeatable; name.
        kv_cache_dtype, blocksparse_params, attn_type are accepted where they ask for nothing else than this.
        Raises InvalidArgumentError, UnsupportedError (each names the field), TypeError for an unknown one.
        """
        kw.setdefault("name", f"layer-{len(self.layers)}")
        layer = RelayAttentionLayer(num_heads, head_size, scale, num_kv_heads, config=self.config, device=self.device,
                                    cache_dir=self._cache_dir, model_id=self._model_id, **kw)
        self.layers.append(layer)
        log.debug("%s: %d query heads over %d of size %d, relay %s", layer.name, layer.num_heads, layer.num_kv_heads,
                  layer.head_size, "on" if self.config.enabled else "off")
        return layer

    def create_relay_metadata(self, system_length: int, system_key: Optional[str] = None,
                              user_key: Optional[str] = None) -> RelayMetadata:
        """Metadata of one request whose first system_length tokens are the system prompt; with keys, if given. With a
        cache_dir the system key is announced to all layers, as by prefetch. Raises InvalidArgumentError."""
        metadata = RelayMetadata(self.config.create_relay_info(system_length))
        metadata.set_cache_keys(system_key, user_key)
        if system_key is not None and self._cache_dir is not None:
            self.prefetch([system_key])
        return metadata

    def prefetch(self, system_keys: Iterable[str]) -> None:
        """Announces system prompts that will be wanted: each layer reads them from cache_dir in the background,
        prefetch_batch_size at a time. Nothing happens with enable_prefetch=False or without cache_dir."""
        keys = list(system_keys)
        for layer in self.layers:
            layer.prefetch(keys)

    def release(self, attn_metadata: Any) -> None:
        """Forgets what all layers keep for requests (one metadata or several)."""
        for layer in self.layers:
            layer.release(attn_metadata)

    def stats(self) -> LayerStats:
        """The sum of the layers' counters."""
        return LayerStats(*(sum(column) for column in zip(LayerStats(), *(layer.stats() for layer in self.layers))))


# ---- the example -----------------------------------------------------------

HEADS, KV_HEADS, SIZE, SYSTEM, USER, REQUESTS, NEW_TOKENS = 8, 2, 64, 2048, 16, 16, 8


def _tokens(rng: np.random.Generator, count: int, heads: int) -> Any:
    return rng.standard_normal((count, heads, SIZE)).astype(np.float32)


def full_attention(query: Any, key: Any, value: Any) -> Any:
    """Attention of the last tokens over all, in float64: what every result is compared with."""
    key, value = (np.repeat(x.astype(np.float64), HEADS // KV_HEADS, axis=1) for x in (key, value))
    scores = np.einsum("qhd,khd->hqk", query.astype(np.float64), key) / np.sqrt(SIZE)
    place = np.arange(len(key))
    scores[:, place > place[len(key) - len(query):, None]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), value)


def _serve(enabled: bool) -> tuple[float, float, LayerStats]:
    """Prefills the requests, decodes NEW_TOKENS for all of them; seconds a step, largest error, counters."""
    rng = np.random.default_rng(1)
    integration = RelayAttentionIntegration(RelayConfig(enabled=enabled))
    attention = integration.create_attention_layer(HEADS, SIZE, SIZE**-0.5, KV_HEADS)
    system_key, system_value = _tokens(rng, SYSTEM, KV_HEADS), _tokens(rng, SYSTEM, KV_HEADS)
    requests, keys, values = [], [], []
    for number in range(REQUESTS):
        keys.append(np.concatenate([system_key, _tokens(rng, USER, KV_HEADS)]))
        values.append(np.concatenate([system_value, _tokens(rng, USER, KV_HEADS)]))
        requests.append(integration.create_relay_metadata(SYSTEM, "handbook", f"request {number}"))
        attention.forward(_tokens(rng, USER, HEADS), keys[-1], values[-1], attn_metadata=requests[-1])
    error, seconds = 0.0, []
    for _ in range(NEW_TOKENS):
        query, key, value = (_tokens(rng, REQUESTS, heads) for heads in (HEADS, KV_HEADS, KV_HEADS))
        begin = time.perf_counter()
        output = attention.forward(query, key, value, attn_metadata=requests)
        seconds.append(time.perf_counter() - begin)
        for i in range(REQUESTS):
            keys[i], values[i] = np.concatenate([keys[i], key[i:i + 1]]), np.concatenate([values[i], value[i:i + 1]])
            wanted = full_attention(query[i:i + 1], keys[i], values[i])
            error = max(error, float(np.abs(output[i:i + 1] - wanted).max()))
    stats = integration.stats()
    integration.release(requests)
    return min(seconds), error, stats


def main() -> int:
    device = default_device().info()
    print(f"RelayAttention on {device.name}, {device.threads} threads, {device.cpu_level} kernels")
    print(f"{REQUESTS} requests of {USER} tokens under one system prompt of {SYSTEM}, then {NEW_TOKENS} decode steps; "
          f"{HEADS} heads over {KV_HEADS}\n")
    plain_seconds, plain_error, plain = _serve(enabled=False)
    relay_seconds, relay_error, relay = _serve(enabled=True)
    print("                    a decode step   largest error   read a prompt once   tokens not read again")
    for name, seconds, error, stats in (("plain attention", plain_seconds, plain_error, plain),
                                        ("relay attention", relay_seconds, relay_error, relay)):
        print(f"  {name:16}  {seconds * 1e3:10.2f} ms   {error:13.1e}   {stats.relayed:8} of {stats.forwards:2} calls"
              f"   {stats.tokens_saved:21,}")
    print(f"\nThe prompt was packed once and found in the cache {relay.memory_hits} times. The error is the distance"
          "\nfrom attention over the whole sequence in float64. The first call of each request is computed plainly:"
          "\nsharing does not pay for one request alone.")
    return 0 if max(plain_error, relay_error) < 1e-4 and relay.relayed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
