"""The table of settings, and how one value is read."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.config import Config
from mcpgw.setting_values import kind, read_value
from mcpgw.settings import SECTION_HELP, SECTIONS, SETTINGS, Setting, default_data_dir, expand_home

BY_NAME = {setting.name: setting for setting in SETTINGS}


def test_every_setting_is_a_typed_field_of_the_configuration() -> None:
    config = Config()
    for setting in SETTINGS:
        value = config.value(setting)
        assert isinstance(value, setting.type), setting.name
        if setting.name != "data.dir":
            assert value == setting.default, setting.name
    assert len(SETTINGS) == sum(len(fields(cls)) for cls in SECTIONS.values())
    assert SECTIONS.keys() == SECTION_HELP.keys()
    assert SECTIONS.keys() - {"servers"} <= {row.name for row in fields(Config)}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_default_is_a_value_that_its_own_rules_allow(setting: Setting) -> None:
    assert read_value(setting, setting.default, text=False) == setting.default
    assert setting.help.endswith(".")
    if setting.type in (int, float):
        assert setting.unit
        assert setting.minimum is not None
        assert setting.maximum is not None


def test_names_of_variables_and_flags_follow_from_the_setting_and_are_unique() -> None:
    assert BY_NAME["server.host"].environment_name == "MCPGW_SERVER_HOST"
    assert BY_NAME["server.host"].flag_name == "--host"
    assert BY_NAME["websocket.max_calls"].environment_name == "MCPGW_WEBSOCKET_MAX_CALLS"
    assert BY_NAME["websocket.max_calls"].flag_name == "--websocket-max-calls"
    assert len({setting.environment_name for setting in SETTINGS}) == len(SETTINGS)
    assert len({setting.flag_name for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("server.port", "8080", 8080),
        ("calls.timeout", "2.5", 2.5),
        ("calls.timeout", "3", 3.0),
        ("memory.enabled", "No", False),
        ("memory.enabled", "1", True),
        ("server.allowed_hosts", " a.example , b.example,", ("a.example", "b.example")),
        ("server.allowed_hosts", "", ()),
        ("log.file", "~/x.log", Path("~/x.log")),
        ("log.format", "json", "json"),
    ],
)
def test_text_is_read_as_the_type_of_the_setting(name: str, text: str, value: object) -> None:
    found = read_value(BY_NAME[name], text, text=True)
    assert found == value
    assert type(found) is type(value) or isinstance(found, Path)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("server.port", "abc", "'abc' is not a whole number (unit: port)"),
        ("server.port", "1.5", "'1.5' is not a whole number (unit: port)"),
        ("server.port", "9" * 5000, "is not a whole number (unit: port)"),
        ("server.port", "65536", "65536 is too large: at most 65535"),
        ("server.port", "-1", "-1 is too small: at least 0"),
        ("calls.timeout", "nan", "'nan' is not a number (unit: seconds)"),
        ("calls.timeout", "inf", "'inf' is not a number (unit: seconds)"),
        ("calls.timeout", "0", "0.0 is too small: at least 0.1 seconds"),
        ("memory.enabled", "perhaps", "'perhaps' is not true or false"),
        ("log.format", "xml", "'xml' is none of text, json"),
        ("log.file", "", "'' is not a path"),
        ("server.host", "", "must not be empty"),
        ("server.host", "a\0b", "holds a NUL character"),
        ("server.host", "\udcff", "is not UTF-8"),
    ],
)
def test_text_that_cannot_be_the_value_is_refused_with_the_reason(
    name: str, given: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        read_value(BY_NAME[name], given, text=True)
    assert str(refused.value).endswith(sentence)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("server.port", "3000", "'3000' is not a whole number (unit: port)"),
        ("server.port", True, "true is not a whole number (unit: port)"),
        ("server.port", 3.0, "3.0 is not a whole number (unit: port)"),
        ("calls.timeout", False, "false is not a number (unit: seconds)"),
        ("calls.timeout", 10**400, "is not a number (unit: seconds)"),
        ("memory.enabled", 1, "1 is not true or false"),
        ("server.host", 7, "7 is not text"),
        ("server.allowed_hosts", "a.example", "'a.example' is not a list of texts"),
        ("server.allowed_hosts", ["a", 1], "a list is not a list of texts"),
        ("log.file", ["x"], "a list is not a path"),
    ],
)
def test_toml_of_another_type_is_refused(name: str, given: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        read_value(BY_NAME[name], given, text=False)
    assert str(refused.value).endswith(sentence)


def test_a_refused_secret_is_not_shown() -> None:
    with pytest.raises(ValueError, match=r"^is not text$"):
        read_value(BY_NAME["auth.secret"], 1234567, text=False)


@given(st.sampled_from(SETTINGS), st.text())
def test_any_text_is_either_a_value_of_the_right_type_or_refused(setting: Setting, text: str) -> None:
    try:
        value = read_value(setting, text, text=True)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - both ways out are right
    else:
        assert isinstance(value, setting.type)
        assert kind(setting)


def test_the_data_folder_follows_the_environment() -> None:
    assert default_data_dir({"XDG_DATA_HOME": "/srv/data", "HOME": "/home/ann"}) == Path("/srv/data/mcpgw")
    assert default_data_dir({"HOME": "/home/ann"}) == Path("/home/ann/.local/share/mcpgw")
    # A relative one is to be ignored.
    ignored = default_data_dir({"XDG_DATA_HOME": "data", "HOME": "/home/ann"})
    assert ignored == Path("/home/ann/.local/share/mcpgw")


def test_only_a_leading_tilde_is_the_home_folder() -> None:
    environment = {"HOME": "/home/ann"}
    assert expand_home(Path("~/a"), environment) == Path("/home/ann/a")
    assert expand_home(Path("a/~"), environment) == Path("a/~")
    assert expand_home(Path("~bob/a"), environment) == Path("~bob/a")
    assert expand_home(Path("~/a"), {}) == Path.home() / "a"


def test_importing_the_configuration_loads_no_server_client_or_validator() -> None:
    heavy = "{'tornado', 'mcp', 'jsonschema', 'click', 'cryptography'}"
    code = f"import sys, mcpgw.config; print(sorted({heavy} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.strip() == "[]"
