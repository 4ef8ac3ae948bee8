"""An empty path is not the current folder, in no command and nowhere in the library."""

import pytest
import yaml
from worlds import build_index, fit_factors

import msif
from msif.errors import MsifError


@pytest.mark.parametrize("empty", ["", " "])
def test_empty_paths_are_no_current_folder(world, fit, explain, refused, tmp_path, empty):
    path = "is empty: give a file, folder or name"
    for name in ("model", "data", "output", "checkpoints"):
        fit(f"--{name} {path}", **{name: empty})
    fit("--modules is empty: give a value, or leave it out", modules=empty)
    for name in ("pretrained", "finetuned_factors", "corpus", "output", "index", "finetuned_data", "embedding_model"):
        explain(f"--{name.replace('_', '-')} {path}", **{name: empty})
    explain(f"--queries {path}", query=None, completion=None, queries=empty)
    explain(f"--checkpoints {path}", "--checkpoints", world.base, empty)
    explain(f"--config {path}", config=empty)
    refused(build_index, f"--factors {path}", "--model", world.base, "--data", "d", "--output", "o", "--factors", empty)
    written = tmp_path / "flags.yaml"
    written.write_text(yaml.safe_dump({"model": str(world.base), "data": empty, "output": str(tmp_path / "out")}))
    refused(fit_factors, f"--data {path}", "--config", written)


def test_empty_paths_are_told_in_the_library(world, tmp_path):
    stage = msif.Stage(world.base, world.folder / "corpus.jsonl")
    for name in ("data", "factors", "checkpoints", "moved_to"):
        with pytest.raises(MsifError, match=f"{name} is empty: give a file, folder or name"):
            msif.Stage(world.base, **{name: ""})
    for call, said in (
        (lambda: msif.Stage(""), "model is empty"),
        (lambda: msif.make_index(stage, ""), "output is empty"),
        (lambda: msif.attribute(stage, "", "all"), "queries is empty"),
        (lambda: msif.attribute(stage, ["Who?"], "all", corpus=""), "corpus is empty"),
        (lambda: msif.load_corpus(""), "the name of the data is empty"),
    ):
        with pytest.raises(MsifError, match=said):
            call()
