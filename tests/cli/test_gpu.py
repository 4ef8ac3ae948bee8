"""On a GPU: the numbers of a CPU, by every method, and the speed of tensor cores without their rounding."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, tiny_model
from helpers import documents, spread
from torch.backends.cuda import matmul
from worlds import ALL, QUERY, by_candidate, influence, save_lm

import msif
from msif.attribution.damping import Damping
from msif.attribution.gradients import Side
from msif.attribution.inverses import IHVP
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.fit import FitSettings
from msif.curvature.inputs import device_and_dtype, find_input_groups
from msif.data.documents import collate
from msif.models import capture
from msif.models.objectives import CausalLM
from msif.models.select import track_modules
from msif.models.tensor_cores import products_of

pytestmark = pytest.mark.gpu

ASKED = [("Where was Ada born?", " Linz"), ("What is late?", " I")]
DAMPED = {"damping": Damping(damping_scale=1.0, alpha=0.01)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, world):
    """Stages with factors of their own on each device, of a tied vocabulary and everything tracked."""
    folder = tmp_path_factory.mktemp("devices")
    for seed, name in ((0, "pt"), (1, "ft")):
        save_lm(folder / name, seed=seed, tie_word_embeddings=True)
    data = {"pt": world.folder / "corpus.jsonl", "ft": world.folder / "pairs.jsonl"}

    def stages(device):
        return [
            msif.Stage(
                folder / name,
                data[name],
                folder / f"{name}-{device}",
                modules="everything",
                device=device,
                memory=10**9,
                learning_rate_sum=0.1,
            )
            for name in ("pt", "ft")
        ]

    return [stages("cpu"), stages("cuda")]


def same(first, second, tolerance=2e-3):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = list(first.values()), [second[key] for key in first]
    first, second = np.array(first), np.array(second)
    assert np.abs(first - second).max() < tolerance * np.abs(first).max()


@pytest.mark.parametrize("ihvp", ["ekfac", "kfac", "diagonal", "identity", "cg", "ekfac-cg", "lissa", "ekfac-lissa"])
def test_two_stages_by_every_inverse(pairs, ihvp):
    found = [msif.attribute(p, ASKED, "all", ihvp=IHVP(ihvp, iterations=4), top_k=2, **DAMPED) for p in pairs]
    for query in (0, 1):
        same(found[0].scores(query), found[1].scores(query))
        for here, there in zip(found[0].top(query, 2), found[1].top(query, 2), strict=True):
            parts = [[part for _, part in one.tokens] for one in (here, there)]
            same(*parts, 5e-3)
            same(here.blocks, there.blocks, 5e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gdp"},
        {"method": "cosine"},
        {"method": "cka"},
        {"method": "trak"},
        {"method": "logra"},
        {"normalize": "unit", **DAMPED},
        {"query_rank": 3, **DAMPED},
        {"halves": 2, **DAMPED},
        {"ihvp": IHVP("arnoldi", iterations=6), **DAMPED},
    ],
    ids=lambda options: "-".join(options),
)
def test_other_methods(pairs, options):
    same(*(msif.attribute(stages, ASKED, "all", **options).scores(1) for stages in pairs), 5e-3)


def test_an_index(pairs, world, tmp_path):
    from worlds import build_index

    found = []
    for device in ("cpu", "cuda"):
        flags = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--device", device]
        assert build_index(*flags, "--output", tmp_path / device) == 0
        asked = ["--pretrained", world.base, "--finetuned", world.tuned, "--corpus", world.folder / "corpus.jsonl"]
        flags = ["--method", "trackstar", "--index", tmp_path / device, "--r", "none", "--device", device]
        assert influence(*asked, *flags, *QUERY, *ALL, "--output", tmp_path / f"{device}-out") == 0
        found.append(by_candidate(tmp_path / f"{device}-out"))
    same(*found)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_architectures(name):
    """Fitted on a GPU, and asked there."""
    found = []
    for device in ("cpu", "cuda"):
        model = spread(tiny_model(name)).to(device)
        side = Side(model, track_modules(model, "maps"), CausalLM())
        asked, batch = collate(documents([6], seed=3, prompt=3)), collate(documents([6, 5, 7], prompt=2))
        scores = InfluenceScorer(side, side).score([asked], [batch])
        found.append(scores.values)
    same(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensor_cores_do_not_round(dtype, monkeypatch):
    """A and G are what float32 products give; Λ and scores, which rotate, are so within the rounding of sides."""
    found = []
    for exact in (True, False):
        if exact:
            monkeypatch.setattr(capture, "products_of", lambda model: products_of(torch.nn.Linear(1, 1)))
        model = spread(tiny_model("llama", hidden_size=128, intermediate_size=256)).to("cuda", dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 0.2
        tracked, objective = track_modules(model, "layers"), CausalLM()
        batches = [collate(documents([30] * 16, seed=seed)).to("cuda") for seed in range(4)]
        groups, place = find_input_groups(model, tracked, objective, batches[0]), device_and_dtype(model)
        covariances = CovariancePass(tracked, groups, *place)
        passed(model, tracked, objective, batches, covariances)
        factors = found[0][1] if found else covariances.decompose([module.name for module in tracked])
        moments = LambdaPass(tracked, groups, factors, *place)
        passed(model, tracked, objective, batches, moments)
        found.append((covariances.state(), factors, moments.state()))
        monkeypatch.undo()
    for part, tolerance in ((0, 1e-5), (2, 1e-3)):
        for name, total in found[0][part].items():
            difference = (found[1][part][name] - total).norm() / total.norm()
            assert difference < tolerance, name


def passed(model, tracked, objective, batches, consumer):
    with capture.Capture(model, tracked, consumer) as run:
        for batch in batches:
            run.run(objective, batch, FitSettings().cotangents(objective, consumer.stream))


def test_the_setting_comes_back():
    name = "fp32_precision" if hasattr(matmul, "fp32_precision") else "allow_tf32"
    before = getattr(matmul, name)
    narrow = torch.nn.Linear(1, 1).to("cuda", torch.bfloat16)
    with pytest.raises(KeyError), products_of(narrow)():
        assert getattr(matmul, name) != before
        raise KeyError
    assert getattr(matmul, name) == before
    with products_of(torch.nn.Linear(1, 1).cuda())():  # a user's float32 stays what the user wants
        assert getattr(matmul, name) == before


def test_one_process_with_nccl(world, zygote, tmp_path):
    flags = ["--data", world.folder / "corpus.jsonl", "--quiet", "--model", world.base]
    status, said = zygote.torchrun(1, "-m", "msif.fit_factors", *flags, "--output", tmp_path / "f")
    assert status == 0 and (tmp_path / "f" / "manifest.json").is_file(), said
    many = torch.cuda.device_count() + 1
    status, said = zygote.torchrun(many, "-m", "msif.fit_factors", *flags, "--output", tmp_path / "g")
    assert status != 0 and "would share one CUDA device" in said and not (tmp_path / "g").exists()
    status, said = zygote.torchrun(
        many, "-m", "msif.fit_factors", *flags, "--output", tmp_path / "h", "--device", "cpu"
    )
    assert status == 0, said
