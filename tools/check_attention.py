#!/usr/bin/env python3
"""Checks the flash attention kernels on a card against float64, and times them and variants of their shapes.

Needs PyTorch with CUDA. Kernels are compiled here by NVRTC, as compile_kernels.py does, and launched through the driver.

    python tools/check_attention.py [--check] [--time] [--variants] [--modes wgmma mma turing] [--log FILE]

Modes: `wgmma` is the code for Hopper; `mma` and `turing` are the code paths of sm_80 and sm_75, compiled for the card
that is there.
"""

import argparse
import concurrent.futures
import ctypes
import math
import re
import statistics
import sys

import compile_kernels as ck
import torch

C = ctypes
ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "f16"}
LOG2E = math.log2(math.e)


class Layout(C.Structure):
    _fields_ = [(n, C.c_int) for n in
                "heads kv_heads head_dim query_group_stride key_offset kv_stride value_offset width".split()]

    @classmethod
    def contiguous(cls, heads, kv, dim):
        return cls(heads, kv, dim, heads // kv * dim, heads * dim, dim, (heads + kv) * dim, (heads + 2 * kv) * dim)

    @classmethod
    def grouped(cls, heads, kv, dim):
        g = heads // kv
        return cls(heads, kv, dim, (g + 2) * dim, g * dim, (g + 2) * dim, (g + 1) * dim, (heads + 2 * kv) * dim)

    def query(self, head):
        group = self.heads // self.kv_heads
        return head // group * self.query_group_stride + head % group * self.head_dim


class Attention(C.Structure):
    _fields_ = [("l", Layout), ("scale", C.c_float), ("window", C.c_int), ("alibi_positions", C.c_int),
                ("alibi", C.c_void_p)]


class Keys(C.Structure):
    _fields_ = [("keys", C.c_void_p), ("values", C.c_void_p), ("row_stride", C.c_int), ("head_stride", C.c_int),
                ("capacity", C.c_int), ("slots", C.c_void_p), ("positions", C.c_void_p)]


class Cache(C.Structure):
    _fields_ = [("keys", C.c_void_p), ("values", C.c_void_p), ("capacity", C.c_int), ("slots", C.c_void_p),
                ("positions", C.c_void_p)]


# --- Compiling ---

MODES = {"wgmma": ("sm_90a", []), "mma": ("sm_90", []), "turing": ("sm_90", ["-DPRETEND_TURING"])}


def source(file, change=(), only=None):
    text = ck.kernel_source(file)
    if only:  # compiles one kernel alone
        text = "\n".join(l for l in text.splitlines() if not l.startswith("KERNEL BOUNDS") or only + "(" in l)
    for old, new in change:
        assert re.search(old, text), old
        text = re.sub(old, new, text)
    return text.replace("__CUDA_ARCH__ >= 800", "(__CUDA_ARCH__ >= 800 && !defined(PRETEND_TURING))")


def build(job):
    file, arch, element, flags, text = job
    cubin, log = ck.compile_kernel(ck.find_nvrtc(), text, file + ".cu",
                                   ck.options(arch, element) + flags + ["--ptxas-options=-v"])
    if cubin is None:
        print(file, arch, log[:3000], file=sys.stderr)
    return cubin, {name: (regs, spills) for name, regs, spills in ck.resources(log)} if cubin else log


def shapes(text, mode):
    """Name to (D, tile, warps, stages, blocks) of the branch that a mode compiles."""
    found = {}
    for name in set(re.findall(r"typedef Shape<[^>]*> (\w+);", text)):
        rows = re.findall(r"typedef Shape<([^>]*)> " + name + ";", text)
        row = rows[0] if len(rows) == 1 else rows[{"wgmma": 0, "mma": -2, "turing": -1}[mode]]
        found[name] = tuple(int(v.replace("STEP", "16")) for v in row.split(","))
    return found


# --- Launching ---

cuda = None


def driver(call, *args):
    status = getattr(cuda, call)(*args)
    if status:
        raise RuntimeError(f"{call}: {status}")


class Module:
    def __init__(self, cubin):
        self.handle = C.c_void_p()
        driver("cuModuleLoadData", C.byref(self.handle), cubin)
        self.functions = {}

    def launch(self, name, grid, threads, shared, *args):
        if name not in self.functions:
            f = C.c_void_p()
            driver("cuModuleGetFunction", C.byref(f), self.handle, name.encode())
            if shared > 48 << 10:
                driver("cuFuncSetAttribute", f, 8, shared)
            self.functions[name] = f
        values = []
        for a in args:
            if isinstance(a, torch.Tensor):
                a = C.c_void_p(a.data_ptr())
            elif a is None:
                a = C.c_void_p(0)
            elif isinstance(a, int):
                a = C.c_int(a)
            values.append(a)
        pointers = (C.c_void_p * len(values))(*[C.cast(C.byref(v), C.c_void_p) for v in values])
        grid = tuple(grid) + (1,) * (3 - len(grid))
        driver("cuLaunchKernel", self.functions[name], *grid, threads, 1, 1, shared,
               C.c_void_p(torch.cuda.current_stream().cuda_stream), pointers, None)


def tile(rows, dim):
    return rows * 128 * ((dim + 63) // 64)


def padded(dim):
    return next(d for d in (64, 96, 128, 256) if dim <= d)


class Problem:
    """One batch with its operands on the card."""

    def __init__(self, layout, lengths, dtype, window=0, alibi=False, seed=0, positions=None, slots=None, capacity=0):
        g = torch.Generator(device="cuda").manual_seed(seed)
        rand = lambda *s: torch.randn(*s, generator=g, device="cuda", dtype=torch.float32).to(dtype)
        self.l, self.lengths, self.dtype, self.window = layout, lengths, dtype, window
        self.tokens, self.sequences = sum(lengths), len(lengths)
        starts = [0]
        for n in lengths:
            starts.append(starts[-1] + n)
        self.starts = starts
        self.cu = torch.tensor(starts, dtype=torch.int32, device="cuda")
        self.qkv, self.dout = rand(self.tokens, layout.width), rand(self.tokens, layout.heads * layout.head_dim)
        self.scale = 1 / math.sqrt(layout.head_dim)
        self.from_position = positions or [0] * len(lengths)
        most = max(p + n for p, n in zip(self.from_position, lengths)) + 3
        slopes = torch.tensor([2 ** (-8 * (h + 1) / layout.heads) for h in range(layout.heads)], device="cuda")
        self.bias = (slopes[:, None] * torch.arange(most, device="cuda")).contiguous() if alibi else None
        self.f = Attention(layout, self.scale, window, most if alibi else 0, self.bias.data_ptr() if alibi else None)
        self.max_length = max(lengths)
        if capacity:
            n, self.capacity, self.slot = layout.kv_heads * layout.head_dim, capacity, slots
            self.keys, self.values = (rand((max(slots) + 1) * capacity, n) for _ in range(2))
            at = [p + i for p, n in zip(self.from_position, lengths) for i in range(n)]
            self.positions = torch.tensor(at, dtype=torch.int32, device="cuda")
            self.slots = torch.tensor(slots, dtype=torch.int32, device="cuda")

    def attend(self, q, k, v, position):
        """f64 attention of [heads, n, d] over [heads, m, d]; (out, lse)"""
        n, m = q.shape[1], k.shape[1]
        s = q @ k.transpose(1, 2) * self.scale
        if self.bias is not None:
            s = s + self.bias[:, None, :m].double()
        at, key = torch.arange(n, device="cuda")[:, None] + position, torch.arange(m, device="cuda")
        hidden = key > at
        if self.window:
            hidden |= key <= at - self.window
        s = s.masked_fill(hidden, -math.inf)
        return torch.softmax(s, -1) @ v, torch.logsumexp(s, -1)

    def reference(self, backward=True, only=None):
        """f64 (out, lse, dqkv), of the sequences in `only` or all, each a list by sequence"""
        l, results = self.l, []
        group, d = l.heads // l.kv_heads, l.head_dim
        for i in only if only is not None else range(self.sequences):
            a, b = self.starts[i], self.starts[i + 1]
            x = self.qkv[a:b].double().requires_grad_(backward)
            q = torch.stack([x[:, l.query(h):l.query(h) + d] for h in range(l.heads)])
            take = lambda at: torch.stack([x[:, at + h // group * l.kv_stride:][:, :d] for h in range(l.heads)])
            out, lse = self.attend(q, take(l.key_offset), take(l.value_offset), 0)
            out = out.transpose(0, 1).reshape(b - a, -1)
            if backward:
                out.backward(self.dout[a:b].double())
            results.append((a, b, out.detach(), lse.detach().t(), x.grad))
        return results

    def cached_reference(self):
        l, outs = self.l, []
        group, d = l.heads // l.kv_heads, l.head_dim
        for i in range(self.sequences):
            a, b, base = self.starts[i], self.starts[i + 1], self.slot[i] * self.capacity
            x = self.qkv[a:b].double()
            q = torch.stack([x[:, l.query(h):l.query(h) + d] for h in range(l.heads)])
            rows = slice(base, base + self.from_position[i] + b - a)
            take = lambda c: torch.stack([c[rows].double()[:, h // group * d:][:, :d] for h in range(l.heads)])
            outs.append(self.attend(q, take(self.keys), take(self.values), self.from_position[i])[0]
                        .transpose(0, 1).reshape(b - a, -1))
        return torch.cat(outs)


class Kernels:
    """The compiled kernels of a mode and element type."""

    def __init__(self, mode, texts, cubins):
        self.mode, self.extra = mode, 1024 if mode == "wgmma" else 0
        self.shapes = {}
        for text in texts:
            self.shapes.update(shapes(text, mode))
        self.modules = cubins

    def forward(self, p, out, lse, cached=False):
        l, d = p.l, padded(p.l.head_dim)
        _, n, warps, stages, _ = self.shapes[f"Forward{d}"]
        if cached:
            kv = Keys(p.keys.data_ptr(), p.values.data_ptr(), l.kv_heads * l.head_dim, l.head_dim, p.capacity,
                      p.slots.data_ptr(), p.positions.data_ptr())
        else:
            at = p.qkv.data_ptr()
            kv = Keys(at + 2 * l.key_offset, at + 2 * l.value_offset, l.width, l.kv_stride, 0, None, None)
        self.modules["flash_forward"].launch(
            f"flash_forward_{d}", (p.sequences * l.heads, -(-p.max_length // (16 * warps))), 32 * warps,
            tile(16 * warps, d) + stages * 2 * tile(n, d) + self.extra, p.f, kv, p.qkv, p.cu, out, lse)

    def query(self, p, out, lse, rows, dqkv):
        l, d = p.l, padded(p.l.head_dim)
        _, n, warps, stages, _ = self.shapes[f"Query{d}"]
        self.modules["flash_backward"].launch(
            f"flash_backward_query_{d}", (p.sequences * l.heads, -(-p.max_length // (16 * warps))), 32 * warps,
            2 * tile(16 * warps, d) + stages * 2 * tile(n, d) + self.extra,
            p.f, p.qkv, p.cu, p.tokens, out, lse, p.dout, rows, dqkv)

    def chunks(self, p, wish=0):
        warps = self.shapes[f"Key{padded(p.l.head_dim)}"][2]
        blocks = sum(-(-n // (16 * warps)) for n in p.lengths) * p.l.kv_heads
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        want = wish or (1 if blocks >= 3 * sms else -(-6 * sms // blocks))
        return max(1, min(want, p.l.heads // p.l.kv_heads))

    def key(self, p, rows, dqkv, chunks, partial):
        l, d = p.l, padded(p.l.head_dim)
        _, n, warps, stages, _ = self.shapes[f"Key{d}"]
        stage = -(-(2 * tile(n, d) + n * 8) // 1024) * 1024
        blocks = -(-p.max_length // (16 * warps)) * p.sequences * l.kv_heads * chunks
        self.modules["flash_backward"].launch(
            f"flash_backward_key_{d}", (blocks, -(-l.head_dim // 128) if d == 256 else 1), 32 * warps,
            2 * tile(16 * warps, d) + stages * stage + self.extra,
            p.f, p.qkv, p.cu, p.tokens, p.sequences, chunks, p.dout, rows, partial, dqkv)
        if partial is not None:
            items = p.tokens * l.kv_heads * 2 * (l.head_dim // 8)
            self.modules["flash_backward"].launch(f"flash_backward_sum_{d}", (-(-items // 256),), 256, 0,
                                                  l, p.tokens, chunks, partial, dqkv)

    def backward(self, p, out, lse, rows, dqkv, wish=0):
        chunks, partial = self.chunks(p, wish), None
        if chunks > 1:
            partial = torch.full((chunks, p.tokens, p.l.kv_heads * 2 * p.l.head_dim), math.nan, device="cuda")
        self.query(p, out, lse, rows, dqkv)
        self.key(p, rows, dqkv, chunks, partial)

    def decode(self, p, out, splits):
        l, d = p.l, padded(p.l.head_dim)
        _, _, warps, stages, _ = self.shapes[f"Decode{d}"]
        cache = Cache(p.keys.data_ptr(), p.values.data_ptr(), p.capacity, p.slots.data_ptr(), p.positions.data_ptr())
        pieces = torch.full((p.tokens * l.heads * splits * l.head_dim,), math.nan, device="cuda")
        stats = torch.full((p.tokens * l.heads * splits * 2,), math.nan, device="cuda")
        m = self.modules["flash_decode"]
        m.launch(f"flash_decode_{d}",
                 (p.sequences * l.kv_heads, -(-p.max_length * (l.heads // l.kv_heads) // 16), splits), 32 * warps,
                 tile(16, d) + warps * stages * 2 * tile(16, d), p.f, cache, p.qkv, p.cu, pieces, stats, out)
        if splits > 1:
            m.launch(f"flash_decode_combine_{d}", (p.tokens * l.heads,), 64, 0, l.head_dim, splits, pieces, stats, out)


def distance(got, want):
    """Relative, or absolute where nothing is wanted."""
    got, want = got.double(), want.double()
    norm = torch.linalg.vector_norm(want).item()
    error = torch.linalg.vector_norm(got - want).item() / (norm if norm > 1e-9 else 1.0)
    return error if math.isfinite(error) else math.inf


# --- Checks ---

def cases():
    c, g = Layout.contiguous, Layout.grouped
    return [
        ("71/1x64", c(71, 1, 64), [1, 37, 70, 200], {}),
        ("9/3x64", c(9, 3, 64), [130, 1, 257, 64, 63, 65, 128, 129], {}),
        ("12/12x64 alibi", g(12, 12, 64), [100, 300, 7], {"alibi": True}),
        ("6/2x64 both", c(6, 2, 64), [200, 9, 400], {"alibi": True, "window": 65}),
        ("8/2x64 window 5", c(8, 2, 64), [333, 5, 64], {"window": 5}),
        ("4/2x128", c(4, 2, 128), [97, 513, 1], {}),
        ("8/2x80 window", g(8, 2, 80), [3, 100, 1, 260], {"window": 17}),
        ("4/4x96 alibi", g(4, 4, 96), [50, 133, 300], {"alibi": True}),
        ("2/1x24", c(2, 1, 24), [1, 1, 2, 3, 5, 190], {}),
        ("2/1x32 window 1", g(2, 1, 32), [40, 150], {"window": 1}),
        ("4/1x256", c(4, 1, 256), [70, 1, 300], {}),
        ("4/2x160 window", c(4, 2, 160), [70, 300], {"window": 100}),
        ("2/2x200 alibi", g(2, 2, 200), [200], {"alibi": True}),
        ("4/2x64 long", c(4, 2, 64), [4096], {}),
        ("32/8x128", c(32, 8, 128), [1024, 200], {}),
    ]


def check_case(kernels, name, layout, lengths, options, dtype, log):
    p = Problem(layout, lengths, dtype, **options)
    nan = lambda *s, dtype=dtype: torch.full(s, math.nan, dtype=dtype, device="cuda")
    runs = []
    for _ in range(2):
        out, lse = nan(p.tokens, layout.heads * layout.head_dim), nan(p.tokens, layout.heads, dtype=torch.float32)
        rows, dqkv = nan(layout.heads, p.tokens, 2, dtype=torch.float32), nan(p.tokens, layout.width)
        kernels.forward(p, out, lse)
        kernels.backward(p, out, lse, rows, dqkv)
        torch.cuda.synchronize()
        runs.append((out, lse, dqkv))
    same = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(*runs))
    one = nan(p.tokens, layout.width)
    kernels.backward(p, out, lse, rows, one, wish=1)
    several = nan(p.tokens, layout.width)
    kernels.backward(p, out, lse, rows, several, wish=3)
    ref = p.reference()
    want = [torch.cat([r[i] for r in ref]) for i in (2, 3, 4)]
    out, lse, dqkv = runs[0]
    d, group = layout.head_dim, layout.heads // layout.kv_heads
    columns = {"dq": [layout.query(h) + i for h in range(layout.heads) for i in range(d)]}
    for n, at in (("dk", layout.key_offset), ("dv", layout.value_offset)):
        columns[n] = [at + h * layout.kv_stride + i for h in range(layout.kv_heads) for i in range(d)]
    errors = {"out": distance(out, want[0]), "lse": (lse.double() - want[1]).abs().max().item()}
    for n, at in columns.items():
        errors[n] = distance(dqkv[:, at], want[2][:, at]) 
    errors["chunks"] = max(distance(one, want[2]), distance(several, want[2]))
    limit = 1.2e-2 if dtype == torch.bfloat16 else 2e-3
    bad = [n for n, e in errors.items() if not e < (1e-3 if n == "lse" else limit)]
    text = " ".join(f"{n} {e:.1e}" for n, e in errors.items())
    log(f"{'FAIL ' + ' '.join(bad) if bad or not same else 'ok  '} {kernels.mode:6} {ELEMENTS[dtype]:4} {name:16} {text}"
        f"{'' if same else ' DIFFERENT BITS'}")
    return not bad and same


def check_cached(kernels, name, layout, options, dtype, log):
    good = True
    for title, lengths, positions in [("one token", [1, 1, 1, 1], [100, 0, 63, 700]),
                                      ("few", [1, 3, 5, 2], [149, 0, 63, 600]),
                                      ("prefill", [70, 1, 130, 33], [0, 100, 200, 15])]:
        p = Problem(layout, lengths, dtype, positions=positions, slots=[2, 0, 3, 1], capacity=750, **options)
        want, errors = p.cached_reference(), {}
        runs = [("forward", lambda o: kernels.forward(p, o, None, cached=True))]
        runs += [(f"decode/{s}", lambda o, s=s: kernels.decode(p, o, s)) for s in (1, 3, 8)]
        for run, call in runs:
            outs = []
            for _ in range(2):
                outs.append(torch.full((p.tokens, layout.heads * layout.head_dim), math.nan, dtype=dtype, device="cuda"))
                call(outs[-1])
                torch.cuda.synchronize()
            errors[run] = distance(outs[0], want) if torch.equal(*outs) else math.inf
        bad = [n for n, e in errors.items() if not e < (6e-3 if dtype == torch.bfloat16 else 1e-3)]
        good &= not bad
        log(f"{'FAIL ' + ' '.join(bad) if bad else 'ok  '} {kernels.mode:6} {ELEMENTS[dtype]:4} {name:16} {title:9} " +
            " ".join(f"{n} {e:.1e}" for n, e in errors.items()))
    return good


# --- Timing ---

def time_ms(call, repeats=12):
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        call()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b))
    return statistics.median(times)


PERFORMANCE = {
    "falcon-7b 16x1024": (Layout.contiguous(71, 1, 64), [1024] * 16),
    "llama-3-8b 16x1024": (Layout.contiguous(32, 8, 128), [1024] * 16),
    "falcon-7b 64 of ~240": (Layout.contiguous(71, 1, 64), [int(240 * math.exp(0.6 * math.sin(7 * i))) for i in range(64)]),
    "falcon-7b 1x512": (Layout.contiguous(71, 1, 64), [512]),
}


def operands(name):
    layout, lengths = PERFORMANCE[name]
    p = Problem(layout, lengths, torch.bfloat16)
    e = lambda *s, dtype=torch.bfloat16: torch.full(s, math.nan, dtype=dtype, device="cuda")
    # Plausible statistics, so that each kernel can be timed by itself.
    p.out, p.lse = p.dout.flip(0).contiguous(), torch.full((p.tokens, layout.heads), 6.0, device="cuda")
    p.rows, p.dqkv = torch.full((layout.heads, p.tokens, 2), 9.0, device="cuda"), e(p.tokens, layout.width)
    p.flops = sum(4 * layout.heads * n * n * layout.head_dim / 2 for n in lengths)
    return p


def check_large(kernels, p, name, log):
    kernels.forward(p, p.out, p.lse)
    kernels.backward(p, p.out, p.lse, p.rows, p.dqkv)
    pieces = []
    for a, b, out, lse, grad in p.reference(only=[p.sequences // 2]):
        kv = [c for h in range(p.l.kv_heads) for at in (p.l.key_offset, p.l.value_offset)
              for c in range(at + h * p.l.kv_stride, at + h * p.l.kv_stride + p.l.head_dim)]
        pieces = [distance(p.out[a:b], out), distance(p.dqkv[a:b], grad), distance(p.dqkv[a:b][:, kv], grad[:, kv])]
    log(f"{'ok  ' if max(pieces) < 1.2e-2 else 'FAIL'} {kernels.mode} {name}: out {pieces[0]:.1e} dqkv {pieces[1]:.1e} dkv {pieces[2]:.1e}")


def time_kernels(kernels, p, name, log):
    l = p.l
    chunks = kernels.chunks(p)
    partial = torch.empty(chunks, p.tokens, l.kv_heads * 2 * l.head_dim, device="cuda") if chunks > 1 else None
    fwd = time_ms(lambda: kernels.forward(p, p.out, p.lse))
    q = time_ms(lambda: kernels.query(p, p.out, p.lse, p.rows, p.dqkv))
    k = time_ms(lambda: kernels.key(p, p.rows, p.dqkv, chunks, partial))

    def both():
        kernels.query(p, p.out, p.lse, p.rows, p.dqkv)
        kernels.key(p, p.rows, p.dqkv, chunks, partial)
    b = time_ms(both)
    t = lambda ms, f: p.flops * f / ms / 1e9
    log(f"{kernels.mode:6} {name:22} forward {fwd:.3f} ms {t(fwd, 1):4.0f} TFLOP/s | backward {b:.3f} ms {t(b, 2.5):4.0f} "
        f"(query {q:.3f} ms {t(q, 1.5):4.0f}, key {k:.3f} ms {t(k, 2):4.0f} done, {chunks} chunks)")


def time_peers(name, log):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    layout, lengths = PERFORMANCE[name]
    if len(set(lengths)) > 1:
        return
    b, s = len(lengths), lengths[0]
    q, k, v = (torch.randn(b, layout.heads, s, layout.head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
               for _ in range(3))
    g = torch.randn_like(q)
    flops = 4 * b * layout.heads * s * s * layout.head_dim / 2
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(backend):
                call = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                fwd = time_ms(call)
                out = call()
                bwd = time_ms(lambda: torch.autograd.grad(out, (q, k, v), g, retain_graph=True))
            log(f"peer   {name:22} forward {fwd:.3f} ms {flops / fwd / 1e9:4.0f} TFLOP/s | backward {bwd:.3f} ms "
                f"{2.5 * flops / bwd / 1e9:4.0f} {backend.name}")
        except RuntimeError as e:
            log(f"peer   {name} {backend.name}: {str(e)[:100]}")


# Shapes to try on Hopper.
VARIANTS = {
    "Forward64": ["64,64,8,3,2", "64,64,8,2,2", "64,64,4,3,4", "64,64,12,2,1", "64,128,8,2,1", "64,128,4,2,2",
                  "64,64,4,3,3", "64,64,16,3,1"],
    "Forward128": ["128,64,12,2,1", "128,64,8,2,2", "128,64,8,2,1", "128,128,8,2,1", "128,64,4,2,3", "128,64,12,3,1",
                   "128,64,16,2,1"],
    "Query64": ["64,64,8,2,2", "64,64,4,2,3", "64,64,4,2,4", "64,64,8,3,2", "64,32,8,3,2", "64,32,4,3,4"],
    "Query128": ["128,64,4,2,2", "128,64,8,2,1", "128,32,4,2,3", "128,32,8,2,1", "128,64,12,1,1", "128,64,4,1,3"],
    "Key64": ["64,64,4,2,3", "64,64,4,3,3", "64,64,8,2,1", "64,64,8,3,1", "64,64,12,2,1", "64,64,4,2,2"],
    "Key128": ["128,64,8,2,1", "128,64,8,3,1", "128,64,4,2,2"],
}


def main():
    global cuda
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("check", "time", "variants", "peers"):
        parser.add_argument("--" + flag, action="store_true")
    parser.add_argument("--modes", nargs="*", default=["wgmma", "mma", "turing"])
    parser.add_argument("--log")
    args = parser.parse_args()
    lines = open(args.log, "w") if args.log else None

    def log(text):
        print(text, flush=True)
        if lines:
            print(text, file=lines, flush=True)

    files = ["flash_forward", "flash_backward", "flash_decode"]
    jobs = {}
    for mode in args.modes:
        arch, flags = MODES[mode]
        for element in ["f16"] if mode == "turing" else ["bf16", "f16"]:
            for file in files:
                jobs[mode, element, file] = (file, arch, element, flags, source(file))
    if args.variants:
        for name, rows in VARIANTS.items():
            file = "flash_forward" if name.startswith("Forward") else "flash_backward"
            kernel = "flash_" + ("" if file == "flash_forward" else "backward_") + re.sub(r"(\d+)$", r"_\1", name.lower())
            for row in rows:
                change = [(r"typedef Shape<[^>]*> " + name + ";", f"typedef Shape<{row}> {name};")]
                jobs[name, row] = (file, "sm_90a", "bf16", [], source(file, change, kernel))
    with concurrent.futures.ProcessPoolExecutor() as pool:
        built = dict(zip(jobs, pool.map(build, jobs.values())))
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    cuda = C.CDLL("libcuda.so.1")
    log(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for key, (cubin, info) in built.items():
        if cubin and any(v[1] for v in info.values()):
            log(f"spills {key[:2]}: " + " ".join(f"{k} {v}" for k, v in info.items() if v[1]))

    good, tables = True, {}
    for mode in args.modes:
        for dtype in (torch.bfloat16, torch.float16):
            if mode == "turing" and dtype == torch.bfloat16:
                continue
            texts = [jobs[mode, ELEMENTS[dtype], file][4] for file in files]
            modules = {file: Module(built[mode, ELEMENTS[dtype], file][0]) for file in files}
            kernels = tables[mode, dtype] = Kernels(mode, texts, modules)
            if not args.check:
                continue
            for name, layout, lengths, options in cases():
                good &= check_case(kernels, name, layout, lengths, options, dtype, log)
            for name, layout, _, options in cases()[:13:2]:
                good &= check_cached(kernels, name, layout, options, dtype, log)
    if args.time:
        for name in PERFORMANCE:
            p = operands(name)
            for mode in args.modes:
                if (mode, torch.bfloat16) in tables:
                    if len(p.lengths) == 16:
                        check_large(tables[mode, torch.bfloat16], p, name, log)
                    time_kernels(tables[mode, torch.bfloat16], p, name, log)
            if args.peers:
                time_peers(name, log)
    if args.variants:
        for name, rows in VARIANTS.items():
            p = operands("falcon-7b 16x1024" if name.endswith("64") else "llama-3-8b 16x1024")
            trusted = tables["wgmma", torch.bfloat16]
            trusted.forward(p, p.out, p.lse)
            trusted.backward(p, p.out, p.lse, p.rows, p.dqkv)
            known = (p.out.clone(), p.lse.clone(), p.dqkv.clone())
            for row in rows:
                cubin, info = built[name, row]
                if cubin is None:
                    log(f"{name} {row}: does not compile")
                    continue
                file = jobs[name, row][0]
                kernels = Kernels("wgmma", [jobs[name, row][4]], {file: Module(cubin)})
                for t in (p.dqkv,) + ((p.out, p.lse) if name.startswith("Forward") else ()):
                    t.copy_(known[0] if t is p.out else known[1] if t is p.lse else known[2])
                    t[::2] = math.nan if t is not p.dqkv else 0.0
                regs = [v for k, v in info.items() if "sum" not in k][0]
                try:
                    if name.startswith("Forward"):
                        call, f = lambda: kernels.forward(p, p.out, p.lse), 1
                        results = [("", time_ms(call))]
                    elif name.startswith("Query"):
                        f = 1.5
                        results = [("", time_ms(lambda: kernels.query(p, p.out, p.lse, p.rows, p.dqkv)))]
                    else:
                        f, results = 2, []
                        for wish in (1, 4, 7, 12) if name == "Key64" else (1, 2):
                            chunks = kernels.chunks(p, wish)
                            partial = torch.empty(chunks, p.tokens, p.l.kv_heads * 2 * p.l.head_dim, device="cuda")
                            call = lambda: kernels.key(p, p.rows, p.dqkv, chunks, partial if chunks > 1 else None)
                            results.append((f" {chunks} chunks", time_ms(call)))
                    got = p.out if name.startswith("Forward") else p.dqkv
                    want = known[0] if name.startswith("Forward") else known[2]
                    error = distance(got[:4096], want[:4096])
                    if name.startswith("Query"):
                        n = p.l.heads * p.l.head_dim
                        error = distance(got[:4096, :n], want[:4096, :n])
                    elif name.startswith("Key"):
                        error = distance(got[:4096, p.l.key_offset:], want[:4096, p.l.key_offset:])
                    good &= error < 2e-3
                    log(f"{name} <{row}> {'' if error < 2e-3 else f'WRONG {error:.1e} '}{regs[0]} registers {regs[1]} spilled: " + ", ".join(
                        f"{ms:.3f} ms {p.flops * f / ms / 1e9:.0f} TFLOP/s{t}" for t, ms in results))
                except RuntimeError as e:
                    log(f"{name} <{row}>: {e}")
    log("all good" if good else "SOMETHING FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
