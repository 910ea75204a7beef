"""``mcpgw approvals``: the calls that wait until somebody consents, and the decisions on them."""

import json

import click

from mcpgw.cli.asking import ask, member, route
from mcpgw.cli.connection import ConnectionOptions, connection_options
from mcpgw.cli.groups import GroupWithDefault
from mcpgw.cli.output import faults_reported, json_option, one_line, say_json
from mcpgw.cli.tables import say_table

_SCOPE = "calls:approve"

_hash_option = click.option(
    "--hash",
    "arguments_hash",
    metavar="SHA-256",
    help="The argumentsHash of what you have seen: the decision then holds for nothing else.",
)


@click.group(cls=GroupWithDefault, default="list")
def approvals() -> None:
    """Show the calls that wait for an approval, and decide on them.

    Without a command it lists them. Nobody decides on a call of their own, unless calls.approve_own is set.
    """


@approvals.command(name="list")
@json_option
@connection_options
def list_(connection: ConnectionOptions, *, as_json: bool) -> None:
    """Show the calls on which you may decide, the oldest first."""
    with faults_reported(as_json=as_json):
        found = connection.find(_SCOPE)
        waiting = member(ask(found, "GET", route("approvals")), "approvals", list, found)
    if as_json:
        say_json({"approvals": waiting})
        return
    rows = [
        [
            *(one.get(name, "") for name in ("requestId", "user", "serverId", "toolName")),
            json.dumps(one.get("arguments"), ensure_ascii=False),
        ]
        for one in waiting
    ]
    say_table(["ID", "User", "Server", "Tool", "Arguments"], rows, "No call waits for an approval.")


@approvals.command()
@click.argument("approval")
@_hash_option
@json_option
@connection_options
def accept(
    connection: ConnectionOptions, *, approval: str, arguments_hash: str | None, as_json: bool
) -> None:
    """Let the call of APPROVAL run, this once."""
    _decide(connection, approval, "accept", arguments_hash, as_json=as_json)


@approvals.command()
@click.argument("approval")
@_hash_option
@json_option
@connection_options
def decline(
    connection: ConnectionOptions, *, approval: str, arguments_hash: str | None, as_json: bool
) -> None:
    """Refuse the call of APPROVAL; it ends with permission_denied."""
    _decide(connection, approval, "decline", arguments_hash, as_json=as_json)


def _decide(
    connection: ConnectionOptions, approval: str, action: str, arguments_hash: str | None, *, as_json: bool
) -> None:
    with faults_reported(as_json=as_json):
        body = {"action": action} | ({} if arguments_hash is None else {"argumentsHash": arguments_hash})
        ask(connection.find(_SCOPE), "POST", route("approvals", approval), body=body)
    if as_json:
        say_json({"requestId": approval, "action": action})
    else:
        click.echo(one_line(f"{'Accepted' if action == 'accept' else 'Declined'}: {approval}"))
