"""Flags that nothing reads, and what the command line takes the place of in a configuration."""

import pytest
import yaml
from worlds import ALL, QUERY, build_index, by_candidate, influence, scores, write_rows

from msif.errors import MsifError

KINDS = {
    "--ihvp-iterations": (7, ["cg", "ekfac-cg", "lissa", "ekfac-lissa", "arnoldi"]),
    "--ihvp-tolerance": (0.1, ["cg", "ekfac-cg"]),
    "--lissa-scale": (3, ["lissa", "ekfac-lissa"]),
    "--arnoldi-top": (3, ["arnoldi"]),
    "--ihvp-examples": (3, ["cg", "ekfac-cg", "lissa", "ekfac-lissa", "arnoldi"]),
}


@pytest.fixture
def accepted(world):
    """Whether flags pass the checks that come before models are loaded, beside the world's own."""
    from msif.cli.checks import check_arguments, check_options
    from msif.influence import parser

    def check(*flags):
        line = [str(part) for part in (*world.pair, *world.factors, *QUERY, *ALL, *flags)]
        command = parser()
        args = command.parse(line)
        check_arguments(args)
        check_options(args, command.given(line))
        return True

    return check


@pytest.mark.parametrize("flag", KINDS)
def test_settings_of_an_inverse_belong_to_its_kinds(accepted, explain, flag):
    from msif.attribution.methods import IHVPS

    value, readers = KINDS[flag]
    for kind in IHVPS:
        if kind in readers:
            assert accepted("--ihvp", kind, flag, value)
        else:
            with pytest.raises(MsifError, match=f"nothing reads {flag} here: leave it out, or give .*--ihvp"):
                accepted("--ihvp", kind, flag, value)
    explain(f"nothing reads {flag} here", flag, value)


def test_other_flags_belong_to_what_reads_them(accepted, explain, fit, world, refused, tmp_path):
    data = world.folder / "corpus.jsonl"
    cases = [
        (["--r", "train"], "give --index", None),
        (["--embedding-model", "e"], "give --candidates knn:N", ["--candidates", "bm25:2+knn:3"]),
        (
            ["--pretrained-data", data],
            "give --method trak or logra, --halves, or --ihvp cg, .* or arnoldi",
            ["--ihvp", "cg"],
        ),
        (["--finetuned-data", data], "or --adapter-hop, of the fine-tuned", ["--adapter-hop"]),
        (["--processes", 2], "give --dry-run", ["--dry-run"]),
        (["--damping-scale", 1, "--damping", 1], "nothing reads --damping-scale here: leave .* --damping out", None),
    ]
    for flags, match, reader in cases:
        explain(match, *flags)
        assert reader is None or accepted(*flags, *reader)
    for method in ("trak", "logra"):
        assert accepted("--method", method, "--pretrained-data", data, "--ihvp-examples", 2)
        explain("nothing reads --finetuned-data", "--method", method, "--finetuned-data", data)
    for method in ("source", "gdp", "cka"):
        explain("nothing reads --pretrained-data", "--method", method, "--pretrained-data", data)
    assert accepted("--adapter-hop", "--ihvp-examples", 2)
    assert accepted("--halves", 2, "--ihvp-examples", 2, "--pretrained-data", data)
    single = {"pretrained": None, "pretrained_factors": None, "method": "single-stage"}
    explain(
        "nothing reads --pretrained-data .*, with --pretrained", "--pretrained-data", data, "--ihvp", "cg", **single
    )
    queries = write_rows(tmp_path / "q.jsonl", [{"prompt": "Who?"}])
    for completion in ("", " Ada"):
        explain("--completion belongs to --query", query=None, completion=completion, queries=queries)
    fit("nothing reads --processes here: .* --dry-run", "--processes", 2)
    model = ["--model", world.base, "--data", data, "--output", tmp_path / "index"]
    for flag in ("--damping", "--damping-scale"):
        refused(build_index, f"nothing reads {flag} here: .* give --factors", *model, flag, 0.5)
    both = ["--damping-scale", 0.5, "--damping", 1, "--factors", world.base_factors]
    refused(build_index, "nothing reads --damping-scale", *model, *both)


def test_a_configuration_is_asked_again_with_another_inverse_or_damping(world, tmp_path):
    flags = [*world.pair, *world.factors, *QUERY, *ALL]
    cg = ["--ihvp", "cg", "--ihvp-iterations", 2, "--ihvp-examples", 4, "--damping", 3]
    assert influence(*flags, *cg, "--output", tmp_path / "cg") == 0
    asked = ["--config", tmp_path / "cg" / "config.yaml"]
    assert influence(*asked, "--ihvp", "ekfac", "--damping-scale", 0.5, "--output", tmp_path / "ekfac") == 0
    assert influence(*flags, "--damping-scale", 0.5, "--output", tmp_path / "plain") == 0
    assert by_candidate(tmp_path / "ekfac") == by_candidate(tmp_path / "plain")
    assert yaml.safe_load((tmp_path / "ekfac" / "config.yaml").read_text())["damping"] is None
    again = ["--config", tmp_path / "ekfac" / "config.yaml"]
    assert influence(*again, "--output", tmp_path / "again") == 0  # what is not read stays where it is


def test_a_configuration_is_asked_other_questions(world, tmp_path):
    flags = [*world.pair, *ALL, "--method", "gdp", "--max-new-tokens", 2]
    assert influence(*flags, *QUERY, "--output", tmp_path / "one") == 0
    queries = write_rows(tmp_path / "q.jsonl", [{"id": name, "prompt": "Who?", "completion": " Ada"} for name in "ab"])
    one, many = (["--config", tmp_path / name / "config.yaml"] for name in ("one", "many"))
    assert influence(*one, "--queries", queries, "--output", tmp_path / "many") == 0
    assert set(scores(tmp_path / "many")["query_id"].to_pylist()) == {"a", "b"}
    written = yaml.safe_load((tmp_path / "many" / "config.yaml").read_text())
    assert written["query"] is written["completion"] is None
    assert influence(*many, *QUERY, "--output", tmp_path / "back") == 0
    assert by_candidate(tmp_path / "back") == by_candidate(tmp_path / "one")
    # an answer belongs to its question
    assert influence(*one, "--query", "What is late?", "--output", tmp_path / "other") == 0
    assert yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())["completion"] is None
    assert influence(*one, "--completion", " Graz", "--output", tmp_path / "answer") == 0
    assert by_candidate(tmp_path / "answer") != by_candidate(tmp_path / "one")
    assert influence(*one, "--query", "Who?", "--queries", queries) == 2
    assert influence(*many, "--completion", " Ada") == 2
