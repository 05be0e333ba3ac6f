"""Tokenizer files in tiktoken's format."""

import base64
from pathlib import Path

# "abcd" can come about in three ways, "bcd" in two; " the" needs "he", which outranks it; "ace" is
# the union of no two; "d'" is in one word with an "S" and no other letter behind it.
UNIONS = [b"he", b"cd", b" t", b"bc", b"ab", b"the", b"bcd", b" the", b"abcd", b"12", b"\n\n"]
UNIONS += ["é".encode(), b"  ", b"'s", b"He", b"123", b"ace", b"d'"]
RANKS = {
    token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *UNIONS])
}


def write(path: Path, ranks: dict[bytes, int]) -> Path:
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    path.write_text("".join(lines))
    return path
