"""Read where a model comes from, and under which licence: from how it was given, and from what lies beside its weights.

A name on a hub becomes a link where a model card is published, so only what proves one counts: the model was given by that
name; its folder is a snapshot in Hugging Face's cache; or its card declares the name, as hubs define `base_model`. What
loaders were given (config.json's _name_or_path, adapter_config.json's base_model_name_or_path) proves nothing: `models/math`
is as likely a folder. Nor do cards of programs that copy it into them.
"""

from __future__ import annotations

import os
import re
from typing import Any

from ..parsing import one_line
from ..records import record
from . import hub
from .front_matter import read_card, read_keys, texts
from .hub_licenses import LICENSES
from .verifiable_rewards import rewards_evidence

CARD = "README.md"
_LICENSE = ("license", "license_name", "license_link")
_KEYS = (*_LICENSE, "language", "base_model", "pipeline_tag", "library_name", "tags", "datasets")
_SNAPSHOT = re.compile(r"/models--([^/]+?)(?:--([^/]+))?/snapshots/([^/]+)$")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
# Programs whose cards name what a loader was given, a name or a path: by a tag, and by library_name.
_COPIERS = ("mergekit", "peft", "generated_from_trainer", "llama-factory")
_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/?")
# First parts of relative paths that training scripts use.
_FOLDERS = {
    *("base", "bases", "ckpt", "ckpts", "checkpoint", "checkpoints", "data", "exp", "experiments"),
    *("export", "exports", "home", "llm", "llms", "local", "logs", "lora", "loras"),
    *("merge", "merged", "merges", "mnt", "model", "models", "out", "output", "outputs"),
    *("pretrained", "result", "results", "root", "run", "runs", "save", "saved", "saves"),
    *("sft", "tmp", "weights", "work", "workspace"),
}
_LANGUAGE = re.compile(r"([a-z]{2,3})(?:[-_][a-z0-9]{2,8})*|multilingual|code", re.ASCII)
_WORD = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)


@record(frozen=True)
class License:
    """A licence as cards state it. ids: usually one, such as "apache-2.0". name, link: of one whose id is "other"."""

    ids: tuple[str, ...]
    name: str = ""
    link: str = ""

    def __str__(self) -> str:
        return "other, without a name" if self.unnamed else one_line(self.name or " and ".join(self.ids))

    @property
    def unnamed(self) -> bool:
        """Whether it can't be told which licence this is: that of another model may be another one."""
        return self.ids == ("other",) and not self.name and not self.link

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the entries of a card's metadata. Hugging Face's hub refuses cards with licences that aren't in its list:
        these become "other", with their names."""
        if not set(self.ids) <= LICENSES:
            return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+]+", "-", " and ".join(self.ids)).strip("-")}
        ids: Any = self.ids[0] if len(self.ids) == 1 else list(self.ids)
        further = {"license_name": self.name, "license_link": self.link}
        return {"license": ids, **{key: value for key, value in further.items() if value}}


@record(frozen=True)
class Origin:
    """What is known of a model or adapter besides its weights.

    path: as it was given. name, revision: of its repository on a hub; "" if nothing proves one. linked: whether that is
    surely Hugging Face's, where cards' links lead. made_from: names of the published models that it declares to be made
    from. license: None if none is stated. task: the card's pipeline_tag. rewards: what says that it was trained by
    verifiable rewards; "" if nothing does. trouble: why its card can't be read.
    """

    path: str
    name: str = ""
    revision: str = ""
    linked: bool = True
    made_from: tuple[str, ...] = ()
    license: License | None = None
    languages: tuple[str, ...] = ()
    task: str = ""
    rewards: str = ""
    trouble: str = ""

    @property
    def published(self) -> tuple[str, ...]:
        """Return the nearest published models: itself, or else those that it was made from."""
        return (self.name,) if self.name and self.linked else self.made_from


def read_origin(path: str, folder: str) -> Origin:
    """Return what is known of the model, or adapter, that was given as `path` and lies in `folder`.

    Raises nothing: a card that is damaged or can't be read is a reason in Origin.trouble.
    """
    card = os.path.join(folder, CARD)
    keys: dict[str, Any] = {}
    trouble = ""
    if os.path.lexists(card):
        try:
            keys = read_keys(read_card(card), _KEYS)
        except OSError as error:
            trouble = f"{card}: can't be read ({error.strerror})"
        except ValueError as error:
            trouble = f"{card}: {error}"
    tags = texts(keys.get("tags", []))
    copied = bool({tag.lower() for tag in tags + texts(keys.get("library_name", []))} & set(_COPIERS))
    stated = [_PAGE.sub(r"\1", one) for one in texts(keys.get("base_model", []))]
    declared = [] if copied else [one for one in stated if _is_repository(one, folder)]
    name, revision, linked = _name_of(path, folder)
    return Origin(
        path=path,
        name=name,
        revision=revision,
        linked=linked,
        made_from=tuple(dict.fromkeys(declared)),
        license=_license(keys),
        languages=_languages(keys),
        task=next((one for one in texts(keys.get("pipeline_tag", [])) if _WORD.fullmatch(one)), ""),
        rewards=rewards_evidence(folder, tags, texts(keys.get("datasets", []))),
        trouble=trouble,
    )


def _name_of(path: str, folder: str) -> tuple[str, str, bool]:
    """Return the name and revision of a model's repository, "" where nothing proves them; and whether it is Hugging Face's.

    PaddleNLP, AI Studio and ModelScope keep what they download elsewhere, and may have another model of the same name.
    """
    snapshot = _SNAPSHOT.search(os.path.realpath(folder).replace(os.sep, "/"))
    if hub.is_name(path):
        name, _, revision = path.partition("@")
        return name, revision, snapshot is not None
    if snapshot:
        owner, name, revision = snapshot.groups()
        return f"{owner}/{name}" if name else owner, revision, True
    return "", "", True


def _is_repository(name: str, folder: str) -> bool:
    """Return whether what a card declares is a repository's name, and not a path, as far as that can be seen."""
    if not _NAME.fullmatch(name) or "--" in name or ".." in name:
        return False
    owner, _, rest = name.partition("/")
    if owner.lower() in _FOLDERS or re.fullmatch(r"checkpoint[-_]?\d*", rest):
        return False
    return not any(os.path.lexists(os.path.join(start, name)) for start in ("", folder, os.path.join(folder, os.pardir)))


def _languages(keys: dict[str, Any]) -> tuple[str, ...]:
    """Return the languages that a card's metadata states, as hubs take them: in small letters, without the region."""
    found = [_LANGUAGE.fullmatch(one.lower()) for one in texts(keys.get("language", []))]
    return tuple(dict.fromkeys(one[1] or one[0] for one in found if one))


def _license(keys: dict[str, Any]) -> License | None:
    """Return the licence that a card's metadata states; None if it states none."""
    ids = tuple(one.lower() for one in texts(keys.get("license", [])) if one.lower() not in ("unknown", "null", "none", "~"))
    if not ids:
        return None
    name, link = ("".join(texts(keys.get(key, ""))[:1]) for key in ("license_name", "license_link"))
    # A relative link is to a file of that repository, which the output doesn't have.
    return License(ids, name, link if re.match(r"https?://\S+$", link) else "") if ids == ("other",) else License(ids)
