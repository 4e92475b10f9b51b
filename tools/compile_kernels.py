#!/usr/bin/env python3
"""Compiles every CUDA kernel for every architecture with NVRTC, without a card.

The table of files, element types and kernels is crates/eyas-cuda/src/kernels/manifest.txt, which the Rust code reads
too. NVRTC comes from the package `nvidia-cuda-nvrtc` (or the loader's path). Fails on any error or warning, and on a
kernel of the table that the compiled file does not hold.

    python tools/compile_kernels.py [--arch sm_90a ...] [--file norm ...] [--resources]
"""

import argparse
import concurrent.futures
import ctypes
import os
import pathlib
import re
import sys

KERNELS = pathlib.Path(__file__).resolve().parent.parent / "crates/eyas-cuda/src/kernels"
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"]
ELEMENTS = {"bf16": "bf16", "f16": "f16", "f32": "float"}


def find_nvrtc():
    """The NVRTC library of a Python package, or of the loader's path."""
    for folder in map(pathlib.Path, sys.path):
        for path in sorted(folder.glob("nvidia/*/lib/libnvrtc.so.*"), reverse=True):
            if "alt" not in path.name:
                return ctypes.CDLL(str(path))
    return ctypes.CDLL("libnvrtc.so")


def manifest():
    """(file, element types, kernels) of each line of the table."""
    for line in (KERNELS / "manifest.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, types, *kernels = line.split()
            yield name, types.split(","), kernels


def kernel_source(name):
    """A module with the prelude before it and its include in place, as the Rust code puts it together. The number that
    ends the name of a flash attention module is the size of heads that it is compiled for."""
    file, head = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()
    text = (KERNELS / f"{file}.cu").read_text().replace('#include "flash.cuh"\n', (KERNELS / "flash.cuh").read_text())
    define = f"#define HEAD {head}\n" if head else ""
    return (KERNELS / "prelude.cuh").read_text() + f'\n#line 1 "{name}.cu"\n' + define + text


def options(arch, element):
    """The options that the Rust code passes (compile.rs)."""
    return [
        f"--gpu-architecture={arch}",
        "--std=c++17",
        "--device-as-default-execution-space",
        f"-DELEM={ELEMENTS[element]}",
        f"-DELEM_IS_F32={int(element == 'f32')}",
    ]


def compile_kernel(nvrtc, source, name, flags):
    """(cubin or None, log)"""
    program = ctypes.c_void_p()
    check = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    assert check == 0, f"nvrtcCreateProgram: {check}"
    array = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
    status = nvrtc.nvrtcCompileProgram(program, len(flags), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    cubin = None
    if status == 0:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, buffer)
        cubin = buffer.raw
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin, log.value.decode().strip()


def resources(log):
    """(kernel, registers, spilled bytes) of each kernel, from what ptxas says."""
    for part in log.split("Compiling entry function '")[1:]:
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        yield part.split("'")[0], int(re.search(r"Used (\d+) registers", part)[1]), spills


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--file", nargs="*")
    parser.add_argument("--resources", action="store_true", help="print registers and spilled bytes")
    args = parser.parse_args()
    nvrtc = find_nvrtc()
    jobs = [
        (name, arch, element, kernels)
        for name, types, kernels in manifest()
        if not args.file or name in args.file
        for arch in args.arch
        for element in types
        if not (element == "bf16" and arch == "sm_75")  # no bfloat16 on Turing
    ]

    def run(job):
        name, arch, element, _ = job
        flags = options(arch, element) + (["--ptxas-options=-v"] if args.resources else [])
        return compile_kernel(nvrtc, kernel_source(name), f"{name}.cu", flags)

    failures = compiled = 0
    # NVRTC compiles in several threads at once; ctypes lets them run.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for (name, arch, element, kernels), (cubin, log) in zip(jobs, pool.map(run, jobs)):
            compiled += 1
            missing = [k for k in kernels if cubin and re.search(rb"\x00" + k.encode() + rb"\x00", cubin) is None]
            if cubin is None or (log and not args.resources) or missing:
                failures += 1
                absent = "missing: " + " ".join(missing) if missing else ""
                print(f"{name}.cu {arch} {element}: {log or 'no log'} {absent}", flush=True)
            elif args.resources:
                for kernel, registers, spills in sorted(resources(log)):
                    print(f"{arch} {element:4} {kernel:28} {registers:3} registers, {spills} bytes spilled")
    print(f"{compiled} compilations, {failures} failures")
    return 1 if failures or not compiled else 0


if __name__ == "__main__":
    sys.exit(main())
