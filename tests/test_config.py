"""``load_config``: places and their order, faults, and the texts made of the settings."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.config import Config, commented_toml, load_config, settings_markdown
from mcpgw.config_texts import BEGIN_MARK, END_MARK, with_settings_block
from mcpgw.errors import ConfigError
from mcpgw.settings import SETTINGS

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
SECRET = "a-secret-of-more-than-thirty-two-bytes"
HOME = {"HOME": "/home/ann"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of each test: an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(
    toml: str | None = None,
    environment: Mapping[str, str] = HOME,
    flags: Mapping[str, object] | None = None,
    servers_files: Sequence[Path] = (),
) -> Config:
    """``load_config`` with `toml` as the text of ``mcpgw.toml`` in the current folder."""
    if toml is not None:
        Path("mcpgw.toml").write_text(toml, "utf-8")
    return load_config(file=None, environment=environment, flags=flags or {}, servers_files=servers_files)


def faults(
    toml: str | None = None,
    environment: Mapping[str, str] = HOME,
    flags: Mapping[str, object] | None = None,
    servers_files: Sequence[Path] = (),
) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        load(toml, environment, flags, servers_files)
    return refused.value.faults


def test_without_any_file_everything_is_at_its_default() -> None:
    config = load()
    assert config.server.port == 3000
    assert config.data.dir == Path("/home/ann/.local/share/mcpgw")
    assert config.file is None
    assert dict(config.sources) == {}
    assert dict(config.servers) == {}


def test_flags_are_stronger_than_the_environment_and_that_than_the_file() -> None:
    toml = '[server]\nport = 1\nhost = "file"\n[calls]\ntimeout = 5\n'
    environment = {"MCPGW_SERVER_PORT": "2", "MCPGW_SERVER_HOST": "environment"}
    config = load(toml, environment, {"server.port": 3, "log.level": None})
    assert (config.server.port, config.server.host, config.calls.timeout) == (3, "environment", 5.0)
    assert dict(config.sources) == {
        "server.port": "flag --port",
        "server.host": "environment MCPGW_SERVER_HOST",
        "calls.timeout": "mcpgw.toml: [calls] timeout",
    }


def test_flags_may_be_typed_or_text() -> None:
    config = load(flags={"server.port": "0", "memory.enabled": False, "server.allowed_hosts": ("a", "b")})
    assert config.server.port == 0
    assert config.memory.enabled is False
    assert config.server.allowed_hosts == ("a", "b")


def test_a_wrong_key_names_its_path_and_the_nearest_right_one() -> None:
    assert faults("[server]\nprot = 1\n") == ("mcpgw.toml: [server] prot: unknown key; did you mean 'port'?",)
    assert faults("[sever]\nport = 1\n") == ("mcpgw.toml: [sever]: unknown section; did you mean 'server'?",)


def test_all_faults_of_all_places_are_told_at_once() -> None:
    found = faults(
        '[server]\nprot = 1\n[log]\nformat = "xml"\n[servers.x]\ncomand = "a"\n',
        {"MCPGW_SERVER_PORT": "abc", "MCPGW_SERVER_PROT": "1"},
        {"server.port": "99999", "log.level": "loud"},
    )
    assert found[:6] == (
        "mcpgw.toml: [server] prot: unknown key; did you mean 'port'?",
        "mcpgw.toml: [log] format: 'xml' is none of text, json",
        "environment MCPGW_SERVER_PORT: 'abc' is not a whole number (unit: port)",
        "environment MCPGW_SERVER_PROT: unknown variable; did you mean 'MCPGW_SERVER_PORT'?",
        "flag --port: 99999 is too large: at most 65535",
        "flag --log-level: 'loud' is none of debug, info, warning, error",
    )
    assert "mcpgw.toml: [servers.x] comand: unknown key; did you mean 'command'?" in found


def test_variables_of_the_commands_are_not_taken_for_typing_errors() -> None:
    names = ("MCPGW_TOKEN", "MCPGW_URL", "MCPGW_CONFIG", "MCPGW_MEMORY_DATABASE", "MCPGWX", "PATH")
    assert load(environment=dict.fromkeys(names, "x")).server.port == 3000


def test_an_unknown_name_of_a_flag_is_a_fault() -> None:
    assert faults(flags={"server.prot": 1}) == (
        "flag for server.prot: no such setting; did you mean 'server.port'?",
    )


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("port = 1\n", "mcpgw.toml: port: stands in no section; did you mean 'port' in [server]?"),
        ("server = 1\n", "mcpgw.toml: server: is a section; write [server]"),
        ("colour = 1\n", "mcpgw.toml: colour: unknown key"),
        ("servers = 1\n", "mcpgw.toml: servers: is not a table; write [servers.NAME]"),
        ("[servers]\nport = 1\n", "mcpgw.toml: [servers] port: stands in [server], without an s"),
        ("[servers]\nx = 1\n", "mcpgw.toml: [servers.x]: is not a table"),
        (
            '[servers."a b"]\ncommand = "x"\n',
            (
                "mcpgw.toml: [servers.'a b']: is not a name of a server "
                "(letters, digits, '_', '.' and '-', at most 64, a letter or digit first)"
            ),
        ),
    ],
)
def test_a_key_in_the_wrong_place_is_told_where_it_belongs(toml: str, fault: str) -> None:
    [found] = faults(toml)
    assert found.startswith(fault)


def test_a_syntax_error_names_file_line_and_column() -> None:
    [found] = faults("[server]\nport = = 1\n")
    assert found.startswith("mcpgw.toml: line 2, column 8: ")
    [found] = faults('[server]\nhost = "a')
    assert re.match(r"mcpgw\.toml: line 2, column \d+: ", found)
    [found] = faults("[server")
    assert found.startswith("mcpgw.toml: line 1, column 8: ")


def test_a_file_that_cannot_be_read_as_toml_is_a_fault(folder: Path) -> None:
    Path("mcpgw.toml").write_bytes(b"[server]\nhost = '\xff'\n")
    assert faults() == ("mcpgw.toml: line 2: is not UTF-8",)
    assert faults(f"x = {'[' * 100_000}")[0].startswith("mcpgw.toml: cannot be read as TOML: ")
    assert faults(f"x = {'9' * 5000}")[0].startswith("mcpgw.toml: cannot be read as TOML: ")
    assert faults("#" * (4 * 1024 * 1024 + 1)) == ("mcpgw.toml: is larger than 4194304 bytes",)


def test_a_named_file_must_exist(folder: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("other.toml: cannot be read: No such file or directory")):
        load_config(file=folder / "other.toml", environment=HOME, flags={})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(file=folder, environment=HOME, flags={})


def test_a_named_file_is_read_in_place_of_the_one_in_the_current_folder(folder: Path) -> None:
    Path("mcpgw.toml").write_text("[server]\nport = 1\n")
    other = folder / "other.toml"
    other.write_text("[server]\nport = 2\n")
    config = load_config(file=other, environment=HOME, flags={})
    assert config.server.port == 2
    assert config.file == other


def test_a_relative_path_begins_at_the_folder_of_the_file_that_names_it(folder: Path) -> None:
    (folder / "etc").mkdir()
    file = folder / "etc" / "mcpgw.toml"
    file.write_text('[log]\nfile = "a.log"\n[data]\ndir = "~/d"\n')
    config = load_config(file=file, environment=HOME, flags={})
    assert config.log.file == folder / "etc" / "a.log"
    assert config.data.dir == Path("/home/ann/d")
    config = load_config(file=file, environment=HOME, flags={"log.file": "a.log"})
    assert config.log.file == Path("a.log")


def test_secrets_come_from_variables_and_files_and_are_in_no_repr(folder: Path) -> None:
    Path("secret.txt").write_text(SECRET + "\n")
    toml = '[auth]\nsecret = "${file:secret.txt}"\n'
    config = load(toml)
    assert config.auth.secret == SECRET
    assert SECRET not in repr(config)
    assert load(environment={"MCPGW_AUTH_SECRET": SECRET}).auth.secret == SECRET
    shown = {setting.name: (text, source) for setting, text, source in load(toml).describe()}
    assert shown["auth.secret"] == ("(set)", "mcpgw.toml: [auth] secret")
    assert shown["memory.enabled"] == ("true", "default")
    assert len(shown) == len(SETTINGS)


def test_a_secret_flag_takes_a_reference_but_no_plain_text() -> None:
    Path("secret.txt").write_text(SECRET)
    assert load(flags={"auth.secret": "${file:secret.txt}"}).auth.secret == SECRET
    for plain in (SECRET, "${NAME:-" + SECRET + "}"):
        [fault] = faults(flags={"auth.secret": plain})
        assert fault.startswith("flag --auth-secret: every user of the machine can read")
        assert SECRET not in fault


def test_references_that_cannot_be_replaced_name_variable_and_place_but_no_value(folder: Path) -> None:
    toml = '[auth]\nsecret = "${UNSET_NAME}${file:none.txt}"\n'
    found = faults(toml, {"HOME": "/home/ann", "OTHER": SECRET})
    assert found[0] == "mcpgw.toml: [auth] secret: environment variable UNSET_NAME is not set"
    assert found[1] == (
        "mcpgw.toml: [auth] secret: ${file:none.txt}: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ('[auth]\nsecret = "short"\n', "mcpgw.toml: [auth] secret: has 5 bytes; HS256 needs at least 32"),
        ('[auth]\nalgorithm = "RS256"\n', "mcpgw.toml: [auth] algorithm: RS256 needs auth.public_key"),
        (
            '[auth]\npublic_key = "-----BEGIN PUBLIC KEY-----"\n',
            "mcpgw.toml: [auth] public_key: goes with RS256, ES256 and EdDSA, not with HS256",
        ),
        (
            '[auth]\nalgorithm = "EdDSA"\npublic_key = "key.pem"\n',
            "mcpgw.toml: [auth] public_key: is not PEM text; ${file:PATH} puts in the text of a file",
        ),
        (
            '[auth]\nalgorithm = "ES256"\npublic_key = "-----BEGIN EC PRIVATE KEY-----"\n',
            "mcpgw.toml: [auth] public_key: is a private key; the gateway needs the public one alone",
        ),
        (
            f'[auth]\nalgorithm = "ES256"\npublic_key = "-----BEGIN PUBLIC KEY-----"\nsecret = "{SECRET}"\n',
            "mcpgw.toml: [auth] secret: goes with HS256, not with ES256",
        ),
        (
            "[websocket]\nping_interval = 5\n",
            "websocket.pong_timeout: 10 seconds is longer than websocket.ping_interval (5 seconds)",
        ),
        (
            "[server]\nplace_timeout = 1\n",
            "server.probe_timeout: 2 seconds is longer than server.place_timeout (1 seconds)",
        ),
        (
            "[backends]\nretry_initial = 60\n",
            (
                "mcpgw.toml: [backends] retry_initial: 60 seconds is longer than "
                "backends.retry_maximum (30 seconds)"
            ),
        ),
        (
            "[calls]\nmax_timeout = 30\n",
            "calls.timeout: 60 seconds is longer than calls.max_timeout (30 seconds)",
        ),
        (
            '[calls]\nmax_timeout = 60\n[servers.x]\ncommand = "a"\ntimeout = 61\n',
            "mcpgw.toml: [servers.x] timeout: is above calls.max_timeout (60 seconds)",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_a_fault(toml: str, fault: str) -> None:
    assert faults(toml) == (fault,)


def test_a_public_key_goes_with_its_algorithm() -> None:
    Path("key.pem").write_text("-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n")
    config = load('[auth]\nalgorithm = "EdDSA"\npublic_key = "${file:key.pem}"\n')
    assert config.auth.public_key.startswith("-----BEGIN PUBLIC KEY-----")


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "*",
            "null",
            "https://*",
            "example.org",
            "https://example.org/",
            "https://Example.org",
            "https://u@h",
        ),
        *("https://*.", "https://*example.org", "https://a.*.org", "https://*.*.org", "https://example.*"),
        *(
            "*.example.org",
            "*://example.org",
            "https://*.example.org:*",
            "https://*.0.0.1",
            "https://*.[::1]",
        ),
    ],
)
def test_an_origin_that_no_browser_sends_is_a_fault(origin: str) -> None:
    [fault] = faults(f'[server]\nallowed_origins = ["https://fine.example:8443", "{origin}"]\n')
    assert fault.startswith(f"mcpgw.toml: [server] allowed_origins: {origin!r} is not an origin")


@pytest.mark.parametrize(
    "name",
    [
        *("*", "https://example.org", "example.org:80", "a/b", ""),
        *("*.", "*example.org", "a.*.org", "*.*.org", "example.*", "*.0.0.1", "*.example.org:80"),
    ],
)
def test_a_host_that_is_no_bare_name_is_a_fault(name: str) -> None:
    [fault] = faults(f'[server]\nallowed_hosts = ["fine.example", "{name}"]\n')
    assert fault.startswith(f"mcpgw.toml: [server] allowed_hosts: {name!r} is not a host name")


def test_a_star_may_stand_for_the_first_labels_of_an_origin_and_of_a_host() -> None:
    origins = ("https://*.example.org", "http://*.localhost:5173", "https://*.a-b.xn--p1ai")
    hosts = ("*.example.org", "*.Example.net")
    toml = f"[server]\nallowed_origins = {list(origins)}\nallowed_hosts = {list(hosts)}\n"
    server = load(toml).server
    assert (server.allowed_origins, server.allowed_hosts) == (origins, hosts)


def test_the_name_memory_is_free_only_where_the_embedded_server_is_off() -> None:
    toml = '[servers.memory]\ncommand = "x"\n'
    assert faults(toml) == (
        (
            "mcpgw.toml: [servers.memory]: the name 'memory' is the embedded memory server's; "
            "choose another name, or set memory.enabled to false"
        ),
    )
    assert load(toml + "[memory]\nenabled = false\n").servers["memory"].command == "x"


def test_a_servers_file_adds_servers_and_a_name_in_two_files_names_both_places() -> None:
    more = Path("more.toml")
    more.write_text('[servers.b]\ncommand = "b"\n')
    config = load('[servers.a]\ncommand = "a"\n', servers_files=[more])
    assert list(config.servers) == ["a", "b"]
    assert config.servers["b"].source == "more.toml: [servers.b]"
    assert faults('[servers.b]\ncommand = "a"\n', servers_files=[more]) == (
        "more.toml: [servers.b]: the name 'b' is taken by mcpgw.toml: [servers.b]",
    )


def test_a_servers_file_holds_nothing_but_servers() -> None:
    more = Path("more.toml")
    more.write_text("[server]\nport = 1\n")
    assert faults(servers_files=[more]) == (
        "more.toml: server: only [servers.NAME] tables stand in a file of servers",
    )


def uncommented(text: str) -> str:
    return re.sub(r"^#(?=[^ #\n])", "", text, flags=re.MULTILINE)


def test_the_commented_file_loads_as_it_is_and_changes_nothing() -> None:
    config = load(commented_toml())
    assert config == Config(
        data=config.data, file=Path("mcpgw.toml"), servers=config.servers, sources=config.sources
    )
    assert dict(config.servers) == {}
    assert dict(config.sources) == {}


def test_the_commented_file_with_every_setting_uncommented_says_the_defaults() -> None:
    text = uncommented(commented_toml())
    config = load(text)
    default = load_config(file=Path("mcpgw.toml"), environment=HOME, flags={})
    assert set(config.sources) == {setting.name for setting in SETTINGS}
    for setting in SETTINGS:
        value = config.value(setting)
        assert value == default.value(setting), setting.name
        if setting.name != "data.dir":
            assert value == setting.default, setting.name
    assert config.data.dir == Path("/home/ann/.local/share/mcpgw")
    assert {definition.transport for definition in config.servers.values()} == {"stdio", "http"}
    for setting in SETTINGS:
        assert tomllib.loads(text)[setting.section][setting.key] is not None


@given(st.sets(st.sampled_from([setting.name for setting in SETTINGS])))
def test_any_setting_of_the_commented_file_can_be_uncommented_alone(names: set[str]) -> None:
    section = ""
    lines = []
    for line in commented_toml().splitlines():
        if line.lstrip("#").startswith("["):
            section = line.strip("#[]")
        key = line.removeprefix("#").partition(" ")[0]
        lines.append(line.removeprefix("#") if line[:2] != "# " and f"{section}.{key}" in names else line)
    config = load("\n".join(lines))
    assert set(config.sources) == names


def test_every_setting_is_explained_in_the_commented_file() -> None:
    text = re.sub(r"\n# ", " ", commented_toml())
    for setting in SETTINGS:
        assert setting.help in text
        assert f"\n#{setting.key} = " in text


def test_the_documentation_holds_the_table_of_settings_as_it_is() -> None:
    page = PAGE.read_text("utf-8")
    assert with_settings_block(page) == page, "run: python -m mcpgw.config docs/configuration.md"
    assert settings_markdown() in page
    for setting in SETTINGS:
        assert setting.environment_name in settings_markdown()


def test_the_module_rewrites_the_table_of_a_page(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text(f"before\n{BEGIN_MARK}\nold\n{END_MARK}\nafter\n")
    command = [sys.executable, "-m", "mcpgw.config", str(page)]
    subprocess.run(command, cwd=PAGE.parent.parent, timeout=30, check=True)
    text = page.read_text()
    assert settings_markdown() in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text.split(BEGIN_MARK)[1][:10]
    page.write_text("no marks")
    ran = subprocess.run(command, cwd=PAGE.parent.parent, timeout=30, capture_output=True, check=False)
    assert ran.returncode != 0
    assert page.read_text() == "no marks"


def test_who_runs_no_servers_needs_nothing_of_what_they_refer_to(tmp_path: Path) -> None:
    file = tmp_path / "mcpgw.toml"
    file.write_text(
        '[server]\nport = 4000\n[servers.x]\ncommand = "x"\nenv = { T = "${NOT_SET_ANYWHERE}" }\n'
    )
    config = load_config(file=file, environment={}, flags={}, with_servers=False)
    assert (config.server.port, dict(config.servers)) == (4000, {})
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
        load_config(file=file, environment={}, flags={})
