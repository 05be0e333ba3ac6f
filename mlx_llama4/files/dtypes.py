"""The dtypes of safetensors files: their names, and the bytes of an item."""

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
# The floats that a model computes with: their names in config.json and MLX → in safetensors.
FLOATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
FLOAT_DTYPES = tuple(FLOATS.values())
