"""``/api/v1/config``: the configuration in force, changed and read again while the gateway runs."""

from typing import Any

from .base import ApiHandler


class ConfigAnswers(ApiHandler):
    """How the configuration is answered."""

    def write_config(self, **members: Any) -> None:
        """Answer what is in force, without secrets, with `members` beside it."""
        configuration = self.services.configuration
        settings: dict[str, dict[str, Any]] = {}
        for described in configuration.describe():
            section, _, key = described.pop("name").partition(".")
            settings.setdefault(section, {})[key] = described
        self.write_json(
            {
                **members,
                "files": [str(file.absolute()) for file in configuration.files()],
                "settings": settings,
                "servers": [
                    {"id": server.name, **server.to_json()} for server in self.services.administration.all()
                ],
                "needsRestart": list(configuration.needs_restart),
                "faults": list(configuration.faults),
            }
        )


class ConfigHandler(ConfigAnswers):
    """The configuration; for admins."""

    def get(self) -> None:
        """Answer it, without secrets."""
        self.require_admin()
        self.write_config()

    async def patch(self) -> None:
        """Change settings; null gives one back its default."""
        if "admin" not in self.caller.scopes:
            with self.audited("config.change"):  # else the configuration does so itself
                self.require_admin()
        sections = self.read_body("config_change")["settings"]
        values = {
            f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()
        }
        applied = await self.services.configuration.change(values, self.actor())
        self.write_config(applied=applied.to_json())


class ConfigReloadHandler(ConfigAnswers):
    """Reading the configuration again; for admins."""

    async def post(self) -> None:
        """Do it, and answer what has changed; 409 with every fault where it cannot be used."""
        applied = await self.services.configuration.reload(self.actor())
        self.write_config(applied=applied.to_json())
