"""How a guest is treated: what is known of its image, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Manner"]


@dataclass(frozen=True, kw_only=True)
class Manner:
    """``name`` is what people call the guest. ``expects_agent``: its image has vmtest's agent; ``announces``: its init
    prints when it is ready; ``stamped``: its kernel's lines bear time stamps (None: unknown). ``timeout`` (of a command
    or an expect) and ``boot_timeout`` are in seconds and multiplied by ``timeout_scale``.
    """

    name: str = "guest"
    expects_agent: bool = True
    announces: bool = True
    stamped: bool | None = None
    timeout: float = 60.0
    boot_timeout: float = 120.0
    timeout_scale: float = 1.0
