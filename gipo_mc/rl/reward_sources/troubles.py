"""What rewards say of their failures: kept until it is known what came of them, so that one failure is one warning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Troubles:
    """Sentences on rewards that failed and did not end the run. An iteration takes them into its warning on what was
    left out; after an evaluation they are told by themselves. warn: tells one."""

    warn: Callable[[str], None]
    _held: list[str] = field(default_factory=list)

    def hold(self, text: str) -> None:
        """Keep a sentence; the same one is kept once."""
        if text not in self._held:
            self._held.append(text)

    def take(self) -> list[str]:
        """What is held, which then is not any more."""
        taken, self._held = self._held, []
        return taken

    def tell(self) -> None:
        """Warn of what is held."""
        for text in self.take():
            self.warn(text)
