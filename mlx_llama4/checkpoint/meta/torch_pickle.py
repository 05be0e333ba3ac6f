"""Reads the pickle inside a .pth file as a description, without running it.

A pickle is a program for a stack machine. This machine knows only the instructions that torch.save
writes. Where they would import or call something, it notes what was asked for: it imports nothing,
calls nothing, and builds only dicts and tuples. It knows nothing of files or tensors.
"""

import io
import pickletools
from dataclasses import dataclass, field
from typing import Any, Literal

Argument = Literal["none", "byte", "two bytes", "four bytes", "signed", "number", "text", "lines"]

# Code → name, as in the module pickletools, and the kind of its argument.
INSTRUCTIONS: dict[bytes, tuple[str, Argument]] = {
    b"\x80": ("PROTO", "byte"),
    b".": ("STOP", "none"),
    b"N": ("NONE", "none"),
    b"\x88": ("NEWTRUE", "none"),
    b"\x89": ("NEWFALSE", "none"),
    b"K": ("BININT1", "byte"),
    b"M": ("BININT2", "two bytes"),
    b"J": ("BININT", "signed"),
    b"\x8a": ("LONG1", "number"),
    b"X": ("BINUNICODE", "text"),
    b"c": ("GLOBAL", "lines"),
    b"Q": ("BINPERSID", "none"),
    b"(": ("MARK", "none"),
    b")": ("EMPTY_TUPLE", "none"),
    b"\x85": ("TUPLE1", "none"),
    b"\x86": ("TUPLE2", "none"),
    b"\x87": ("TUPLE3", "none"),
    b"t": ("TUPLE", "none"),
    b"}": ("EMPTY_DICT", "none"),
    b"s": ("SETITEM", "none"),
    b"u": ("SETITEMS", "none"),
    b"q": ("BINPUT", "byte"),
    b"r": ("LONG_BINPUT", "four bytes"),
    b"h": ("BINGET", "byte"),
    b"j": ("LONG_BINGET", "four bytes"),
    b"R": ("REDUCE", "none"),
    b"\x81": ("NEWOBJ", "none"),
    b"b": ("BUILD", "none"),
}

# What a model's state dict asks for; everything else in a checkpoint is data.
TENSOR_FUNCTIONS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
PARAMETER_FUNCTION = "torch._utils._rebuild_parameter"
DICT_FUNCTION = "collections.OrderedDict"
# Some modules save extra state, which we leave out: a file in memory with bytes.
LEFT_OUT = ("_io.BytesIO", "io.BytesIO", "_codecs.encode", "__builtin__.bytes", "builtins.bytes")
# Storage class or dtype → as safetensors spells it; UntypedStorage comes with a dtype.
UNTYPED = "torch.storage.UntypedStorage"
DTYPES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    UNTYPED: "U8",
}
ALLOWED = {*TENSOR_FUNCTIONS, PARAMETER_FUNCTION, DICT_FUNCTION, *LEFT_OUT, *DTYPES}

# A release takes some 50 instructions for each of its thousand tensors.
MAX_INSTRUCTIONS = 2_000_000


class PickleError(ValueError):
    """Why a pickle is not read; the caller adds the file."""


@dataclass(frozen=True)
class Named:
    """A member of a Python module, by its name only."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """What a call of `function` would have built."""

    function: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Stored:
    """A persistent id: what torch.save writes for a storage."""

    id: Any


def read_pickle(data: bytes) -> Any:
    """The object that `data` describes: dicts with string keys, tuples, numbers, strings and the
    classes above. Raises PickleError.
    """
    stream, machine = io.BytesIO(data), _Machine()
    try:
        for _ in range(MAX_INSTRUCTIONS):
            name, kind = _instruction(stream.read(1))
            if name == "STOP":
                (result,) = machine.stack
                return result
            machine.run(name, _argument(stream, kind))
    except PickleError:
        raise
    # An empty stack, an unknown memo, text that is not UTF-8, …
    except (ValueError, IndexError, KeyError, TypeError):
        raise PickleError("is damaged") from None
    raise PickleError("describes far more than a checkpoint has")


def _instruction(code: bytes) -> tuple[str, Argument]:
    if code in INSTRUCTIONS:
        return INSTRUCTIONS[code]
    names = [opcode.name for opcode in pickletools.opcodes if opcode.code.encode("latin1") == code]
    if not names:
        raise PickleError("is damaged")
    raise PickleError(f"uses the instruction {names[0]}, which torch.save does not write")


def _argument(stream: io.BytesIO, kind: Argument) -> Any:
    match kind:
        case "byte":
            return _number(stream, 1)
        case "two bytes":
            return _number(stream, 2)
        case "four bytes":
            return _number(stream, 4)
        case "signed":
            return _number(stream, 4, signed=True)
        case "number":
            return _number(stream, _number(stream, 1), signed=True)
        case "text":
            return _bytes(stream, _number(stream, 4)).decode()
        case "lines":
            lines = [stream.readline().decode("ascii").removesuffix("\n") for _ in range(2)]
            return ".".join(lines)
    return None


def _number(stream: io.BytesIO, size: int, signed: bool = False) -> int:
    return int.from_bytes(_bytes(stream, size), "little", signed=signed)


def _bytes(stream: io.BytesIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise PickleError("is truncated")
    return data


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "GLOBAL":
                stack.append(_named(argument))
            case "BINPERSID":
                stack.append(Stored(stack.pop()))
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items = self._since_mark()
                _set(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":  # attributes, such as an OrderedDict's _metadata: not needed
                stack.pop()
                if not isinstance(stack[-1], dict | Call):
                    raise PickleError("sets attributes of something that has none")

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items


def _named(name: str) -> Named:
    if name not in ALLOWED:
        raise PickleError(f"asks for {name[:100]!r}, which no checkpoint needs; do not trust it")
    return Named(name)


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Named) or not isinstance(arguments, tuple):
        raise PickleError("calls something that is not a function")
    if function.name == DICT_FUNCTION and not arguments:
        return {}
    if function.name in DTYPES or function.name == DICT_FUNCTION:
        raise PickleError(f"calls {function.name}, which torch.save does not")
    return Call(function.name, arguments)


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise PickleError("puts items into something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise PickleError(f"has a name of type {type(key).__name__}")
        if key in target:
            raise PickleError(f"holds {key[:100]!r} twice")
        target[key] = value
