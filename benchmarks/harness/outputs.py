"""Where figures go besides the terminal: a JSON file, a chart."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.chart import check_chart, write_chart
from benchmarks.harness.files import write_whole
from benchmarks.harness.report import Report, as_json, print_report
from mlx_llama4.errors import OutputError


@dataclass(frozen=True)
class Outputs:
    """The files to write, or None. Raises OutputError or InputError if one cannot be written."""

    json: Path | None
    png: Path | None = None

    def __post_init__(self) -> None:
        for path in filter(None, (self.json, self.png)):
            if not path.absolute().parent.is_dir():
                raise OutputError(f"{path.parent} is not a folder; create it first")
            if path.is_dir():
                raise OutputError(f"{path} is a folder; name a file")
        if self.png is not None:
            check_chart()

    def publish(self, report: Report) -> None:
        """Print the report, and write the files."""
        print_report(report)
        self.write_json(as_json(report))
        if self.png is not None:
            write_chart(report, self.png)

    def write_json(self, figures: Mapping[str, Any]) -> None:
        """Write `figures` if a JSON file is wanted."""
        if self.json is not None:
            write_whole(self.json, (json.dumps(figures, indent=2) + "\n").encode())
