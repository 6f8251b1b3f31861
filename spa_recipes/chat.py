"""A policy that answers a person turn by turn: what `spa chat` talks to. Prompts are rendered as in a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from spa_recipes.data.model_files import ModelFiles
from spa_recipes.data.rows import Message
from spa_recipes.recipe.schema import Model
from spa_recipes.run.downloads import check_named_model
from spa_recipes.run.intact import check_made_model
from spa_recipes.run.model_preflight import context_of, refuse_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spa_recipes.data.chat import Renderer

MOST_TOKENS = 8192
"""Tokens of a conversation that are read, where the model has positions for more."""


class Reply(NamedTuple):
    """An answer, and whether the conversation lost its beginning so that there was room for it."""

    text: str
    cut: bool


class Talker:
    """A loaded policy.

    Args:
        location: a folder or Hub id.
        name: what it is called.
        temperature: 0 is greedy.
        max_tokens: tokens of an answer at most; where the model has few positions, half of them.
        notice: called with what a person should know about the chat template.

    Raises:
        DataError, TryAgainError: there is no such model, or it cannot be loaded or has no chat template.
        RecipeError: its configuration names compiled code on the Hub.
    """

    def __init__(
        self, location: str, name: str, *, temperature: float, max_tokens: int, notice: Callable[[str], None]
    ) -> None:
        self.name = name
        check_made_model(location)
        files = ModelFiles(location, None).at_commit()
        check_named_model(location, files.revision)
        refuse_kernels(files, files.read("config.json"))
        from spa_recipes.data.chat import Renderer, load_tokenizer  # slow, and most mistakes are found by now
        from spa_recipes.models.loading import for_inference, load_causal_lm

        room = min(MOST_TOKENS, context_of(files) or MOST_TOKENS)
        self._temperature, self._max_tokens = temperature, min(max_tokens, room // 2)
        self._renderer: Renderer = Renderer(
            load_tokenizer(location, revision=files.revision),
            max_prompt_length=room - self._max_tokens,
            max_length=room,
            notice=notice,
        )
        settings = Model(model_name_or_path=location, revision=files.revision)
        self._model: PreTrainedModel = for_inference(load_causal_lm, settings)

    def answer(self, messages: list[Message], give: Callable[[str], None], stopped: Callable[[], bool]) -> Reply:
        """Answer a conversation that ends with the user.

        Args:
            give: called with each further part of the text.
            stopped: asked before each token; once it is true, the answer ends as it is.
        """
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        prompt = self._renderer.render_prompt(messages)
        ids_BT = torch.tensor([prompt.ids], device=self._model.device)
        sampling = {"temperature": self._temperature, "top_k": 0, "top_p": 1.0} if self._temperature else {}
        self._model.generation_config = GenerationConfig()  # as in a run, that of the folder has no effect
        with torch.inference_mode():
            output_BT = self._model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                generation_config=GenerationConfig(
                    max_new_tokens=self._max_tokens,
                    do_sample=bool(self._temperature),
                    eos_token_id=self._renderer.stop_ids,
                    pad_token_id=self._renderer.end_of_turn_id,
                    **sampling,
                ),
                streamer=_streamer(self._renderer.tokenizer, give),
                stopping_criteria=StoppingCriteriaList(
                    [lambda ids, scores, **_: torch.full((len(ids),), stopped(), device=ids.device)]
                ),
            )
        return Reply(self._renderer.decode(output_BT[0, len(prompt.ids) :].tolist()), prompt.cut)


def _streamer(tokenizer: Any, give: Callable[[str], None]) -> Any:
    """What hands on the text of tokens, as soon as more tokens cannot change it."""
    from transformers import TextStreamer

    class Parts(TextStreamer):  # type: ignore[misc]  # transformers is not typed
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            give(text)

    return Parts(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
