"""What a Python file says to people."""

import ast
import io
import tokenize
from collections.abc import Iterator


def texts(source: str) -> Iterator[str]:
    """What a module says: each string, `…` for what is put in, and the comments as one text."""
    inside = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield str(node.value)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield " ".join(token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT)
