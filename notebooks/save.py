"""Run the notebooks, each in an empty folder, and keep their outputs with them: ``python notebooks/save.py [NAME ...]``.

Figures are left out, which would be most of the files, and so are counts of runs and tqdm's remark where there is no ipywidgets.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SECONDS = 600  # for one cell
FIGURE = "application/vnd.plotly.v1+json"


def kept(output: nbformat.NotebookNode) -> bool:
    """Neither a figure nor a remark on what is installed beside the notebook."""
    return FIGURE not in output.get("data", {}) and "IProgress not found" not in output.get("text", "")


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that are kept."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook, timeout=SECONDS, resources=resources, record_timing=False, coalesce_streams=True
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if kept(output)]
            cell.execution_count = None
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = None
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main(names: list[str]) -> None:
    for path in sorted(HERE.glob("*.ipynb")):
        if not names or path.stem in names:
            nbformat.write(executed(path), path)
            print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
