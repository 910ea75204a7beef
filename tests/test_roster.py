"""Which servers a gateway has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mcpgw.config import Config
from mcpgw.roster import Roster, make_roster
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import CallSettings, DataSettings, MemorySettings, ServerRules
from mcpgw.store import StoredServer

FILE = ServerDefinition(
    name="a", transport="http", url="https://file.example", source="mcpgw.toml: [servers.a]"
)
CONFIG = Config(
    memory=MemorySettings(enabled=False), servers={"a": FILE}, data=DataSettings(dir=Path("/data"))
)


def stored(name: str, *, enabled: bool = True, **table: Any) -> StoredServer:
    return StoredServer(name, table, enabled, "ann", 1, "ann", 1)


def test_servers_of_the_file_and_of_the_store_stand_side_by_side() -> None:
    roster = make_roster(CONFIG, [stored("b", command="./b", enabled=False)], {})
    assert [(name, entry.origin) for name, entry in roster.entries.items()] == [("a", "file"), ("b", "store")]
    added = roster.entries["b"].definition
    assert (added.command, added.enabled) == ("/data/b", False)
    assert roster.faults == ()


def test_the_file_has_a_name_that_both_give_and_the_other_is_told() -> None:
    roster = make_roster(CONFIG, [stored("a", url="https://store.example")], {})
    assert roster.entries["a"].definition is FILE
    assert roster.entries["a"].stored is not None
    assert roster.faults == (
        "the store: [servers.a]: the name 'a' is taken by mcpgw.toml: [servers.a], which has it",
    )


def test_a_switch_overrides_what_the_file_says() -> None:
    assert make_roster(CONFIG, [], {"a": False, "gone": True}).entries["a"].definition.enabled is False
    config = replace(CONFIG, servers={"a": replace(FILE, enabled=False)})
    assert make_roster(config, [], {"a": True}).entries["a"].definition.enabled is True


def test_the_embedded_memory_server_comes_first_and_has_its_name() -> None:
    config = replace(CONFIG, memory=MemorySettings(enabled=True))
    roster = make_roster(config, [stored("memory", command="x")], {"memory": False})
    assert list(roster.entries) == ["memory", "a"]
    assert roster.entries["memory"].origin == "embedded"
    assert roster.entries["memory"].definition.enabled is False
    assert "is taken by the embedded memory server" in roster.faults[0]


def test_a_stored_definition_with_faults_is_left_out_and_told() -> None:
    config = replace(CONFIG, environment={}, calls=CallSettings(max_timeout=100))
    rows = [
        stored("b", command="b", env={"A": "${NOT_SET}"}),
        stored("c", command="c", timeout=200),
        stored("d", url="https://d.example"),
    ]
    roster = make_roster(config, rows, {})
    assert list(roster.entries) == ["a", "d"]
    assert roster.faults == (
        "the store: [servers.b] env.A: environment variable NOT_SET is not set",
        "the store: [servers.c] timeout: is above calls.max_timeout (100 seconds)",
    )


def test_programs_are_left_out_where_they_are_forbidden_but_for_the_embedded_one() -> None:
    config = replace(CONFIG, rules=ServerRules(stdio=False), memory=MemorySettings(enabled=True))
    before = make_roster(CONFIG, [stored("b", command="b")], {})
    for known in (Roster(), before):
        roster = make_roster(config, [stored("b", command="b")], {}, known=known)
        assert list(roster.entries) == ["memory", "a"]
        assert "servers.stdio is false" in roster.faults[0]


def test_a_server_whose_reference_cannot_be_read_any_more_stays_as_it_was(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one")
    config = replace(CONFIG, data=DataSettings(dir=tmp_path))
    row = stored("b", command="b", env={"A": "${file:secret}"})
    first = make_roster(config, [row], {})
    assert first.entries["b"].definition.env == {"A": "one"}
    secret.write_text("two")
    unread = make_roster(config, [row], {}, known=first, again=False)
    assert unread.entries["b"].definition == first.entries["b"].definition
    assert make_roster(config, [row], {}, known=first).entries["b"].definition.env == {"A": "two"}
    secret.unlink()
    kept = make_roster(config, [row], {}, known=first)
    assert kept.entries["b"].definition.env == {"A": "one"}
    assert "cannot be read" in kept.faults[0]
    changed = stored("b", command="c", env={"A": "${file:secret}"})
    assert "b" not in make_roster(config, [changed], {}, known=first).entries
