"""Reading one value of a setting: from text (environment, flags) or from TOML, within its bounds."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from mcpgw.references import is_unicode
from mcpgw.settings import Setting, Value

_SHOWN_LENGTH: Final = 60
_KINDS: Final[Mapping[type[Any], str]] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    tuple: "a list of texts",
}
_TRUTHS: Final = {"true": True, "yes": True, "on": True, "1": True} | dict.fromkeys(
    ("false", "no", "off", "0"), False
)


def kind(setting: Setting) -> str:
    """The type of `setting` in words, such as ``a whole number``."""
    return _KINDS[setting.type]


def read_value(setting: Setting, given: object, *, text: bool) -> Value:
    """`given` as a value of `setting`'s type and within its bounds.

    With `text` (environment, flags) a str is converted; without it (TOML) only the right type will do.
    Raises ValueError with the end of a sentence that says what is wrong; it never holds a secret.
    """
    value = _from_text(setting, given) if text and isinstance(given, str) else _from_typed(setting, given)
    if value is None:
        unit = f" (unit: {setting.unit})" if setting.unit else ""
        raise ValueError(f"{_shown(setting, given)}is not {kind(setting)}{unit}")
    _check_text(value)
    if setting.choices is not None and value not in setting.choices:
        raise ValueError(f"{_shown(setting, given)}is none of {', '.join(setting.choices)}")
    _check_bounds(setting, value)
    return value


def _shown(setting: Setting, given: object) -> str:
    if setting.secret:
        return ""
    shown = repr(given) if isinstance(given, str | int | float) else f"a {type(given).__name__}"
    if isinstance(given, bool):
        shown = str(given).lower()
    return (shown if len(shown) <= _SHOWN_LENGTH else shown[:_SHOWN_LENGTH] + "…") + " "


def _from_text(setting: Setting, given: str) -> Value | None:
    try:
        match setting.type.__name__:
            case "int":
                return int(given)
            case "float":
                return _finite(float(given))
            case "bool":
                return _TRUTHS.get(given.strip().lower())
            case "tuple":
                return tuple(part.strip() for part in given.split(",") if part.strip())
    except ValueError:
        return None
    return _from_typed(setting, given)


def _from_typed(setting: Setting, given: object) -> Value | None:
    if setting.type is float and isinstance(given, int | float) and not isinstance(given, bool):
        try:
            return _finite(float(given))
        except OverflowError:
            return None
    if setting.type is int:
        return given if isinstance(given, int) and not isinstance(given, bool) else None
    if setting.type is bool:
        return given if isinstance(given, bool) else None
    if setting.type is tuple:
        texts = isinstance(given, list | tuple) and all(isinstance(part, str) for part in given)
        return tuple(cast("list[str]", given)) if texts else None
    if setting.type is Path:
        return Path(given) if isinstance(given, str | Path) and str(given) else None
    return given if setting.type is str and isinstance(given, str) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_text(value: Value) -> None:
    for part in value if isinstance(value, tuple) else (str(value),):
        if "\0" in part:
            raise ValueError("holds a NUL character")
        # A path may hold any bytes (PEP 383), a text may not.
        if not isinstance(value, Path) and not is_unicode(part):
            raise ValueError("is not UTF-8")


def _check_bounds(setting: Setting, value: Value) -> None:
    if isinstance(value, str):
        if setting.minimum is not None and len(value) < setting.minimum:
            raise ValueError("must not be empty")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    unit = f" {setting.unit}" if setting.unit not in ("", "port") else ""
    if setting.minimum is not None and value < setting.minimum:
        raise ValueError(f"{_shown(setting, value)}is too small: at least {setting.minimum:g}{unit}")
    if setting.maximum is not None and value > setting.maximum:
        raise ValueError(f"{_shown(setting, value)}is too large: at most {setting.maximum:.12g}{unit}")
