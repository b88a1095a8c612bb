"""What was measured on the hardware, as the rows of a table in Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Figures:
    """Rows of (what, figure); the first says on what."""

    hardware: str = ""
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, figure: str) -> None:
        self.rows.append((what, figure))

    def markdown(self) -> str:
        lines = [f"| measured on {self.hardware} | |", "|---|---:|"]
        return "\n".join([*lines, *(f"| {what} | {figure} |" for what, figure in self.rows)])
