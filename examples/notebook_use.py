"""The library in a notebook, cell by cell.

python examples/notebook_use.py                                  runs all cells, on the demo

Open it in VS Code, PyCharm or (with jupytext) Jupyter, where `# %%` begins a cell. With a real
model MODEL is its folder, Path("scout-4bit"), and the cell that converts the demo is not needed.
"""

# %% The model, opened once a session. Here it is the demo, with 3 million parameters.
import tempfile
from pathlib import Path

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, NOTES, PICTURES
from mlx_llama4.generation.settings import GenerationSettings

temporary = tempfile.TemporaryDirectory()
MODEL = Path(temporary.name) / "demo"
convert(CHECKPOINT, MODEL, Recipe("bfloat16", quantization=None))
chat = Chat.open(MODEL, ChatOptions(GenerationSettings(max_tokens=200)))

# %% A picture: a path, bytes, or a PIL image that an earlier cell made.
from PIL import Image  # noqa: E402

picture = Image.open(PICTURES / "three.png").crop((0, 0, 224, 224))
image = chat.open_image(picture)
print(f"{image.size} pixels → {image.num_tiles} tiles")

# %% Ask; the answer comes in pieces.
for piece in chat.send("Describe the image.", [image]):
    print(piece, end="", flush=True)

# %% Continue: the conversation and its cache carry over. Running a cell again asks again.
answer = "".join(chat.send("How many shapes are there?"))
print(answer)
print(f"{chat.statistics.cached_tokens} of {chat.statistics.prompt_tokens} tokens were cached")

# %% Two ways on from the same point: a fork shares what was read.
other = chat.fork()
other.options.settings = GenerationSettings(max_tokens=200, temperature=0.7, seed=1)
print("".join(other.retry()), "|", "".join(chat.retry()))

# %% A long text is read once. After a reset the next question is about it again.
chat.reset()
chat.read(NOTES)
code = "".join(chat.send("What is the code of walnut?"))
print(code)

# %% The conversation as messages, to keep, show, or turn into a table.
for message in chat.messages:
    print(message["role"], "·", str(message["content"])[:70])

# %% The conversation with its cache in a file; chat.load(path) continues it another day.
saved = chat.save(Path(temporary.name) / "notes.safetensors")
print(f"{saved:,} bytes")

# %% At the end.
temporary.cleanup()
