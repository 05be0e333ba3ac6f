"""Searches for scales and clipping that lower the error of affine quantization.

MLX spans each group's grid from its smallest value to its largest. That wastes codes on outliers: a
narrower grid that clips them often has the smaller squared error. The search tries several widths.
For each it fits scale and bias to the codes by least squares, as llama.cpp's k-quants and HQQ do in
their ways. A group keeps MLX's grid if no width is better, so the result is never worse.
"""

import mlx.core as mx

from mlx_llama4.checkpoint.sources import PackedRows
from mlx_llama4.quantization import Quantization

CLIPPINGS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
BLOCK_VALUES = 2**19  # searched at once; every step makes arrays of this many values


def search_affine(rows: mx.array, packing: Quantization) -> PackedRows:
    """Packs rows, float [..., in], in whole groups. Scales and biases have the rows' dtype."""
    *outer, width = rows.shape
    flat = rows.reshape(-1, width)
    step = max(1, BLOCK_VALUES // width)
    blocks = []
    for start in range(0, len(flat), step):
        block = _search(flat[start : start + step], packing)
        mx.eval(block)
        blocks.append(block)
    weight, scales, biases = (
        mx.concatenate(list(part)).reshape(*outer, -1) for part in zip(*blocks, strict=True)
    )
    return PackedRows(weight, scales, biases, packing)


def _search(rows: mx.array, packing: Quantization) -> tuple[mx.array, mx.array, mx.array]:
    """rows [n, in] → weight, scales, biases"""
    top = 2**packing.bits - 1
    values = rows.astype(mx.float32).reshape(len(rows), -1, packing.group_size)
    _, scales, biases = mx.quantize(rows, packing.group_size, packing.bits)
    best_scale, best_bias = scales[..., None], biases[..., None]
    best_error = _error(values, _codes(values, best_scale, best_bias, top), best_scale, best_bias)
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    for clipping in CLIPPINGS:
        scale = mx.maximum((high - low) * clipping / top, 1e-12)
        bias = low * clipping
        for _ in range(2):
            codes = _codes(values, scale, bias, top)
            scale, bias = _least_squares(values, codes, scale, bias)
        # Rounded as they will be stored, since the codes must fit the stored values.
        scale, bias = scale.astype(rows.dtype), bias.astype(rows.dtype)
        error = _error(values, _codes(values, scale, bias, top), scale, bias)
        better = error < best_error
        best_scale = mx.where(better, scale, best_scale)
        best_bias = mx.where(better, bias, best_bias)
        best_error = mx.minimum(error, best_error)
        mx.eval(best_scale, best_bias, best_error)  # or the arrays of all widths would be in memory
    codes = _codes(values, best_scale, best_bias, top).astype(mx.uint32)
    packed = pack_codes(codes.reshape(rows.shape), packing.bits)
    return packed, best_scale.squeeze(-1), best_bias.squeeze(-1)


def _codes(values: mx.array, scale: mx.array, bias: mx.array, top: int) -> mx.array:
    scale = scale.astype(mx.float32)
    safe = mx.where(scale == 0, 1.0, scale)
    return mx.clip(mx.round((values - bias.astype(mx.float32)) / safe), 0, top)


def _error(values: mx.array, codes: mx.array, scale: mx.array, bias: mx.array) -> mx.array:
    difference = codes * scale.astype(mx.float32) + bias.astype(mx.float32) - values
    return (difference * difference).sum(-1, keepdims=True)


def _least_squares(
    values: mx.array, codes: mx.array, scale: mx.array, bias: mx.array
) -> tuple[mx.array, mx.array]:
    """Scale and bias that bring codes · scale + bias closest; kept where all codes are equal."""
    code_mean, value_mean = codes.mean(-1, keepdims=True), values.mean(-1, keepdims=True)
    spread = codes - code_mean
    variance = (spread * spread).sum(-1, keepdims=True)
    fitted = (spread * (values - value_mean)).sum(-1, keepdims=True) / mx.maximum(variance, 1e-12)
    usable = (variance > 0) & (fitted != 0)
    return mx.where(usable, fitted, scale), mx.where(usable, value_mean - fitted * code_mean, bias)


def pack_codes(codes: mx.array, bits: int) -> mx.array:
    """uint32 [n, in] → uint32 [n, in · bits / 32]; `in` is a multiple of 32.

    In MLX's packing, code i of a row takes the bits from i · bits on of the row's words, lowest
    first.
    """
    codes = codes.reshape(*codes.shape[:-1], -1, 32)
    words: list[mx.array] = [mx.zeros(codes.shape[:-1], mx.uint32) for _ in range(bits)]
    for index in range(32):
        code = codes[..., index]
        word, shift = divmod(index * bits, 32)
        words[word] = words[word] | (code << shift)
        if shift + bits > 32:
            words[word + 1] = words[word + 1] | (code >> (32 - shift))
    return mx.stack(words, axis=-1).flatten(-2)
