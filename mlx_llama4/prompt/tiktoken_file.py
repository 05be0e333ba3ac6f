"""Read tokenizer.model as Meta ships it: byte strings and their ranks, in tiktoken's format.

tiktoken joins the neighbours whose union has the lowest rank. The `tokenizers` library needs the
pairs themselves, in order: all pairs that make a token, token by token. The splitting pattern and
the special tokens are in no file; they are taken from llama-models, models/llama4/tokenizer.py.
"""

import base64
import json
from pathlib import Path

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing

from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.foreign import stand_in
from mlx_llama4.prompt.byte_symbols import SYMBOL_OF_BYTE
from mlx_llama4.prompt.template_source import DEFAULT_TEMPLATE

FILE_NAME = "tokenizer.model"

# A word with at most one other character before it, split where lower case turns to upper case;
# up to three digits; other characters with a space before and line ends after; white space.
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CAPITAL, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITAL}*{SMALL}+{CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITAL}+{SMALL}*{CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# The vocabulary has room for this many special tokens.
NUM_SPECIAL_TOKENS = 2048
BEGIN_OF_TEXT, END_OF_TURN, PAD = "<|begin_of_text|>", "<|eot|>", "<|finetune_right_pad|>"


def special_tokens() -> list[str]:
    """Names of the special tokens in order of their ids, which follow those of the byte strings."""
    names = [BEGIN_OF_TEXT, "<|end_of_text|>"]
    names += ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    names += ["<|header_start|>", "<|header_end|>", "<|eom|>", END_OF_TURN, "<|step|>"]
    names += _reserved("text_post_train", 0, 6)
    names += ["<|python_start|>", "<|python_end|>", PAD]
    names += _reserved("text_post_train", 8, 69)
    names += ["<|image_start|>", "<|image_end|>"]
    names += _reserved("vision", 0, 2)
    names += ["<|tile_x_separator|>", "<|tile_y_separator|>"]
    names += _reserved("vision", 2, 6)
    names += ["<|image|>", *_reserved("vision", 6, 7), "<|patch|>"]
    names += _reserved("vision", 7, 1048)
    names += _reserved("reasoning", 0, 8)
    names += ["<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"]
    rest = NUM_SPECIAL_TOKENS - len(names)
    return names + [f"<|reserved_special_token_{index}|>" for index in range(rest)]


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read byte strings and their ranks, which are their ids.

    Raises CheckpointError for a damaged file.
    """
    try:
        data = path.read_bytes()
    except OSError as failure:
        raise CheckpointError(f"cannot read {path}: {failure.strerror or failure}") from None
    if (problem := stand_in(path, data)) is not None:
        raise CheckpointError(problem)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if int(rank) != len(ranks) or not token or token in ranks:
                raise ValueError
        except ValueError:
            raise CheckpointError(
                f"{path}: line {number} is not the next byte string and its rank; download it again"
            ) from None
        ranks[token] = len(ranks)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the 256 bytes, so it is not a Llama 4 tokenizer; "
            "download it again"
        )
    return ranks


def load_fast_tokenizer(path: Path) -> FastTokenizer:
    """Build a tokenizer with the reference's ids. Takes some seconds for 200,000 byte strings.

    Raises CheckpointError for a damaged file.
    """
    ranks = read_ranks(path)
    vocabulary = {_symbols(token): rank for token, rank in ranks.items()}
    # A whole word that is a token is not split further.
    model = BPE(vocabulary, _merges(ranks), ignore_merges=True)
    fast = FastTokenizer(model)
    fast.pre_tokenizer = Sequence(
        [Split(Regex(PATTERN), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    fast.decoder = ByteLevelDecoder()
    fast.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special_tokens()]
    )
    # For callers that do not use a chat template.
    fast.post_processor = TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT}:0 $A:0 {BEGIN_OF_TEXT}:1 $B:1",
        special_tokens=[(BEGIN_OF_TEXT, len(ranks))],
    )
    return fast


def tokenizer_files(path: Path) -> dict[str, str]:
    """Make equivalent files for Hugging Face's readers, which load faster: name → contents.

    Raises CheckpointError for a damaged file.
    """
    config = {
        "bos_token": BEGIN_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": PAD,
        "processor_class": "Llama4Processor",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": load_fast_tokenizer(path).to_str() + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "chat_template.jinja": DEFAULT_TEMPLATE,
    }


def _reserved(group: str, start: int, stop: int) -> list[str]:
    return [f"<|{group}_reserved_special_token_{index}|>" for index in range(start, stop)]


def _symbols(token: bytes) -> str:
    return token.decode("latin-1").translate(SYMBOL_OF_BYTE)


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """Every pair of tokens whose union is a token, ordered by that token's rank."""
    merges: list[tuple[str, str]] = []
    for token in ranks:  # in order of rank
        pairs = [
            (ranks[token[:cut]], ranks[token[cut:]], cut)
            for cut in range(1, len(token))
            if token[:cut] in ranks and token[cut:] in ranks
        ]
        symbols = _symbols(token)
        merges += [(symbols[:cut], symbols[cut:]) for _, _, cut in sorted(pairs)]
    return merges
