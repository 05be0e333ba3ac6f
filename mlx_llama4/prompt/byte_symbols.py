"""The printable symbol that stands for each byte in a byte-level vocabulary (GPT-2's map)."""


def _symbol_of_byte() -> dict[int, str]:
    """Map printable Latin-1 to itself, and the other bytes to U+0100, U+0101, … in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


SYMBOL_OF_BYTE = _symbol_of_byte()
BYTE_OF_SYMBOL = {symbol: byte for byte, symbol in SYMBOL_OF_BYTE.items()}
