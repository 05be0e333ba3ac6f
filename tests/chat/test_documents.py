"""Long documents in a conversation: read once, asked about, gone back to, saved."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_llama4.cache.prefixes import PrefixStore
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.demo.questions import NOTES, PICTURES
from mlx_llama4.errors import CheckpointError, PromptError
from mlx_llama4.generation.detokenizer import StreamingDetokenizer
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.chat_template import ChatTemplate
from mlx_llama4.prompt.template_source import DEFAULT_TEMPLATE
from mlx_llama4.quantization import KVQuantization

QUESTION = "What is the code of walnut?"
ANSWER = "The code of walnut is 407."
CHUNK = 128  # of the demo model


@pytest.fixture
def chat(opened: Chat) -> Iterator[Chat]:
    opened.options = ChatOptions()
    opened.cache = PromptCache(opened.model.make_cache())
    opened.prefixes = PrefixStore(CHUNK, 10**9)
    opened.document = []
    opened.reset()
    yield opened


def say(chat: Chat, text: str) -> str:
    return "".join(chat.send(text))


def test_a_document_is_read_once(chat: Chat) -> None:
    tokens = chat.read(NOTES * 2)
    assert chat.cache.layers[0].offset == tokens > 2 * CHUNK
    assert say(chat, QUESTION) == ANSWER
    assert chat.statistics.cached_tokens == tokens
    chat.reset()  # the document stays
    assert say(chat, "What is 2 plus 3?") == "2 plus 3 is 5."
    assert tokens <= chat.statistics.cached_tokens < tokens + 10
    say(chat, NOTES + QUESTION)  # goes over a border, after which the document's end is still known
    chat.reset()
    assert say(chat, QUESTION) == ANSWER
    assert chat.statistics.cached_tokens == tokens


def test_the_question_is_part_of_the_document_s_message(chat: Chat) -> None:
    """As if both had been said at once: the same tokens, the same answer."""
    chat.read(NOTES)
    first = say(chat, QUESTION)
    ids = chat.cache.ids
    assert len(chat.messages) == 2
    chat.document = []
    chat.reset()
    assert say(chat, NOTES.rstrip("\n") + "\n\n" + QUESTION) == first
    assert list(chat.cache.ids) == list(ids)


def test_templates_that_trim(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a message, as some checkpoints' do: document and question stay apart."""
    chat.read(NOTES)
    say(chat, QUESTION)
    ids = list(chat.cache.ids)
    source = DEFAULT_TEMPLATE.replace("else part.text", "else part.text | trim")
    processor, names = chat.processor, list(chat.processor.tokenizer.special_ids)
    template = ChatTemplate(source, names, {"bos_token": "<|begin_of_text|>"})
    monkeypatch.setattr(processor, "template", template)
    chat.reset()
    tokens = chat.read(NOTES)
    assert say(chat, QUESTION) == ANSWER
    assert chat.statistics.cached_tokens == tokens
    assert list(chat.cache.ids) == ids


def test_a_picture_that_is_a_document_too(chat: Chat) -> None:
    """Shown again, it is not what the document was first said with."""
    star = chat.open_image(PICTURES / "star.png")
    chat.read("", [star])
    say(chat, "What is in the image?")
    list(chat.send("What is in the image?", [star]))
    chat.rewind()
    say(chat, "What is 2 plus 3?")
    assert chat.messages[2]["content"] == "What is 2 plus 3?"


def test_pictures_of_a_document(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither further questions nor going back have them encoded again."""
    chat.read("", [chat.open_image(PICTURES / "star.png")])
    monkeypatch.setattr(Llama4, "image_features", None)
    assert "star" in say(chat, "What is in the image?")
    chat.cache = PromptCache(chat.model.make_cache())
    chat.prefixes = PrefixStore(CHUNK, 0)
    chat.reset()
    assert "star" in say(chat, "What is in the image?")
    assert chat.statistics.cached_tokens == 0


def test_retry_and_edit(chat: Chat) -> None:
    say(chat, "My name is Ada.")
    first = say(chat, "What is 2 plus 3?")
    cached = chat.statistics.cached_tokens
    assert "".join(chat.retry()) == first
    assert chat.statistics.cached_tokens > cached
    assert "".join(chat.retry("What is my name?")) == "Your name is Ada."
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[2]["content"] == "What is my name?"


def test_retry_keeps_document_and_pictures(chat: Chat) -> None:
    chat.read(NOTES)
    say(chat, "What is 2 plus 3?")
    assert "".join(chat.retry(QUESTION)) == ANSWER
    chat.document = []
    chat.reset()
    list(chat.send("Describe the image.", [chat.open_image(PICTURES / "star.png")]))
    assert "star" in "".join(chat.retry("What is in the image?"))


def test_a_refused_retry_changes_nothing(chat: Chat) -> None:
    with pytest.raises(PromptError, match="nothing has been asked yet"):
        chat.retry()
    say(chat, "What is 2 plus 3?")
    before = list(chat.messages)
    with pytest.raises(PromptError, match="context holds 32,768"):
        list(chat.retry(NOTES * 300))
    assert chat.messages == before


def test_a_question_that_needs_lost_pictures_costs_nothing(chat: Chat, tmp_path: Path) -> None:
    """The cache is as it was, though no prefixes are kept: what it held cannot be read again."""
    list(chat.send(NOTES * 2 + QUESTION, [chat.open_image(PICTURES / "star.png")]))
    chat.save(tmp_path / "saved", small=True)
    chat.features, chat.prefixes = ImageFeatureCache(), PrefixStore(CHUNK, 0)
    chat.load(tmp_path / "saved")
    held = len(chat.cache.ids)
    assert held >= 2 * CHUNK
    before = list(chat.messages)
    with pytest.raises(PromptError, match="needs the pictures again"):
        list(chat.retry("What is in the image?"))
    assert chat.messages == before
    assert say(chat, "What is 2 plus 3?") == "2 plus 3 is 5."
    assert chat.statistics.cached_tokens == held


def test_rewind(chat: Chat) -> None:
    chat.read(NOTES)
    say(chat, QUESTION)
    say(chat, "What is 2 plus 3?")
    for bad in (0, 3, -1):
        with pytest.raises(PromptError, match=f"cannot go back {bad} questions; 2 were asked"):
            chat.rewind(bad)
    chat.rewind()
    assert len(chat.messages) == 2
    chat.rewind()
    assert chat.messages == []
    assert say(chat, QUESTION) == ANSWER  # the document waits for a question again
    assert chat.statistics.cached_tokens > CHUNK


def test_rewind_over_many_borders_is_exact(chat: Chat) -> None:
    """Against a conversation that never was anything else."""
    say(chat, "My name is Ada.")
    say(chat, NOTES * 3 + QUESTION)
    chat.rewind()
    answer = say(chat, "What is my name?")
    ids = list(chat.cache.ids)
    chat.cache = PromptCache(chat.model.make_cache())
    assert "".join(chat.retry()) == answer == "Your name is Ada."
    assert list(chat.cache.ids) == ids


def test_forks_go_their_own_ways(chat: Chat) -> None:
    say(chat, "My name is Ada.")
    other = chat.fork()
    assert say(other, "What is 2 plus 3?") == "2 plus 3 is 5."
    assert other.statistics.cached_tokens > 0
    assert say(chat, "What is my name?") == "Your name is Ada."
    assert say(other, "What is my name?") == "Your name is Ada."
    assert (len(chat.messages), len(other.messages)) == (4, 6)


def test_saved_and_loaded(chat: Chat, demo_folder: Path, tmp_path: Path) -> None:
    chat.read(NOTES, [chat.open_image(PICTURES / "star.png")])
    say(chat, QUESTION)
    tokens = len(chat.cache.ids)
    chat.save(tmp_path / "full")
    chat.save(tmp_path / "small", small=True)
    answers = []
    for name in ("full", "small"):
        other = Chat.open(demo_folder)
        other.load(tmp_path / name)
        assert other.prefixes.nbytes == 0  # the end of a conversation is no document's
        assert [message["role"] for message in other.messages] == ["user", "assistant"]
        answers.append(say(other, "What is in the image?"))
        assert other.statistics.cached_tokens == (
            tokens if name == "full" else tokens // CHUNK * CHUNK
        )
        other.rewind(2)
        assert say(other, QUESTION) == ANSWER
    assert answers[0] == answers[1]


def test_a_damaged_conversation_changes_nothing(chat: Chat, tmp_path: Path) -> None:
    chat.read(NOTES)
    chat.save(tmp_path / "a")
    damaged = (tmp_path / "a").read_bytes().replace(b'"document_turn"', b'"document_tern"')
    (tmp_path / "a").write_bytes(damaged)
    cache = chat.cache
    with pytest.raises(CheckpointError, match="a is damaged; make it again"):
        chat.load(tmp_path / "a")
    assert chat.cache is cache


def test_saved_before_the_rest_is_read(chat: Chat, demo_folder: Path, tmp_path: Path) -> None:
    """The pictures of what a small file leaves out are still in a file that is made of it."""
    chat.read(NOTES)
    say(chat, "What is 2 plus 3?")
    list(chat.send("What is in the image?", [chat.open_image(PICTURES / "star.png")]))
    assert chat.cache.images[0].start > len(chat.cache.ids) // CHUNK * CHUNK
    for small in (True, False):
        chat.save(tmp_path / "saved", small)
        chat = Chat.open(demo_folder)
        chat.load(tmp_path / "saved")
        assert not chat.cache.images
    assert "star" in "".join(chat.retry("What is in the image?"))


def test_saved_after_an_interruption_among_prefixes(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = PrefixStore._append

    def interrupted(self: PrefixStore, *args: object) -> None:
        append(self, *args)
        raise KeyboardInterrupt

    chat.read(NOTES * 2)
    say(chat, QUESTION)
    chat.document = []
    chat.reset()
    say(chat, NOTES + QUESTION)
    chat.reset()
    monkeypatch.setattr(PrefixStore, "_append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat.read(NOTES * 2)
    monkeypatch.undo()
    assert chat.cache.layers[0].offset > len(chat.cache.ids) > 0
    chat.save(tmp_path / "saved")
    chat.load(tmp_path / "saved")
    chat.read(NOTES * 2)
    assert say(chat, QUESTION) == ANSWER


def test_what_was_forgotten_is_not_saved(chat: Chat, tmp_path: Path) -> None:
    tokens = chat.read(NOTES * 2)
    say(chat, NOTES + QUESTION)
    chat.reset()
    chat.save(tmp_path / "a")
    chat.load(tmp_path / "a")
    assert len(chat.cache.ids) == tokens
    assert say(chat, QUESTION) == ANSWER
    assert chat.statistics.cached_tokens == tokens


def test_packed_conversations(demo_folder: Path, tmp_path: Path) -> None:
    """Saved, loaded with the packing that the file has, gone back over a border."""
    packed = Chat.open(demo_folder, ChatOptions(kv_quantization=KVQuantization(8)))
    packed.read(NOTES * 2)
    assert say(packed, QUESTION) == ANSWER
    packed.save(tmp_path / "packed")
    plain = Chat.open(demo_folder)
    assert (tmp_path / "packed").stat().st_size < 0.8 * plain.cache.nbytes + 10**6
    plain.load(tmp_path / "packed")
    assert plain.options.kv_quantization == KVQuantization(8)
    plain.rewind()
    assert say(plain, QUESTION) == ANSWER
    other = Chat.open(demo_folder, ChatOptions(kv_quantization=KVQuantization(4)))
    with pytest.raises(CheckpointError, match="of 8 bits in groups of 64, not 4 in 64"):
        other.load(tmp_path / "packed")


def test_the_system_prompt_of_a_saved_conversation_stays(chat: Chat, tmp_path: Path) -> None:
    """Without it the document would have to be read again, which comes after it."""
    chat.options.system = "You are a helpful assistant."
    chat.reset()
    tokens = chat.read(NOTES * 2)
    chat.save(tmp_path / "saved")
    chat.options = ChatOptions(system="Another.")
    chat.load(tmp_path / "saved")
    assert say(chat, QUESTION) == ANSWER
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "You are a helpful assistant."}]
    assert say(chat, QUESTION) == ANSWER
    assert chat.statistics.cached_tokens >= tokens


def test_a_fork_that_loads_packed_ones_leaves_the_other_plain(
    chat: Chat, demo_folder: Path, tmp_path: Path
) -> None:
    packed = Chat.open(demo_folder, ChatOptions(kv_quantization=KVQuantization(8)))
    packed.read(NOTES * 2)
    packed.save(tmp_path / "packed")
    other = chat.fork()
    other.load(tmp_path / "packed")
    other.reset()
    other.document = []
    say(other, "What is 2 plus 3?")  # what gave way to it is kept, packed
    tokens = chat.read(NOTES * 2)
    assert len(chat.cache.ids) == tokens
    assert say(chat, QUESTION) == ANSWER


def test_an_interrupted_reading_goes_on(chat: Chat) -> None:
    chat.options.prefill_step = 64

    def stop(done: int, total: int) -> None:
        if done >= 192:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.read(NOTES * 2, on_prefill=stop)
    assert len(chat.cache.ids) == 192
    seen: list[int] = []
    chat.read(NOTES * 2, on_prefill=lambda done, total: seen.append(done))
    assert seen[0] == 256
    assert say(chat, QUESTION) == ANSWER


def test_saved_after_an_interruption(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C mostly comes while a token is awaited, and the layers hold that already."""

    def stop(self: StreamingDetokenizer, token: int) -> str:
        raise KeyboardInterrupt

    pieces = chat.send("What is a llama?")
    next(pieces)
    monkeypatch.setattr(StreamingDetokenizer, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
    monkeypatch.undo()
    assert {layer.offset for layer in chat.cache.layers} == {len(chat.cache.ids)}
    messages = chat.messages
    chat.save(tmp_path / "saved")
    chat.load(tmp_path / "saved")
    assert chat.messages == messages
    assert say(chat, "What is 2 plus 3?") == "2 plus 3 is 5."


def test_memory_bounds_the_context(chat: Chat) -> None:
    """Prompts that leave no room are refused, answers end where it does."""
    chat.options.max_context = 30
    say(chat, "What is a llama?")
    assert chat.statistics.finish_reason == "length"
    assert chat.statistics.prompt_tokens + chat.statistics.generated_tokens == 30
    with pytest.raises(PromptError, match=r"this machine's memory holds 30, .*--kv-bits"):
        say(chat, QUESTION)
    with pytest.raises(PromptError, match="memory holds 30"):
        chat.read(NOTES)
    assert len(chat.messages) == 2


def test_what_cannot_be_read_or_saved(chat: Chat, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="the document is empty"):
        chat.read(" \n")
    with pytest.raises(PromptError, match="nothing has been read or said yet"):
        chat.save(tmp_path / "a")
    anonymous = Chat(chat.model, chat.processor)
    list(anonymous.send("Hello"))
    with pytest.raises(PromptError, match=r"make it with Chat.open\(folder\)"):
        anonymous.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())
