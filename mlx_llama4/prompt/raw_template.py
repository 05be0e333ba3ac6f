"""Pass text through unchanged, for base models, which know no turns."""

from mlx_llama4.prompt.chat_template import ChatTemplate
from mlx_llama4.prompt.tokenizer import Tokenizer
from mlx_llama4.prompt.windows import BEGIN_OF_TEXT


def raw_template(tokenizer: Tokenizer) -> ChatTemplate:
    """Make a template of <|begin_of_text|> and the only message's text, for the model to continue.

    Raises PromptError if the tokenizer has no such token.
    """
    tokenizer.special_id(BEGIN_OF_TEXT)
    source = BEGIN_OF_TEXT + "{{ messages[0].content }}"
    return ChatTemplate(source, list(tokenizer.special_ids), {})
