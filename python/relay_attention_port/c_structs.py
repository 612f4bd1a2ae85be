"""ctypes mirrors of the structures in ``include/relay/``; the names and comments there are the manual."""

from __future__ import annotations

import ctypes
from ctypes import (CFUNCTYPE, POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t,
                    c_uint32, c_uint64, c_void_p)

F32, F16, BF16 = 1, 2, 3
LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG = 1, 2, 3, 4
DEVICE_CPU, DEVICE_CUDA = 1, 2
KV_PAGED, KV_CONTIGUOUS, KV_PACKED = 1, 2, 3
NO_PARENT = -1
MAX_DIMS = 4

LogFunction = CFUNCTYPE(None, c_void_p, c_int, c_char_p)


class Tensor(Structure):
    """relay_tensor"""

    _fields_ = [("data", c_void_p), ("dtype", c_int), ("ndim", c_int32), ("shape", c_int64 * MAX_DIMS),
                ("stride", c_int64 * MAX_DIMS)]


class DeviceOptions(Structure):
    """relay_device_options"""

    _fields_ = [("struct_size", c_uint32), ("kind", c_int), ("index", c_int32), ("threads", c_int32),
                ("cpu_level", c_char_p), ("log", LogFunction), ("log_user", c_void_p)]


class DeviceInfo(Structure):
    """relay_device_info"""

    _fields_ = [("struct_size", c_uint32), ("kind", c_int), ("threads", c_int32), ("name", c_char_p),
                ("features", c_char_p), ("cpu_level", c_char_p)]


class Calibration(Structure):
    """relay_calibration"""

    _fields_ = [("struct_size", c_uint32), ("read_gbps", c_double), ("f32_gflops", c_double),
                ("bf16_gflops", c_double), ("peak_gflops", c_double)]


class PromptCacheOptions(Structure):
    """relay_prompt_cache_options"""

    _fields_ = [("struct_size", c_uint32), ("num_layers", c_int32), ("num_kv_heads", c_int32), ("head_dim", c_int32),
                ("kv_dtype", c_int), ("model_id", c_char_p), ("enabled", c_int32),
                ("max_cached_system_prompts", c_int32), ("max_bytes", c_uint64), ("directory", c_char_p),
                ("enable_prefetch", c_int32), ("prefetch_batch_size", c_int32)]


class PromptCacheStats(Structure):
    """relay_prompt_cache_stats"""

    _fields_ = [("struct_size", c_uint32), ("prompts", c_int32), ("pinned", c_int32), ("bytes", c_uint64),
                ("peak_bytes", c_uint64), ("memory_hits", c_uint64), ("file_hits", c_uint64), ("misses", c_uint64),
                ("evictions", c_uint64), ("prefetched", c_uint64), ("prefetch_groups", c_uint64),
                ("rejected_files", c_uint64), ("files_written", c_uint64)]


class KvSpan(Structure):
    """relay_kv_span"""

    _fields_ = [("layout", c_int), ("length", c_int32), ("block_table", c_void_p), ("tensor_index", c_int32),
                ("prompt", c_void_p)]


class Segment(Structure):
    """relay_segment"""

    _fields_ = [("parent", c_int32), ("first_request", c_int32), ("num_requests", c_int32), ("kv", KvSpan)]


class ForestDesc(Structure):
    """relay_forest_desc"""

    _fields_ = [("struct_size", c_uint32), ("num_requests", c_int32), ("query_start_loc", c_void_p),
                ("own", POINTER(KvSpan)), ("order", c_void_p), ("num_segments", c_int32),
                ("segments", POINTER(Segment)), ("block_size", c_int32), ("num_blocks", c_int32)]


class BlockTables(Structure):
    """relay_block_tables"""

    _fields_ = [("struct_size", c_uint32), ("num_requests", c_int32), ("query_start_loc", c_void_p),
                ("seq_lens", c_void_p), ("block_table", c_void_p), ("block_table_stride", c_int64),
                ("block_size", c_int32), ("num_blocks", c_int32), ("min_shared_tokens", c_int32),
                ("max_depth", c_int32)]


class Attention(Structure):
    """relay_attention"""

    _fields_ = [("struct_size", c_uint32), ("num_heads", c_int32), ("num_kv_heads", c_int32), ("head_dim", c_int32),
                ("query_dtype", c_int), ("kv_dtype", c_int), ("output_dtype", c_int), ("softmax_scale", c_float),
                ("logit_soft_cap", c_float), ("sliding_window", c_int32), ("num_sink_tokens", c_int32),
                ("use_alibi", c_int32), ("use_sinks", c_int32)]


class PlanOptions(Structure):
    """relay_plan_options"""

    _fields_ = [("struct_size", c_uint32), ("strategy", c_int), ("repeatable", c_int32), ("max_requests", c_int32),
                ("max_rows", c_int32), ("max_depth", c_int32), ("max_tokens", c_int32), ("max_blocks", c_int32)]


class PlanInfo(Structure):
    """relay_plan_info"""

    _fields_ = [("struct_size", c_uint32), ("num_requests", c_int32), ("num_rows", c_int32),
                ("relay_segments", c_int32), ("plain_segments", c_int32), ("shared_tokens_saved", c_int64),
                ("num_work_items", c_int32), ("unique_kv_bytes", c_double), ("flops", c_double),
                ("kernel", c_char_p)]


class KvTensors(Structure):
    """relay_kv_tensors"""

    _fields_ = [("key", Tensor), ("value", Tensor)]


class RunArgs(Structure):
    """relay_run_args"""

    _fields_ = [("struct_size", c_uint32), ("query", Tensor), ("key_pool", Tensor), ("value_pool", Tensor),
                ("contiguous", POINTER(KvTensors)), ("num_contiguous", c_int32), ("layer", c_int32),
                ("alibi_slopes", c_void_p), ("sinks", c_void_p), ("output", Tensor), ("lse", Tensor),
                ("workspace", c_void_p), ("workspace_bytes", c_size_t), ("stream", c_void_p),
                ("plan_in_workspace", c_int32)]


class CacheWriteArgs(Structure):
    """relay_cache_write_args"""

    _fields_ = [("struct_size", c_uint32), ("key", Tensor), ("value", Tensor), ("key_pool", Tensor),
                ("value_pool", Tensor), ("slot_mapping", c_void_p), ("num_slots", c_int64), ("stream", c_void_p)]


class FuseArgs(Structure):
    """relay_fuse_args"""

    _fields_ = [("struct_size", c_uint32), ("num_parts", c_int32), ("outputs", POINTER(Tensor)),
                ("lses", POINTER(Tensor)), ("output", Tensor), ("lse", Tensor), ("stream", c_void_p)]


class Info(Structure):
    """relay_info"""

    _fields_ = [("struct_size", c_uint32), ("system_length", c_int32), ("enabled", c_int32), ("use_triton", c_int32),
                ("cache_system_prompts", c_int32), ("max_cached_system_prompts", c_int32)]


class Config(Structure):
    """relay_config"""

    _fields_ = [("struct_size", c_uint32), ("enabled", c_int32), ("default_relay_info", POINTER(Info)),
                ("use_triton", c_int32), ("cache_system_prompts", c_int32), ("max_cached_system_prompts", c_int32),
                ("enable_prefetch", c_int32), ("prefetch_batch_size", c_int32)]


# The functions that fill a structure. What a larger, newer structure would write beyond ours goes to the padding.
DEFAULTS: dict[str, type[Structure]] = {
    "relay_device_options_defaults": DeviceOptions,
    "relay_prompt_cache_options_defaults": PromptCacheOptions,
    "relay_forest_desc_defaults": ForestDesc,
    "relay_block_tables_defaults": BlockTables,
    "relay_attention_defaults": Attention,
    "relay_plan_options_defaults": PlanOptions,
    "relay_run_args_defaults": RunArgs,
    "relay_cache_write_args_defaults": CacheWriteArgs,
    "relay_fuse_args_defaults": FuseArgs,
    "relay_config_defaults": Config,
}


def sized(struct: Structure) -> Structure:
    """Sets struct_size, for structures that the library fills."""
    struct.struct_size = ctypes.sizeof(struct)
    return struct
