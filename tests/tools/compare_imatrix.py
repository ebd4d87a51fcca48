#!/usr/bin/env python3
"""Compare an importance matrix of ours with what llama.cpp multiplies, matrix by matrix.

    pip install numpy gguf==0.19.0 llama-cpp-python==0.3.36
    jetforge quantize MODEL --imatrix-from TEXT --write-imatrix IMATRIX.gguf
    python3 tests/tools/compare_imatrix.py MODEL TEXT IMATRIX.gguf

llama.cpp's evaluation callback sees the inputs of every product; here they are squared and summed.
"""
import ctypes
import sys
from pathlib import Path

import llama_cpp as L
import numpy as np
from gguf import GGUFReader

N_CTX = 512


class Tensor(ctypes.Structure):
    """ggml_tensor up to its name."""


Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4), ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32), ("src", ctypes.POINTER(Tensor) * 10), ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64)]

ggml = ctypes.CDLL(str(Path(L.__file__).parent / "lib/libggml-base.so"))
ggml.ggml_op_name.restype = ctypes.c_char_p
sums = {}


def see(tensor, ask, _):
    tensor = ctypes.cast(tensor, ctypes.POINTER(Tensor)).contents
    if ggml.ggml_op_name(tensor.op) != b"MUL_MAT":
        return False
    weight, x = tensor.src[0].contents, tensor.src[1].contents
    if not weight.name.startswith(b"blk."):
        return False
    if not ask:
        data = ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float))
        rows = np.ctypeslib.as_array(data, shape=(x.ne[1], x.ne[0])).astype(np.float64)
        old, n = sums.get(weight.name.decode(), (0, 0))
        sums[weight.name.decode()] = (old + (rows**2).sum(0), n + len(rows))
    return True


def context(model):
    params = L.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
    params.cb_eval = ctypes.cast(CALLBACK, type(params.cb_eval))
    return L.llama_init_from_model(model, params)


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(see)


def main():
    path, text, imatrix = sys.argv[1:4]
    L.llama_backend_init()
    model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
    vocab, ctx = L.llama_model_get_vocab(model), context(model)
    data = Path(text).read_bytes()
    tokens = (L.llama_token * len(data))()
    n = L.llama_tokenize(vocab, data, len(data), tokens, len(data), True, False)
    for start in range(0, n - N_CTX + 1, N_CTX):
        L.llama_memory_clear(L.llama_get_memory(ctx), True)
        window = list(tokens[start:start + N_CTX])
        if L.llama_vocab_get_add_bos(vocab):
            window[0] = L.llama_vocab_bos(vocab)
        batch = L.llama_batch_init(N_CTX, 0, 1)
        batch.n_tokens = N_CTX
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        assert L.llama_decode(ctx, batch) == 0
    ours = {tensor.name: tensor.data.reshape(-1) for tensor in GGUFReader(imatrix).tensors}
    worst = 0
    for name, (theirs, n) in sums.items():
        assert ours[f"{name}.counts"][0] == n, name
        worst = max(worst, abs(ours[f"{name}.in_sum2"] - theirs).sum() / theirs.sum())
    print(f"{len(sums)} matrices; the sums of the worst differ by {worst:.2g} of their total")


main()
