"""The other toolkits: which version, and which of their methods at which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.common.cache import hashed


@dataclass(frozen=True)
class Setting:
    """
    Attributes:
        method: as tables name it.
        setting: what distinguishes it among those of this method.
        options: what the adapter takes.
    """

    method: str
    setting: str
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Of its files."""
        readable = "".join(c if c.isalnum() else "_" for c in f"{self.method} {self.setting}")
        return f"{readable}.{hashed(dict(self.options))[:8]}"


@dataclass(frozen=True)
class Toolkit:
    """
    Attributes:
        name: as tables name it, and in lower case of its flag.
        adapter: a module of ``experiments.peers.adapters``.
        package, version: what must be installed in its environment.
    """

    name: str
    adapter: str
    package: str
    version: str
    settings: tuple[Setting, ...]

    @property
    def flag(self) -> str:
        return f"--{self.adapter}-python"


LAYERS, MAPS = "layers", "layers and unembedding"
EKFAC = ("--method", "kfac", "--hessian_cfg.ev_correction")
DAMPING_FLAG = "--hessian_pipeline_cfg.inversion_cfg.damping_factor"


def _kronfluence() -> list[Setting]:
    dampings = {"damping 1e-8 (default)": 1e-8, "damping 0.1 mean": None}
    swept = {f"damping {value:g}": value for value in (1e-4, 1e-3, 1e-2, 1e-1)}
    return [
        Setting("EK-FAC", f"{maps}, {name}", {"unembedding": maps == MAPS, "damping": value})
        for maps, values in ((MAPS, dampings | swept), (LAYERS, dampings))
        for name, value in values.items()
    ]


def _bergson() -> list[Setting]:
    """It tracks the layers only."""

    def of(method: str, setting: str, command: str, *flags: str) -> Setting:
        return Setting(method, setting, {"command": command, "flags": flags})

    unrolled = ("--model_path", "{model}", "--checkpoints", "{checkpoints}", "--segments", "4")
    return [
        of("EK-FAC", "damping 0.1 mean (default)", "ekfac", *EKFAC),
        *(of("EK-FAC", f"damping {c} mean", "ekfac", *EKFAC, DAMPING_FLAG, c) for c in ("0.01", "1")),
        of("EV-Shampoo", "damping 0.1 mean (default)", "ekfac", "--method", "shampoo", "--hessian_cfg.ev_correction"),
        of("TrackStar", "16 × 16 features (default)", "trackstar"),
        of("TrackStar", "16 × 16 features, Adam's moments", "trackstar", *MOMENTS),
        of("TRAK", "16 columns (default)", "trak", *TRAK),
        of("SOURCE", "4 segments, Adam", "approxunrolling", *unrolled, *UNROLLED),
        of("EK-FAC and CG", "12 steps on all documents", "ekfac", *EKFAC, *CG),
    ]


MOMENTS = ("--optimizer_state", "{moments}")
TRAK = ("--projection_target", "global", "--loss_fn", "log_odds")
UNROLLED = ("--method", "kfac", "--ev_correction", "--use_adam_preconditioner")
CG = ("--solver", "cg", "--num_steps", "12", "--astra.batch_size", "260")


def _dattri() -> list[Setting]:
    """One document at a time takes it long."""
    swept = {
        "damping 1e-3 (default)": {},
        "damping 1e-5": {"damping": 1e-5},
        "damping 0.1 mean": {"damping": 0.1, "relative_damping": True},
    }
    given: dict[str, Any] = {"attributor": "ekfac", "unembedding": True}
    return [
        Setting("EK-FAC", f"{MAPS}, {name}", given | ({"options": options} if options else {}))
        for name, options in swept.items()
    ]


TOOLKITS = (
    Toolkit("Kronfluence", "kronfluence", "kronfluence", "1.0.1", tuple(_kronfluence())),
    Toolkit("Bergson", "bergson", "bergson", "2.5.1", tuple(_bergson())),
    Toolkit("dattri-llm", "dattri", "dattri-llm", "0.1.0", tuple(_dattri())),
)
