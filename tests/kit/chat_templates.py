"""How the commonest instruct models write a conversation, in templates of our own words, and a tokenizer for them."""

from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = ["The cat sat on the mat.", "the quick brown fox jumps over the lazy dog", "user assistant system model\n\n"]


class Family(NamedTuple):
    """A template, its control tokens, and what else ends a turn.

    Attributes:
        end: the token that ends an assistant's turn.
        plain: added tokens that are not marked as special.
        system: whether it takes a system message.
        ends: of generation_config.json.
    """

    template: str
    special: tuple[str, ...]
    end: str
    plain: tuple[str, ...] = ()
    system: bool = True
    ends: tuple[str, ...] = ()


def _chatml(head: str = "", answer: str = "m.content", prompt: str = "") -> str:
    return (
        head
        + "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{{ "
        + answer
        + " }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n" + prompt + "{% endif %}"
    )


_IM = ("<|im_start|>", "<|im_end|>")
_THINK = ("<think>", "</think>")
_AFTER_THOUGHTS = "m.content.split('</think>')[-1].lstrip('\\n')"
_DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are of help.<|im_end|>\n{% endif %}"
_LAST_THINKS = (
    "('<think>\\n\\n</think>\\n\\n' if loop.last and '</think>' not in m.content else '') + "
    "(m.content if loop.last else " + _AFTER_THOUGHTS + ")"
)
_IF_NOT_THINKING = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"


def _headed(
    begin: str, end: str, *, bos: str = "", trim: bool = True, model: str = "assistant", no_system: bool = False
) -> str:
    """A header with the role's name before each message."""
    return (
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" if no_system else "")
        + bos
        + "{% for m in messages %}{% set name = '"
        + model
        + "' if m.role == 'assistant' else m.role %}"
        + begin.replace("ROLE", "{{ name }}")
        + "{{ m.content"
        + (" | trim" if trim else "")
        + " }}"
        + end
        + "{% endfor %}"
        "{% if add_generation_prompt %}" + begin.replace("ROLE", model) + "{% endif %}"
    )


def _inst(answer: str, *, before: str = "[INST] ", after: str = " [/INST]", system_in: str = "loop.first") -> str:
    """Mistral and Llama 2: users' messages in brackets, the system's words inside the first or the last of them."""
    return (
        "<s>{% if messages[0].role == 'system' %}{% set told = messages[0].content + '\n\n' %}"
        "{% set rest = messages[1:] %}"
        "{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
        + before
        + "{% if "
        + system_in
        + " %}{{ told }}{% endif %}{{ m.content }}"
        + after
        + "{% else %}"
        + answer
        + "</s>{% endif %}{% endfor %}"
    )


FAMILIES = {
    "qwen2.5": Family(
        _chatml(_DEFAULT_SYSTEM), (*_IM, "<|endoftext|>"), "<|im_end|>", ends=("<|im_end|>", "<|endoftext|>")
    ),
    "qwen3": Family(
        _chatml(answer=_LAST_THINKS, prompt=_IF_NOT_THINKING), (*_IM, "<|endoftext|>"), "<|im_end|>", _THINK
    ),
    "qwq": Family(_chatml(answer=_LAST_THINKS, prompt="<think>\n"), (*_IM, "<|endoftext|>"), "<|im_end|>", _THINK),
    "yi": Family(_chatml(), ("<|endoftext|>",), "<|im_end|>", _IM),
    "smollm3": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        (*_IM, "<|endoftext|>"),
        "<|im_end|>",
    ),
    "llama2": Family(_inst(" {{ m.content | trim }} "), ("<s>", "</s>"), "</s>"),
    "llama3": Family(
        _headed("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", bos="<|begin_of_text|>"),
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        "<|eot_id|>",
        ends=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "mistral-7b-v0.1": Family(_inst(" {{ m.content }}"), ("<s>", "</s>"), "</s>"),
    "mistral-7b-v0.3": Family(
        _inst(" {{ m.content | trim }}", after="[/INST]", system_in="loop.last"),
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
    ),
    "mistral-nemo": Family(
        _inst("{{ m.content }}", before="[INST]", after="[/INST]"), ("<s>", "</s>", "[INST]", "[/INST]"), "</s>"
    ),
    "gemma2": Family(
        _headed("<start_of_turn>ROLE\n", "<end_of_turn>\n", bos="<bos>", model="model", no_system=True),
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        system=False,
        ends=("<eos>", "<end_of_turn>"),
    ),
    "phi3": Family(
        _headed("<|ROLE|>\n", "<|end|>\n", trim=False) + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"),
        "<|end|>",
        ends=("<|endoftext|>", "<|end|>"),
    ),
    "phi4": Family(
        _headed("<|im_start|>ROLE<|im_sep|>", "<|im_end|>", trim=False),
        (*_IM, "<|im_sep|>", "<|endoftext|>"),
        "<|im_end|>",
    ),
    "command-r": Family(
        _headed(
            "<|START_OF_TURN_TOKEN|><|ROLE_TOKEN|>", "<|END_OF_TURN_TOKEN|>", bos="<BOS_TOKEN>", model="CHATBOT"
        ).replace("ROLE_TOKEN", "CHATBOT_TOKEN"),
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>",
    ),
    "glm4": Family(
        _headed("<|ROLE|>\n", "", bos="[gMASK]<sop>", trim=False),
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|endoftext|>"),
        "<|user|>",
        ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
    ),
    "deepseek-v3": Family(
        "<s>{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<|Assistant|>"
        "{{ m.content }}</s>{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>{% endif %}",
        ("<s>", "</s>", "<|User|>", "<|Assistant|>"),
        "</s>",
    ),
    "deepseek-r1": Family(
        "<s>{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<|Assistant|>"
        "{{ m.content.split('</think>')[-1] }}</s>{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
        ("<s>", "</s>", "<|User|>", "<|Assistant|>"),
        "</s>",
        _THINK,
    ),
    "zephyr": Family(_headed("<|ROLE|>\n", "</s>\n", trim=False), ("<s>", "</s>"), "</s>"),
    "olmo2": Family(
        "<|endoftext|>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{% if m.role == 'assistant' %}<|endoftext|>"
        "{% endif %}{% if not loop.last or m.role != 'assistant' %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|endoftext|>",),
        "<|endoftext|>",
    ),
    "granite3": Family(
        _headed("<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\n", trim=False),
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
    ),
    "vicuna": Family(
        "{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>{% elif m.role == 'user' %}"
        "USER: {{ m.content }} {% else %}{{ m.content }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        ("<s>", "</s>"),
        "</s>",
    ),
    "internlm2": Family(_chatml("<s>"), ("<s>", "</s>", *_IM), "<|im_end|>", ends=("</s>", "<|im_end|>")),
}
"""By the model that is meant."""


def tokenizer_of(family: Family) -> Any:
    """A byte-level BPE with the family's control tokens, as `load_tokenizer` would give it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        LINES * 4, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in family.special])
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in family.plain])
    eos = next(
        (word for word in ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>") if word in family.special), family.end
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, pad_token=eos)
    tokenizer.chat_template = family.template
    tokenizer.named_ends = tokenizer.convert_tokens_to_ids(list(family.ends))
    return tokenizer
