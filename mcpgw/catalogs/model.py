"""What an entry of a catalog is, whatever format it was published in.

An entry offers *options*: ways to get the server, such as a package of npm, an image, or an address. An
option is a server definition with blanks; its *inputs* say what goes into them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Transport = Literal["stdio", "http", "sse"]


class CatalogFault(ValueError):
    """A catalog, or an entry of one, that cannot be read; the text says why and is for people."""


@dataclass(frozen=True, slots=True)
class Input:
    """What an option needs to be told.

    `default` is the publisher's. `repeated` inputs take a list, of which each makes a word or words of its
    own. `placeholder` shows what a value looks like.
    """

    name: str
    description: str = ""
    required: bool = False
    secret: bool = False
    default: str | tuple[str, ...] | None = None
    choices: tuple[str, ...] = ()
    repeated: bool = False
    placeholder: str = ""

    def to_json(self, *, with_default: bool = True) -> dict[str, Any]:
        """As REST answers it; what is not known is left out."""
        default = list(self.default) if isinstance(self.default, tuple) else self.default
        optional = {
            "description": self.description,
            "default": default if with_default else None,
            "choices": list(self.choices),
            "placeholder": self.placeholder,
        }
        told = {name: value for name, value in optional.items() if value not in ("", None, [])}
        return {
            "name": self.name,
            "required": self.required,
            "secret": self.secret,
            "repeated": self.repeated,
        } | told


@dataclass(frozen=True, slots=True)
class Slot:
    """A blank for the input of this name.

    `form` is how its value stands there: as it is, or as a folder that a container has under the same path
    (``PATH:PATH``; ``HERE:THERE`` stays what it is), or the path that such a folder has inside.
    """

    name: str
    form: Literal["text", "volume", "volume-target"] = "text"


Template = tuple[str | Slot, ...]
"""Text with blanks. The text is the publisher's, and is never looked at for references."""


@dataclass(frozen=True, slots=True)
class Argument:
    """Words of a command line; left out where an input of a blank, or one that it `needs`, has no value.

    `switch` names an input that must be ``true`` for the words to stand there.
    """

    words: tuple[Template, ...]
    needs: tuple[str, ...] = ()
    switch: str = ""

    def slots(self) -> Iterator[Slot]:
        """The blanks in it."""
        for word in self.words:
            yield from slots_of(word)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to get a server.

    `id` names it among the options of its entry. `refused` says why it cannot be installed, where it cannot.
    `is_private` is set where the texts are somebody's own configuration, whose values may be secrets.
    """

    id: str
    transport: Transport
    command: Template = ()
    arguments: tuple[Argument, ...] = ()
    environment: Mapping[str, Template] = field(default_factory=dict)
    folder: Template = ()
    url: Template = ()
    headers: Mapping[str, Template] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    enabled: bool = True
    refused: str = ""
    notes: tuple[str, ...] = ()
    is_private: bool = False

    def to_json(self) -> dict[str, Any]:
        """As REST answers it: what it runs or reaches, with ``<NAME>`` for blanks, and what it needs."""
        shown: dict[str, Any] = {"id": self.id, "transport": self.transport}
        if self.command:
            words = [word for argument in self.arguments for word in argument.words]
            shown["command"] = [shown_text(word) for word in (self.command, *words)]
            shown["environment"] = self._named(self.environment)
        if self.url:
            shown["url"] = shown_text(self.url)
            shown["headers"] = self._named(self.headers)
        shown["inputs"] = [known.to_json() for known in self.inputs]
        if self.refused:
            shown["refused"] = self.refused
        if self.notes:
            shown["notes"] = list(self.notes)
        return shown

    def needs(self) -> dict[str, Any]:
        """What it needs, without what it runs or reaches, and without what may be somebody's secret."""
        inputs = [one.to_json(with_default=not (one.secret or self.is_private)) for one in self.inputs]
        shown = {"id": self.id, "transport": self.transport, "inputs": inputs}
        return shown | ({"refused": self.refused} if self.refused else {})

    def _named(self, texts: Mapping[str, Template]) -> dict[str, str]:
        if self.is_private:
            return dict.fromkeys(texts, "(set)")
        return {name: shown_text(text) for name, text in texts.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One server of a catalog, as it was published (`document`, JSON), and what stands on its cover."""

    name: str
    document: Mapping[str, Any] = field(repr=False)
    title: str = ""
    description: str = ""
    version: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadCatalog:
    """What a document turned out to be; `notes` are what is wrong with single entries, which are left out."""

    format: str
    entries: tuple[Entry, ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    next_cursor: str = ""


def slots_of(template: Template) -> Iterator[Slot]:
    """The blanks in a template."""
    return (part for part in template if isinstance(part, Slot))


def shown_text(template: Template) -> str:
    """A template for people."""
    return "".join(part if isinstance(part, str) else f"<{part.name}>" for part in template)


def text_of(value: object, limit: int = 500) -> str:
    """`value` where it is text, shortened to `limit` characters, on one line; else nothing."""
    if not isinstance(value, str):
        return ""
    line = " ".join(value.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def dictionaries(value: object) -> list[dict[str, Any]]:
    """The objects in the list `value`; nothing where it is none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts(value: object) -> list[str]:
    """The texts in the list `value`; nothing where it is none."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
