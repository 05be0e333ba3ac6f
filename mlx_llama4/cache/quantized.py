"""Packed keys and values of a global layer.

At a million tokens nearly all of the cache is in global layers: 49 GB in 16 bits for Scout, 26 GB
in 8 bits, 14 GB in 4. Chunked layers never hold more than one chunk and are not packed.
"""

from collections.abc import Iterator

import mlx.core as mx

from mlx_llama4.cache.kv import KVBuffer, KVCache, Rows, Seen, allocation, ranges
from mlx_llama4.cache.packed_array import PackedArray
from mlx_llama4.quantization import KVQuantization

PARTS = ("codes", "scales", "biases")


class QuantizedKVCache(KVCache):
    """Cache of one global layer, packed once it holds more than `quantization.after` tokens.

    Attention always sees what is stored, for new tokens too. So the same tokens give the same keys
    and values whatever the steps they come in, except for tokens that came before the packing.
    """

    def __init__(self, quantization: KVQuantization):
        super().__init__()
        self.quantization = quantization

    @property
    def is_packed(self) -> bool:
        return "keys" not in self.buffers

    def extend(self, keys: mx.array, values: mx.array, attention_step: int) -> Iterator[Seen]:
        """As KVCache.extend. A single token gets the arrays packed, and reads each once.

        Several tokens would materialise their scores with all keys: 164 GB for a step of 2,048 at
        1M tokens. For them one layer at a time is unpacked, for ordinary attention.
        """
        start, length = self.offset, keys.shape[2]
        if start + length > self.quantization.after:
            self._pack()
        if not self.is_packed:
            yield from super().extend(keys, values, attention_step)
            return
        seen = self._write(self._packed({"keys": keys, "values": values}), start)
        self.offset += length
        all_keys, all_values = self._joined(seen, "keys"), self._joined(seen, "values")
        if length == 1:
            yield 0, 1, all_keys, all_values
        else:
            unpacked = all_keys.dequantized(), all_values.dequantized()
            yield from ranges(*unpacked, 0, length, start, attention_step)

    def reversible(self, length: int) -> int:
        """Stops where the cache is packed: packing cannot be undone."""
        return length if self.is_packed else min(length, self.quantization.after - self.offset)

    def _capacity(self, tokens: int) -> int:
        if self.is_packed:
            return super()._capacity(tokens)
        # An unpacked cache never holds more than `after` tokens.
        return allocation(max(tokens, min(self.reserved, self.quantization.after)))

    def append(self, rows: Rows) -> None:
        if "keys" not in rows:
            self._pack()
        super().append(self._packed(rows) if self.is_packed and "keys" in rows else rows)

    def _pack(self) -> None:
        """Packs what is held. All buffers change in one assignment, so that an interruption cannot
        leave some packed and others not.
        """
        if self.is_packed:
            return
        buffers = {f"{name}.{part}": KVBuffer() for name in self.buffers for part in PARTS}
        if self.offset:
            for name, array in self._packed(self.rows(0, self.offset)).items():
                buffers[name].array = array
        self.buffers = buffers

    def _packed(self, rows: Rows) -> Rows:
        q = self.quantization
        return {
            f"{name}.{part}": array
            for name, row in rows.items()
            for part, array in zip(PARTS, mx.quantize(row, q.group_size, q.bits), strict=True)
        }

    def _joined(self, rows: Rows, name: str) -> PackedArray:
        codes, scales, biases = (rows[f"{name}.{part}"] for part in PARTS)
        return PackedArray(codes, scales, biases, self.quantization)
