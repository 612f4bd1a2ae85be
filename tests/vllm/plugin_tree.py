"""This tree's package as if it were installed: a folder with its metadata, for PYTHONPATH."""
import os
import tomllib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def write_metadata(folder, name, entry_points, version="0"):
    """A distribution of that name with {group: {name: target}}."""
    info = os.path.join(folder, f"{name.replace('-', '_')}-{version}.dist-info")
    os.makedirs(info, exist_ok=True)
    with open(os.path.join(info, "METADATA"), "w") as out:
        out.write(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    with open(os.path.join(info, "entry_points.txt"), "w") as out:
        for group, entries in entry_points.items():
            out.write(f"[{group}]\n" + "".join(f"{key} = {target}\n" for key, target in entries.items()))


def make_metadata(folder):
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as f:
        write_metadata(folder, "relay-attention-port", tomllib.load(f)["project"]["entry-points"])


def environment(folder):
    """Variables for a process that is to run vLLM with the plugin."""
    library = os.environ.get("RELAY_LIBRARY") or os.path.join(ROOT, "build", "src", "librelayattn.so")
    return {"RELAY_LIBRARY": os.path.abspath(library),
            "PYTHONPATH": os.pathsep.join([folder, os.path.join(ROOT, "python")]),
            "VLLM_ENABLE_V1_MULTIPROCESSING": os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            # the tests use PyTorch before vLLM can set it
            "ONEDNN_MAX_CPU_ISA": os.environ.get("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"),
            "RELAY_VLLM_LOG_INTERVAL": "0"}
