"""What vLLM's own tests call, computed by this package: flash attention over pages, cascade attention, the merge of two
partial states, the cache write. Signatures and layouts are vLLM 0.9.1's; what differs from ours is turned round here."""
from typing import NamedTuple

import numpy as np
import torch

from relay_attention_port import Attention, Forest, Plan, PlanInfo, cache_write, default_device, fuse

DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


class Done(NamedTuple):
    """output: [T, Hq, D]; lse: [Hq, T] float32, vLLM's layout."""

    output: torch.Tensor
    lse: torch.Tensor
    info: PlanInfo


def window_of(window_size):
    """(w - 1, 0), or (-1, -1) for none, as our width w, or 0."""
    left, right = window_size
    if (left, right) == (-1, -1):
        return 0
    if left < 0 or right != 0:
        raise NotImplementedError(f"window_size {window_size}")
    return left + 1


def attend(query, key_pool, value_pool, starts, lens, tables, *, strategy, scale, soft_cap=0.0, window_size=(-1, -1),
           out=None):
    """query: [T, Hq, D]; pools: [num_blocks, block_size, Hkv, D]; starts: [R + 1]; lens: [R]; tables: [R, n]."""
    heads, kv_heads, kind = query.shape[1], key_pool.shape[2], DTYPES[query.dtype]
    device, forest = default_device(), Forest(default_device())
    forest.find(np.asarray(starts), np.asarray(lens), np.asarray(tables), block_size=key_pool.shape[1],
                num_blocks=key_pool.shape[0], max_depth=0 if strategy == "plain" else 1)
    attention = Attention(heads, kv_heads, query.shape[2], kind, kind, kind, scale, soft_cap, window_of(window_size))
    plan = Plan(device, attention, strategy=strategy).build(forest)
    out = torch.full_like(query, float("nan")) if out is None else out
    lse = torch.full((heads, len(query)), float("nan"), dtype=torch.float32)
    plan.run(query, out, key_pool=key_pool, value_pool=value_pool, lse=lse.T)
    return Done(out, lse, plan.info())


def flash_attn_varlen_func(q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, seqused_k=None, softmax_scale=None,
                           causal=False, window_size=(-1, -1), softcap=0.0, block_table=None, return_softmax_lse=False,
                           out=None, fa_version=2, q_descale=None, k_descale=None, v_descale=None,
                           scheduler_metadata=None):
    """Each request by itself. Without causality, as vLLM reads a prefix, all requests' rows lie behind its tokens: they
    are then requests of one row each, which stand on the same pages and are read for all rows at once."""
    starts, lens, tables, strategy = cu_seqlens_q, seqused_k, block_table, "plain"
    if not causal:
        if len(lens) != 1:
            raise NotImplementedError("attention without causality for several requests")
        starts, lens, strategy = np.arange(len(q) + 1, dtype=np.int32), lens.expand(len(q)), "relay"
        tables = tables.repeat(len(q), 1)
    done = attend(q, k, v, starts, lens, tables, strategy=strategy, scale=softmax_scale, soft_cap=softcap,
                  window_size=window_size, out=out)
    return (done.output, done.lse) if return_softmax_lse else done.output


def flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens, block_table, softmax_scale, causal, window_size=(-1, -1),
                            softcap=0.0, out=None, fa_version=2, q_descale=None, k_descale=None, v_descale=None):
    """q: [R, n, Hq, D], the last n tokens of each request."""
    if not causal:
        raise NotImplementedError("attention without causality")
    out = torch.full_like(q, float("nan")) if out is None else out
    starts = np.arange(len(q) + 1, dtype=np.int32) * q.shape[1]
    attend(q.flatten(0, 1), k_cache, v_cache, starts, cache_seqlens, block_table, strategy="plain", scale=softmax_scale,
           soft_cap=softcap, window_size=window_size, out=out.view(-1, *q.shape[2:]))
    return out


def cascade_by_relay(output, query, key_cache, value_cache, cu_query_lens, max_query_len, cu_prefix_query_lens,
                     prefix_kv_lens, suffix_kv_lens, max_kv_len, softmax_scale, alibi_slopes, sliding_window,
                     logits_soft_cap, block_table, common_prefix_len, fa_version):
    """Cascade attention in one run: the prefix is found from the block tables and read once."""
    done = attend(query, key_cache, value_cache, cu_query_lens, suffix_kv_lens + common_prefix_len, block_table,
                  strategy="relay", scale=softmax_scale, soft_cap=logits_soft_cap, window_size=sliding_window, out=output)
    requests = len(suffix_kv_lens)
    assert done.info.relay_segments == 1 and done.info.plain_segments == 0, done.info
    assert done.info.shared_tokens_saved == (requests - 1) * common_prefix_len, done.info


def merge_attn_states(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse=None):
    """The LSEs are [H, T] there, [T, H] here; +inf is an empty part in both."""
    fuse(default_device(), [prefix_output, suffix_output], [prefix_lse.T, suffix_lse.T], output,
         None if output_lse is None else output_lse.T)


def reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale):
    if kv_cache_dtype != "auto":
        raise NotImplementedError(f"kv_cache_dtype {kv_cache_dtype}")
    cache_write(default_device(), key, value, key_cache, value_cache, slot_mapping)
