"""The small files of a model, in a folder or on the Hub. Nothing heavy is imported, and no weights are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.data.commits import commit_of, is_commit
from spa_recipes.data.hub import hub_error
from spa_recipes.data.places import is_path, no_such_folder
from spa_recipes.data.template import MAX_FILE_BYTES
from spa_recipes.errors import DataError
from spa_recipes.state.reading import read_text


class ModelFiles(NamedTuple):
    """The small files of a model in a folder or on the Hub."""

    location: str
    revision: str | None

    @property
    def local(self) -> bool:
        """Whether it is a folder on this disk."""
        return Path(self.location).is_dir()

    def at_commit(self) -> "ModelFiles":
        """The files of the commit that is meant, which are the same however often one looks.

        Raises:
            DataError: there is no such model. TryAgainError: the Hub cannot be reached.
        """
        if self.local or is_commit(self.revision):
            return self
        if is_path(self.location):
            raise no_such_folder(self.location)
        return self._replace(revision=commit_of("model", self.location, self.revision) or self.revision)

    def find(self, name: str, *, needed: bool = False) -> Path | None:
        """A file, fetched from the Hub if it has to be; None where there is none.

        Raises:
            DataError, TryAgainError: the Hub does not give it; where it cannot be asked, for a `needed` file only.
        """
        if self.local:
            path = Path(self.location) / name
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        revision = self.at_commit().revision
        try:
            return Path(hf_hub_download(self.location, name, revision=revision))
        except EntryNotFoundError as error:  # also: not in the cache, and the Hub cannot be asked
            if needed and type(error).__name__ == "LocalEntryNotFoundError":
                raise hub_error("model", self.location, error) from error
            return None
        except Exception as error:  # the Hub client and its network library raise what they like
            raise hub_error("model", self.location, error) from error

    def has(self, name: str) -> bool:
        """Whether there is such a file, without fetching it."""
        if self.local:
            return (Path(self.location) / name).is_file()
        from huggingface_hub import HfApi, try_to_load_from_cache

        if isinstance(try_to_load_from_cache(self.location, name, revision=self.revision), str):
            return True
        if hub_is_offline():
            return False
        try:
            return HfApi().file_exists(self.location, name, revision=self.revision)
        except Exception as error:  # as above
            raise hub_error("model", self.location, error) from error

    def read(self, name: str, *, needed: bool = False) -> dict[str, Any]:
        """A JSON object; empty where there is no such file.

        Raises:
            DataError: it is no JSON object; as `find`.
        """
        path = self.find(name, needed=needed)
        if path is None:
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{name} cannot be read ({reason})", where=self.location, fix="save it again") from error
        if not isinstance(value, dict):
            raise DataError(f"{name} is not a JSON object", where=self.location, fix="save the model again")
        return value

    def chat_template(self) -> str:
        """The text of the model's own chat template, wherever it stands; empty where it has none.

        Raises:
            DataError: as `find` and `read`.
        """
        path = self.find("chat_template.jinja")
        if path is not None:
            return read_text(path, limit=MAX_FILE_BYTES)
        return str(self.read("tokenizer_config.json").get("chat_template") or "")

    def vocabulary(self) -> dict[str, int]:
        """Tokens and their ids as `tokenizer.json` lists them; empty where that cannot be told."""
        content = self.read("tokenizer.json")
        try:
            words = content["model"]["vocab"]
            # A dictionary, or the pieces of a Unigram model with their scores, in the order of their ids.
            vocabulary = words if isinstance(words, dict) else {piece: i for i, (piece, _) in enumerate(words)}
            return vocabulary | _added(content)
        except (KeyError, TypeError, ValueError):
            return {}

    def added_tokens(self) -> dict[str, int]:
        """Those of `vocabulary` that are found in a text as a whole, control tokens among them."""
        try:
            return _added(self.read("tokenizer.json"))
        except (KeyError, TypeError):
            return {}


def _added(content: Mapping[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in content["added_tokens"]}


def embeddings_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model has an embedding for, as its configuration says; None where it says nothing."""
    rows = inner(config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def inner(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with that of its language model, which stands inside where the model sees images, too."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def hub_is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
