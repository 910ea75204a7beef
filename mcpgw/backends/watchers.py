"""Who wants to be told of which resources of one server; what its instances watch follows from this."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mcpgw.backends.requests import Asker


@dataclass(slots=True)
class _Wish:
    """One connection's wish for one resource; `pending` counts those who wait for it to be fulfilled."""

    asker: Asker
    pending: int = 0
    stands: bool = False


class Watchers:
    """The wishes; `on_change` is told of each change, with one who is concerned."""

    def __init__(self, on_change: Callable[[Asker], None]) -> None:
        self._wishes: dict[str, dict[str, _Wish]] = {}
        self._on_change = on_change

    def __bool__(self) -> bool:
        return bool(self._wishes)

    def __iter__(self) -> Iterator[Asker]:
        """One who wishes for something, for each connection."""
        for wishes in self._wishes.values():
            yield next(iter(wishes.values())).asker

    def stands(self, asker: Asker, uri: str) -> bool:
        """Whether this wish was fulfilled once, and so is looked after."""
        wish = self._wishes.get(asker.connection, {}).get(uri)
        return wish is not None and wish.stands

    def wants(self, asker: Asker, uri: str) -> bool:
        """Whether there is such a wish, fulfilled or not."""
        return uri in self._wishes.get(asker.connection, {})

    def begin(self, asker: Asker, uri: str) -> None:
        """Somebody begins to wait for a wish: `fulfilled` or `failed` ends that."""
        wish = self._wishes.setdefault(asker.connection, {}).setdefault(uri, _Wish(asker))
        wish.pending += 1
        self._on_change(asker)

    def fulfilled(self, asker: Asker, uri: str) -> None:
        """It is watched, unless that is not wanted any more."""
        if (wish := self._wishes.get(asker.connection, {}).get(uri)) is not None:
            wish.pending -= 1
            wish.stands = True

    def failed(self, asker: Asker, uri: str) -> None:
        """It could not be watched; where nobody else waits for it, it is not wanted any more."""
        if (wish := self._wishes.get(asker.connection, {}).get(uri)) is not None:
            wish.pending -= 1
            if wish.pending <= 0 and not wish.stands:
                self.remove(asker, uri)

    def remove(self, asker: Asker, uri: str) -> None:
        """A connection does not want it any more."""
        wishes = self._wishes.get(asker.connection, {})
        if wishes.pop(uri, None) is not None:
            if not wishes:
                del self._wishes[asker.connection]
            self._on_change(asker)

    def remove_connection(self, connection: str) -> None:
        """A connection wants nothing any more."""
        for wish in self._wishes.pop(connection, {}).values():
            self._on_change(wish.asker)

    def uris(self, concerns: Callable[[Asker], bool]) -> frozenset[str]:
        """What those wish for whom an instance `concerns`."""
        return frozenset(
            uri for wishes in self._wishes.values() for uri, wish in wishes.items() if concerns(wish.asker)
        )

    def take_over(self, others: "Watchers") -> None:
        """Have the wishes that another server of the same name leaves behind."""
        for asker, uri in others.standing():
            self._wishes.setdefault(asker.connection, {})[uri] = _Wish(asker, stands=True)

    def standing(self) -> list[tuple[Asker, str]]:
        """The wishes that were fulfilled."""
        every = [(wish, uri) for wishes in self._wishes.values() for uri, wish in wishes.items()]
        return [(wish.asker, uri) for wish, uri in every if wish.stands]
