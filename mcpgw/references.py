"""References in the texts of a configuration: ``${NAME}``, ``${env:NAME}`` and ``${file:PATH}``.

``${NAME:-text}`` and ``${env:NAME:-text}`` give a text for a variable that is unset or empty (POSIX shell,
section 2.6.2). ``$${`` is a plain ``${``. What was put in is never looked at for references again.

Also the bounded reading of a text file, since that is what ``${file:PATH}`` does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mcpgw.settings import expand_home

MAXIMUM_FILE_SIZE: Final = 64 * 1024
_REFERENCE: Final = re.compile(r"\$\$\{|\$\{(?P<body>[^{}]*)\}|\$\{")
_VARIABLE: Final = re.compile(r"(?:env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<otherwise>.*))?", re.DOTALL)
_INPUT: Final = re.compile(r"input:(?P<name>[A-Za-z0-9_. -]{1,64})")


class UnresolvedReferenceError(ValueError):
    """A text has references that cannot be replaced; `sentences` says why, and holds no value of any."""

    def __init__(self, sentences: tuple[str, ...]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


@dataclass(frozen=True)
class References:
    """What references are replaced by.

    `folder` is where relative paths of ``${file:PATH}`` begin: the folder of the file that holds the text.
    `variables` are names that only the client wrote the file for knows, such as ``workspaceFolder``.
    """

    environment: Mapping[str, str] = field(repr=False)
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def replace(self, text: str) -> str:
        """`text` with every reference replaced.

        Raises UnresolvedReferenceError, which names all that cannot be.
        """
        faults: list[str] = []

        def replacement(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            try:
                return self._value(match["body"])
            except ValueError as error:
                faults.append(str(error))
                return ""

        replaced = _REFERENCE.sub(replacement, text)
        if faults:
            raise UnresolvedReferenceError(tuple(faults))
        return replaced

    def path(self, text: str | Path) -> Path:
        """`text` as an absolute path: ``~`` is the home folder, a relative path begins at `folder`."""
        return (self.folder / expand_home(Path(text), self.environment)).absolute()

    def _value(self, body: str | None) -> str:
        if body is None:
            raise ValueError("a ${ without its }; write $${ for a plain ${")
        if body in self.variables:
            return self.variables[body]
        if body.startswith("file:") and len(body) > len("file:"):
            path = self.path(body.removeprefix("file:"))
            try:
                text = read_text(path, MAXIMUM_FILE_SIZE)
            except ValueError as error:
                raise ValueError(f"${{{body}}}: {error}") from None
            # A text editor ends the file with a line break that is no part of the secret.
            return text.removesuffix("\n").removesuffix("\r")
        if match := _VARIABLE.fullmatch(body):
            value = self.environment.get(match["name"], "")
            if not value and match["otherwise"] is not None:
                return match["otherwise"]
            if match["name"] not in self.environment:
                raise ValueError(f"environment variable {match['name']} is not set")
            if not is_unicode(value):
                raise ValueError(f"environment variable {match['name']} is not UTF-8")
            return value
        if match := _INPUT.fullmatch(body):
            name = re.sub(r"[^A-Za-z0-9]+", "_", match["name"]).strip("_").upper() or "NAME"
            raise ValueError(
                f"${{input:{match['name']}}}: mcpgw asks no questions; put the value into an environment "
                f"variable and write ${{env:{name}}}, or into a file and write ${{file:PATH}}"
            )
        # The body is not shown: it may be a piece of a password that merely holds "${".
        raise ValueError(
            "a ${…} that is none of ${NAME}, ${env:NAME} and ${file:PATH}; write $${ for a plain ${"
        )


def read_text(path: Path, maximum: int) -> str:
    """The text (UTF-8, at most `maximum` bytes) of the file `path`.

    Raises ValueError with a sentence for whatever keeps it from being read; it holds nothing of the text.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(maximum + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"cannot be read: {reason}") from None
    if len(content) > maximum:
        raise ValueError(f"is larger than {maximum} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: is not UTF-8") from None


def is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogates, which stand for bytes that were not UTF-8 (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
