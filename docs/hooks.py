"""Notebooks as pages of the site, with what their last run showed."""

from __future__ import annotations

import base64
import json
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Beside each notebook a page of the same name."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = posixpath.basename(file.src_uri)
        text = as_markdown(json.loads(file.content_string), name)
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=text))
    return files


def as_markdown(notebook: dict[str, Any], name: str) -> str:
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *map(_shown, cell["outputs"])]
    # under the title
    parts.insert(1, f"[The notebook itself]({name}) is what this page was made from.")
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "image/svg+xml" in data:
        code = base64.b64encode(data["image/svg+xml"].encode()).decode()
        return f"![what the cell draws](data:image/svg+xml;base64,{code})"
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.S)
        return re.sub(r"\n\s*", "", table)
    text = data.get("text/plain") or "".join(output.get("text", []))
    return f"```text\n{text.strip()}\n```"
