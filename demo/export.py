#!/usr/bin/python3
"""Writes runs/checkpoint.pt as gallop-demo.gguf: matrices in F16, norms in F32, tokenizer and chat template included."""
import os
import struct
import sys

import numpy as np
import torch

import bpe
import train

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5  # GGUF's value types
TENSOR_F32, TENSOR_F16 = 0, 1
ALIGN = 32
NORMAL, CONTROL = 1, 3  # llama.cpp's token types

# What llama.cpp's built-in "phi3" template gives, so that programs without Jinja format prompts the same way.
# System messages are left out: the model never learned to follow them.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\\n' }}{{ message['content'] | trim }}{{ '<|end|>\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}{{ message['content'] | trim }}{{ '<|end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")


def string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def value(kind, v):
    if kind == STRING:
        return string(v)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], v)


def entry(key, kind, v):
    """One metadata pair; a list becomes an array of `kind`."""
    if isinstance(v, list):
        return string(key) + struct.pack("<IIQ", ARRAY, kind, len(v)) + b"".join(value(kind, x) for x in v)
    return string(key) + struct.pack("<I", kind) + value(kind, v)


def write(path, metadata, tensors):
    """metadata: [(key, type, value)]; tensors: [(name, array)], float16 or float32, shape [out, in] or [n]"""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(entry(*m) for m in metadata)
    offset, body = 0, []
    for name, x in tensors:
        kind = TENSOR_F16 if x.dtype == np.float16 else TENSOR_F32
        head += string(name) + struct.pack(f"<I{x.ndim}QIQ", x.ndim, *x.shape[::-1], kind, offset)  # GGUF names the fastest dimension first
        data = x.tobytes()
        body.append(data + bytes(-len(data) % ALIGN))
        offset += len(body[-1])
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGN) + b"".join(body))


def tensors_of(weights, c):
    """The weights under llama.cpp's names. The output matrix is the embedding, which llama.cpp takes when there is none."""
    hd = c["dim"] // c["heads"]
    half = lambda x: np.ascontiguousarray(x.numpy().astype(np.float16))
    full = lambda x: x.numpy().astype(np.float32)
    yield "token_embd.weight", half(weights["embed.weight"])
    for i in range(c["layers"]):
        w = lambda name: weights[f"layers.{i}.{name}.weight"]
        q, k, v = w("qkv").split((c["heads"] * hd, c["kv_heads"] * hd, c["kv_heads"] * hd))
        gate, up = w("gate_up").chunk(2)
        yield f"blk.{i}.attn_norm.weight", full(w("attn_norm"))
        yield f"blk.{i}.attn_q.weight", half(q)
        yield f"blk.{i}.attn_k.weight", half(k)
        yield f"blk.{i}.attn_v.weight", half(v)
        yield f"blk.{i}.attn_output.weight", half(w("out"))
        yield f"blk.{i}.ffn_norm.weight", full(w("ffn_norm"))
        yield f"blk.{i}.ffn_gate.weight", half(gate)
        yield f"blk.{i}.ffn_up.weight", half(up)
        yield f"blk.{i}.ffn_down.weight", half(w("down"))
    yield "output_norm.weight", full(weights["norm.weight"])


def metadata_of(c, tok):
    return [
        ("general.architecture", STRING, "llama"),
        ("general.type", STRING, "model"),
        ("general.name", STRING, "Gallop demo"),
        ("general.description", STRING, "A small model of twelve layers for trying layer skipping"),
        ("general.license", STRING, "mit"),
        ("general.languages", STRING, ["en"]),
        ("general.file_type", U32, 1),  # mostly F16
        ("general.sampling.temp", F32, 0.0),  # each prompt has one right answer: decode greedily
        ("llama.block_count", U32, c["layers"]),
        ("llama.context_length", U32, train.LONGEST),
        ("llama.embedding_length", U32, c["dim"]),
        ("llama.feed_forward_length", U32, c["ff"]),
        ("llama.attention.head_count", U32, c["heads"]),
        ("llama.attention.head_count_kv", U32, c["kv_heads"]),
        ("llama.attention.layer_norm_rms_epsilon", F32, c["eps"]),
        ("llama.rope.dimension_count", U32, c["dim"] // c["heads"]),
        ("llama.rope.freq_base", F32, c["rope_base"]),
        ("llama.vocab_size", U32, c["vocab"]),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "qwen2"),
        ("tokenizer.ggml.tokens", STRING, tok.tokens),
        ("tokenizer.ggml.token_type", I32, [CONTROL if t in bpe.SPECIAL else NORMAL for t in tok.tokens]),
        ("tokenizer.ggml.merges", STRING, [f"{x} {y}" for x, y in tok.merges]),
        ("tokenizer.ggml.bos_token_id", U32, bpe.END),  # never added; named because readers expect one
        ("tokenizer.ggml.eos_token_id", U32, bpe.END),
        ("tokenizer.ggml.eot_token_id", U32, bpe.END),
        ("tokenizer.ggml.padding_token_id", U32, bpe.END),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, TEMPLATE),
    ]


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(train.HERE, "gallop-demo.gguf")
    saved = torch.load(os.path.join(train.RUNS, "checkpoint.pt"), map_location="cpu")
    tensors = list(tensors_of(saved["model"], saved["config"]))
    write(path, metadata_of(saved["config"], train.tokenizer()), tensors)
    print(f"{path}: {os.path.getsize(path)} bytes, {sum(x.size for _, x in tensors)} parameters, step {saved['at']['step']}, "
          f"{saved['at']['tokens']} tokens")


if __name__ == "__main__":
    main()
