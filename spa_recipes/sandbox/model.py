"""A language model and a tokenizer that are just large enough for the world."""

from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.sandbox.world import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = "<pad>", "<unk>", "<user>", "<assistant>", "<end>"
SPECIAL_TOKENS = (PAD, UNKNOWN, USER, ASSISTANT, END)
MAX_TOKENS = 256

# Special tokens are cut out of the text before it is split at spaces, so no spaces are needed around them.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ('user', 'assistant') -%}
{{ raise_exception('the sandbox model knows the roles user and assistant only, not ' ~ message['role']) }}
{%- endif -%}
{{ '<' ~ message['role'] ~ '>' ~ message['content'] ~ '<end>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}
"""


def build_model(
    out_dir: Path,
    *,
    hidden_size: int = 96,
    num_layers: int = 2,
    num_heads: int = 4,
    intermediate_size: int = 288,
    initializer_range: float = 0.06,
    seed: int = 0,
) -> None:
    """Write a folder with an untrained Llama and its tokenizer, loadable by the `Auto` classes of transformers.

    The default `initializer_range` is three times the usual one: with 0.02 a model of this size spends its few
    training steps without learning to stay on the topic. The caller's random state is left as it was.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = _build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        intermediate_size=intermediate_size,
        initializer_range=initializer_range,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)


def _build_tokenizer() -> "PreTrainedTokenizerFast":
    """One token for each word; text of the world is the same after encoding and decoding."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *vocabulary()])}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=MAX_TOKENS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
