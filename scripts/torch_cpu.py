#!/usr/bin/env python3
"""Let PyTorch's CUDA wheel run on the CPU without the 3 GB of NVIDIA packages it asks for.

    torch_cpu.py SITE_PACKAGES

PyPI's torch for x86-64 Linux is linked against nine CUDA libraries. None of their functions runs while
tensors stay on the CPU, but the dynamic loader wants the files and the symbols. This writes them into
torch/lib: one small library a name, in which every function returns 1, the failure code of all nine.
Libraries that are there already (from NVIDIA's packages) are left alone. Needs cc and nm.
"""
import os
import re
import subprocess
import sys
import tempfile

# file name, and what the names of its functions begin with (longer prefixes first)
LIBRARIES = [
    ("libcublasLt.so.12", "cublasLt"),
    ("libcublas.so.12", "cublas"),
    ("libcusparseLt.so.0", "cusparseLt"),
    ("libcusparse.so.12", "cusparse"),
    ("libcufft.so.11", "cufft"),
    ("libcurand.so.10", "curand"),
    ("libcudnn.so.9", "cudnn"),
    ("libcufile.so.0", "cuFile"),
    ("libnccl.so.2", "nccl"),
]
USERS = ("libtorch_cuda.so", "libtorch_python.so")


def undefined_symbols(path):
    text = subprocess.run(["nm", "-D", "--undefined-only", path], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in text.splitlines()}


def owner(symbol):
    return next((name for name, prefix in LIBRARIES if symbol.startswith(prefix)), None)


def build(path, symbols):
    """The library appears under its name only when it is whole."""
    name = os.path.basename(path)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as work:
        source, script, result = (os.path.join(work, f) for f in ("stand_in.c", "versions", "stand_in.so"))
        with open(source, "w") as f:
            f.writelines("int %s(void) { return 1; }\n" % s for s in sorted(symbols))
        with open(script, "w") as f:  # the wheel asks for symbol versions that are named after the file
            f.write("%s { global: *; };\n" % name)
        subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-w", "-fno-builtin", "-o", result, source,
                        "-Wl,-soname," + name, "-Wl,--version-script=" + script], check=True)
        os.replace(result, path)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    lib = os.path.join(sys.argv[1], "torch", "lib")
    if not os.path.exists(os.path.join(lib, USERS[0])):
        print("torch_cpu: this torch has no CUDA part: nothing to do")
        return
    wanted = {name: set() for name, _ in LIBRARIES}
    for user in USERS:
        for symbol in undefined_symbols(os.path.join(lib, user)):
            if re.fullmatch(r"\w+", symbol) and owner(symbol):
                wanted[owner(symbol)].add(symbol)
    for name, symbols in wanted.items():
        if not os.path.exists(os.path.join(lib, name)):
            build(os.path.join(lib, name), symbols)
    print("torch_cpu: %d stand-in libraries, %d functions" % (len(wanted), sum(map(len, wanted.values()))))


if __name__ == "__main__":
    main()
