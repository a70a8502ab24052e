"""What clients of a server may do."""

from dataclasses import dataclass


@dataclass
class Limits:
    """What clients may do.

    Attributes:
        token: Word that a client must know; None lets everybody in.
        allowed_origins: Pages of other addresses that may speak to the server, as browsers name
            them (``https://example.org``); ``*`` is any.
        max_clients: Connections at once.
        max_message: Bytes of a message.
        max_messages: Messages of a client a second.
        max_speed: Times real time that a client's audio is taken at; what comes faster waits.
        max_seconds: Length of a stream.
        idle_seconds: Time without a packet.
        stop_seconds: Time to finish what is begun when the server stops.
    """

    token: str | None = None
    allowed_origins: tuple[str, ...] = ()
    max_clients: int = 100
    max_message: int = 2**16
    max_messages: int = 200
    max_speed: float = 20
    max_seconds: float = 3600
    idle_seconds: float = 30
    stop_seconds: float = 10
