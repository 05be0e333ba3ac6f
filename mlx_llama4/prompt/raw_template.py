"""Text as it is, for base models, which know no turns."""

from mlx_llama4.prompt.chat_template import ChatTemplate
from mlx_llama4.prompt.tokenizer import Tokenizer
from mlx_llama4.prompt.windows import BEGIN_OF_TEXT


def raw_template(tokenizer: Tokenizer) -> ChatTemplate:
    """<|begin_of_text|> and what the only message says, for the model to go on with.

    Raises PromptError if the tokenizer has no such token.
    """
    tokenizer.special_id(BEGIN_OF_TEXT)
    source = BEGIN_OF_TEXT + "{{ messages[0].content }}"
    return ChatTemplate(source, list(tokenizer.special_ids), {})
