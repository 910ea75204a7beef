"""The tools of the ``memory`` server: their schemas, what each does with the store, its faults in words."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

import mcp_types as types

from mcpgw.backends import memory_store as bounds
from mcpgw.backends.memory_store import Memories, Memory, MemoryStore
from mcpgw.backends.memory_words import QUERY_WORDS
from mcpgw.errors import suggest

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

JsonObject = dict[str, Any]
_FAULTS_TOLD: Final = 10


class InvalidArgumentsError(Exception):
    """The arguments of a tool cannot be used; the text names each place and the way out, and no value."""


def _object(properties: JsonObject, required: Sequence[str]) -> JsonObject:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _text(description: str, longest: int) -> JsonObject:
    return {"type": "string", "minLength": 1, "maxLength": longest, "description": description}


def _limit(default: int) -> JsonObject:
    return {
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "default": default,
        "description": "How many memories to give at most.",
    }


def _tags(description: str) -> JsonObject:
    return {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": bounds.TAG_CHARACTERS},
        "maxItems": bounds.TAGS,
        "description": description,
    }


_PROJECT: Final = _text("Name of the project that the memory belongs to.", bounds.PROJECT_CHARACTERS)
_ID: Final = _text("Id of a memory, as another tool gave it.", 100)
_MILLISECONDS: Final[JsonObject] = {"type": "integer", "description": "Milliseconds since 1970 in UTC."}
_MEMORY_PROPERTIES: Final[JsonObject] = {
    "id": {"type": "string"},
    "project": {"type": "string"},
    "content": {"type": "string"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "metadata": {"type": "object"},
    "createdAt": _MILLISECONDS,
    "updatedAt": _MILLISECONDS,
}
_MEMORY: Final = _object(_MEMORY_PROPERTIES, list(_MEMORY_PROPERTIES))
_FOUND_MEMORY: Final = _object(
    {
        **_MEMORY_PROPERTIES,
        "score": {"type": "number", "description": "How well it fits the query; higher is better."},
    },
    list(_MEMORY_PROPERTIES),
)
_PROJECT_SUMMARY: Final = _object(
    {
        "name": {"type": "string"},
        "memories": {"type": "integer", "minimum": 1, "description": "How many memories it has."},
        "updatedAt": _MILLISECONDS,
    },
    ["name", "memories", "updatedAt"],
)


def memory_data(memory: Memory) -> JsonObject:
    data: JsonObject = {
        "id": memory.id,
        "project": memory.project,
        "content": memory.content,
        "tags": list(memory.tags),
        "metadata": memory.metadata,
        "createdAt": memory.created_at,
        "updatedAt": memory.updated_at,
    }
    if memory.score is not None:
        data["score"] = memory.score
    return data


def _save(store: MemoryStore, arguments: JsonObject) -> JsonObject:
    return {"memory": memory_data(store.save(**arguments))}


def _search(store: MemoryStore, arguments: JsonObject) -> JsonObject:
    limit = int(arguments.pop("limit", 10))
    found = store.search(**arguments, limit=limit)
    return {"memories": [memory_data(memory) for memory in found.memories], **truncation(found, limit)}


def _list(store: MemoryStore, arguments: JsonObject) -> JsonObject:
    cursor = arguments.get("cursor")
    page = store.newest(
        arguments["project"], int(arguments.get("limit", 20)), None if cursor is None else int(cursor)
    )
    data: JsonObject = {"memories": [memory_data(memory) for memory in page.memories]}
    if page.more:
        data["nextCursor"] = str(page.memories[-1].sequence)
    return data


def _get(store: MemoryStore, arguments: JsonObject) -> JsonObject:
    memory = store.get(arguments["id"])
    if memory is None:
        raise InvalidArgumentsError(
            "id: no memory has this id, or it was deleted; memory_search and memory_list give the ids"
        )
    return {"memory": memory_data(memory)}


def _delete(store: MemoryStore, arguments: JsonObject) -> JsonObject:
    return {"deleted": store.delete(arguments["id"])}


def _projects(store: MemoryStore, _arguments: JsonObject) -> JsonObject:
    projects, omitted = store.projects()
    data: JsonObject = {
        "projects": [
            {"name": project.name, "memories": project.memories, "updatedAt": project.updated_at}
            for project in projects
        ]
    }
    if omitted:
        data["omitted"] = omitted
    return data


def truncation(found: Memories, limit: int) -> JsonObject:
    return {"truncated": True} if found.more and len(found.memories) < limit else {}


@dataclass(frozen=True, slots=True)
class MemoryTool:
    listed: types.Tool
    writes: bool
    run: Callable[[MemoryStore, JsonObject], JsonObject]


def _tool(
    run: Callable[[MemoryStore, JsonObject], JsonObject],
    name: str,
    title: str,
    description: str,
    *,
    arguments: JsonObject,
    answer: JsonObject,
    read_only: bool = True,
    destructive: bool = False,
    idempotent: bool = True,
) -> MemoryTool:
    hints = types.ToolAnnotations(
        read_only_hint=read_only,
        destructive_hint=destructive,
        idempotent_hint=idempotent,
        open_world_hint=False,
    )
    return MemoryTool(
        types.Tool(
            name=name,
            title=title,
            description=description,
            input_schema=arguments,
            output_schema=answer,
            annotations=hints,
        ),
        not read_only,
        run,
    )


TOOLS: Final = {
    tool.listed.name: tool
    for tool in (
        _tool(
            _save,
            "memory_save",
            "Save a memory",
            "Keep a fact, decision or note of a project, so that it can be found again in later sessions.",
            arguments=_object(
                {
                    "project": _PROJECT,
                    "content": _text("What to remember, as plain text.", bounds.CONTENT_CHARACTERS),
                    "tags": _tags("Words to find the memory by; doubles are dropped."),
                    "metadata": {
                        "type": "object",
                        "description": "Anything else to keep with it: a JSON object of at most "
                        f"{bounds.METADATA_BYTES} bytes. It is not searched.",
                    },
                },
                ["project", "content"],
            ),
            answer=_object({"memory": _MEMORY}, ["memory"]),
            read_only=False,
            idempotent=False,
        ),
        _tool(
            _search,
            "memory_search",
            "Search memories",
            "Find memories of a project. With a query, the best matches first: memories that hold all its "
            "words, or if there is none, some of them. Without a query, the newest first.",
            arguments=_object(
                {
                    "project": _PROJECT,
                    "query": {
                        "type": "string",
                        "maxLength": 10_000,
                        "description": "Words to find; the last one may be the beginning of a word. "
                        f"The first {QUERY_WORDS} words count.",
                    },
                    "tags": _tags("Give only memories that have all of these tags."),
                    "limit": _limit(10),
                },
                ["project"],
            ),
            answer=_object(
                {
                    "memories": {"type": "array", "items": _FOUND_MEMORY},
                    "truncated": {
                        "type": "boolean",
                        "description": "True where memories within the limit were left out, since the answer "
                        "would be too large; narrow the query.",
                    },
                },
                ["memories"],
            ),
        ),
        _tool(
            _list,
            "memory_list",
            "List memories",
            "List the memories of a project, the newest first, page by page.",
            arguments=_object(
                {
                    "project": _PROJECT,
                    "limit": _limit(20),
                    "cursor": {
                        "type": "string",
                        "pattern": "^[0-9]{1,18}$",
                        "description": "The nextCursor of the page before; leave it out for the first page.",
                    },
                },
                ["project"],
            ),
            answer=_object(
                {
                    "memories": {"type": "array", "items": _MEMORY},
                    "nextCursor": {
                        "type": "string",
                        "description": "Where the next page starts; left out on the last page.",
                    },
                },
                ["memories"],
            ),
        ),
        _tool(
            _get,
            "memory_get",
            "Get a memory",
            "Give one memory by its id.",
            arguments=_object({"id": _ID}, ["id"]),
            answer=_object({"memory": _MEMORY}, ["memory"]),
        ),
        _tool(
            _delete,
            "memory_delete",
            "Delete a memory",
            "Forget one memory for good. Deleting it again is no error and answers false.",
            arguments=_object({"id": _ID}, ["id"]),
            answer=_object({"deleted": {"type": "boolean"}}, ["deleted"]),
            read_only=False,
            destructive=True,
        ),
        _tool(
            _projects,
            "memory_projects",
            "List projects",
            f"List the projects that have memories, those changed last first, at most {bounds.PROJECTS}.",
            arguments=_object({}, []),
            answer=_object(
                {
                    "projects": {"type": "array", "items": _PROJECT_SUMMARY},
                    "omitted": {
                        "type": "integer",
                        "description": "How many more projects there are; left out where there is none.",
                    },
                },
                ["projects"],
            ),
        ),
    )
}


def check_arguments(name: str, arguments: JsonObject) -> None:
    """Hold `arguments` against the listed input schema of the tool `name`.

    Raises InvalidArgumentsError with every fault, its place and the way out. Values are never repeated: they
    may be long, and they may be private.
    """
    faults = islice(_validator(name).iter_errors(arguments), _FAULTS_TOLD)
    sentences = list(dict.fromkeys(sentence for fault in faults for sentence in _sentences(name, fault)))
    if sentences:
        raise InvalidArgumentsError("; ".join(sentences))


@functools.cache
def _validator(name: str) -> "Draft202012Validator":
    # Imported with the first call: the server must be up soon, and listing its tools needs no validator.
    from jsonschema import Draft202012Validator  # noqa: PLC0415

    return Draft202012Validator(TOOLS[name].listed.input_schema)


_KINDS: Final = {"string": "text", "array": "a list", "object": "an object", "integer": "a whole number"}
_ADVICE: Final[Mapping[str, str]] = {
    "minLength": "is empty; give at least {} character",
    "maxLength": "is too long; give at most {} characters",
    "maxItems": "has too many items; give at most {}",
    "minimum": "is too small; give at least {}",
    "maximum": "is too large; give at most {}",
    "pattern": "is no cursor; give the nextCursor of the page before, or leave it out",
}


def _sentences(tool: str, fault: "ValidationError") -> Iterator[str]:
    place = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in fault.absolute_path)
    keyword, bound, instance = (
        str(fault.validator),
        cast("Any", fault.validator_value),
        cast("Any", fault.instance),
    )
    if keyword == "required":
        yield from (f"{missing}: is missing; {tool} needs it" for missing in bound if missing not in instance)
    elif keyword == "additionalProperties":
        known = cast("Any", fault.schema)["properties"]
        for unknown in islice((given for given in instance if given not in known), _FAULTS_TOLD):
            yield f"{unknown[:128]!r} is no argument of {tool}{suggest(unknown, known)}"
    elif keyword == "type":
        yield f"{place}: must be {_KINDS[bound]}; leave out what has no value"
    else:
        yield f"{place}: {_ADVICE[keyword].format(bound)}"
