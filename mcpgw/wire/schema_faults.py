"""What is wrong with a schema, and where something stands in a value."""


class UnusableSchemaError(ValueError):
    """A schema that is no JSON Schema, or that refers to what is not in it."""


class SlowCheckError(UnusableSchemaError):
    """A check that took longer than its budget."""


def pointer(*parts: object) -> str:
    """A JSON Pointer (RFC 6901) to the place that `parts` name, the empty string for the root."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
