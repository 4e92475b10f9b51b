"""Makes crates/eyas-backend/tests/fixtures/ops.json: what torch computes on a CPU, in f32, for the operations of a step.

    python tools/golden_ops.py

AdamW with moments of 8 bits is bitsandbytes' own update on a CPU, but for the rounding to the levels of its map: on a
CPU bitsandbytes rounds to 65536 steps first, on a card it takes the nearest level, and so do we. The file was made with torch 2.15.0 and bitsandbytes 0.50.2. It is read
by tests/torch.rs.
"""

import json
import math
from pathlib import Path

import bitsandbytes
import bitsandbytes.backends.cpu.ops as bitsandbytes_cpu
import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(1)
TARGET = Path(__file__).parent.parent / "crates/eyas-backend/tests/fixtures/ops.json"


def values(tensor):
    """The shortest decimals that read back to the same f32."""
    return [float(str(x)) for x in tensor.detach().reshape(-1).numpy()]


def normals(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).requires_grad_()


def unary(name, function, x, **more):
    """A function's output, and the gradient of its input for a random gradient of its output."""
    y = function(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    return {"op": name, "cols": x.shape[-1], "x": values(x), "y": values(y), "dy": values(dy), "dx": values(dx), **more}


def swiglu(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def attention(heads, kv_heads, dim, tokens, window):
    """Scaled dot-product attention of one sequence; rows are [q..., k..., v...]."""
    qkv = normals(tokens, (heads + 2 * kv_heads) * dim)

    def function(qkv):
        q, k, v = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
        q = q.reshape(tokens, heads, dim).transpose(0, 1)
        k = k.reshape(tokens, kv_heads, dim).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
        v = v.reshape(tokens, kv_heads, dim).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
        mask = (distance >= 0) & (distance < window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1).reshape(tokens, heads * dim)

    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "tokens": tokens, "window": window}
    return unary("attention", function, qkv, **shape)


def cross_entropy():
    logits = normals(6, 53, scale=3.0)
    targets = torch.tensor([4, -100, 52, 0, -100, 17])
    loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    return {"vocab": 53, "logits": values(logits), "targets": targets.tolist(), "loss": loss.item(), "dlogits": values(gradient)}


def adamw(weight_decay, max_grad_norm):
    parameter = torch.nn.Parameter(torch.randn(64) * 0.1)
    optimizer = torch.optim.AdamW([parameter], lr=2e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    start, steps = values(parameter), []
    for step in range(1, 21):
        gradient = torch.randn(64) * 0.3
        if step == 7:
            gradient.zero_()
        parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([parameter], max_grad_norm or math.inf)
        optimizer.step()
        state = optimizer.state[parameter]
        steps.append({
            "gradient": values(gradient),
            "norm": norm.item(),
            "params": values(parameter),
            "first_moment": values(state["exp_avg"]),
            "second_moment": values(state["exp_avg_sq"]),
        })
    return {"weight_decay": weight_decay, "max_grad_norm": max_grad_norm, "start": start, "steps": steps}


def to_nearest_level(values, levels, absmax, codes, block_size):
    midpoints = (levels[1:] + levels[:-1]) * 0.5
    for block, start in enumerate(range(0, values.numel(), block_size)):
        piece = values[start : start + block_size]
        absmax[block] = piece.abs().max()
        scaled = piece * (1.0 / absmax[block].clamp(min=1e-38))
        codes[start : start + block_size] = torch.searchsorted(midpoints, scaled).to(torch.uint8)


bitsandbytes_cpu._quant_blockwise_fp32_direct = to_nearest_level


def adamw_8bit(weight_decay):
    """Two blocks, the second not full; gradients of many sizes, as a row of an adapter has them."""
    n = 300
    parameter = torch.nn.Parameter(torch.randn(n) * 0.1)
    optimizer = bitsandbytes.optim.AdamW8bit(
        [parameter], lr=2e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, min_8bit_size=1
    )
    start, steps = values(parameter), []
    spread = 10 ** torch.linspace(-3, 0, n)
    for _ in range(8):
        gradient = torch.randn(n) * spread
        parameter.grad = gradient.clone()
        optimizer.step()
        state = optimizer.state[parameter]
        steps.append({
            "gradient": values(gradient),
            "params": values(parameter),
            "codes": [state["state1"].tolist(), state["state2"].tolist()],
            "absmax": [values(state["absmax1"]), values(state["absmax2"])],
        })
    return {"weight_decay": weight_decay, "start": start, "steps": steps}


def main():
    weight, bias = torch.randn(45), torch.randn(45)
    spread = torch.linspace(-8, 8, 161).reshape(7, 23).requires_grad_()
    layer_norm = unary("layer_norm", lambda x: F.layer_norm(x, (45,), weight, bias, 1e-5), normals(4, 45, scale=2.0))
    rms_norm = unary("rms_norm", lambda x: F.rms_norm(x, (45,), weight, 1e-5), normals(4, 45, scale=2.0))
    for norm in (layer_norm, rms_norm):
        norm |= {"weight": values(weight), "bias": values(bias)}
    golden = {
        "torch": torch.__version__,
        "norms": [layer_norm, rms_norm],
        "activations": [
            unary("gelu", F.gelu, spread),
            unary("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), spread),
            unary("swiglu", swiglu, normals(7, 46, scale=3.0)),
        ],
        "attention": [attention(6, 2, 20, 23, 23), attention(5, 1, 16, 33, 9)],
        "cross_entropy": cross_entropy(),
        "adamw": [adamw(0.0, 0.3), adamw(0.1, None)],
        "adamw_8bit": [adamw_8bit(0.0), adamw_8bit(0.1)],
    }
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
