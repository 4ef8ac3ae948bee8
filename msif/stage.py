"""A stage of training: a model, the data that it was trained on, and the factors of its curvature."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from msif.attribution.gradients import Side
from msif.attribution.stages import check_factors
from msif.curvature.fit import FitSettings, fit
from msif.curvature.store import FactorStore
from msif.data.batching import TokenBatches, spread
from msif.data.corpus import Corpus, as_corpus
from msif.data.format import FIELDS, Format, check_rows, choose_format
from msif.errors import MsifError, refuse_empty
from msif.models.adapted import Adapted
from msif.models.blocks import TrackedModule
from msif.models.loading import LoadedModel, load_model, resolve_device, wrap_model
from msif.models.objectives import Objective
from msif.models.roles import check_vocabulary, label_arguments, longest, objective_for
from msif.models.select import track_modules, vocabulary_blocks
from msif.models.sharding import shard
from msif.models.training import adapter_tau, natural_tau, training_segments
from msif.provenance import versions


class Stage:
    """One stage of training, from names, folders or objects; nothing is loaded or computed before it is needed.

    Args:
        model: a folder or hub name, or a model of transformers, with ``tokenizer``.
        data: what it was trained on: a file, folder or hub name, a ``datasets.Dataset``, or a list of texts or rows.
        factors: folder for its factors, which are fitted, resumed, or reused where they are there; without ``data``
            they must be.
        task: "lm", or "classification".
        modules, split_heads, vocabulary_basis: what is tracked, see ``track_modules``; where nothing is said, all
            linear maps, or what factors that are there were fitted for.
        dtype, device: see ``load_model``.
        fields: which fields of the data are read (text_field, prompt_field, completion_field, messages_field,
            label_field), and of which split.
        max_length: tokens kept of a document; 512 where the model has as many positions.
        max_examples: only the first so many rows.
        streaming: read the data on the fly.
        batch_tokens: of a padded batch.
        settings: how factors are fitted; its seed is also that of the order of batches.
        learning_rate_sum: of its training, for τ where no ``trainer_state.json`` lies beside the model.
        checkpoints: folder of a Trainer's checkpoints of its training, for method "source".
        moved_to: where the data of factors that are there are now, for methods that go over them again.
        memory: bytes of the device that a fit may take.
        fsdp: share the weights out between the processes of ``torchrun``, for a model larger than a device.
        checkpoint_every: seconds between checkpoints of a fit.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        data: Any = None,
        factors: str | Path | None = None,
        *,
        tokenizer: Any = None,
        task: str = "lm",
        modules: str | None = None,
        split_heads: bool | None = None,
        vocabulary_basis: str = "identity",
        dtype: str = "auto",
        device: str = "auto",
        fields: Mapping[str, str | None] | None = None,
        split: str | None = None,
        max_length: int | None = None,
        max_examples: int | None = None,
        streaming: bool = False,
        batch_tokens: int = 8192,
        settings: FitSettings | None = None,
        learning_rate_sum: float | None = None,
        checkpoints: str | Path | None = None,
        moved_to: str | None = None,
        memory: int | None = None,
        fsdp: bool = False,
        checkpoint_every: float = 600.0,
    ) -> None:
        refuse_empty(model=model, data=data, factors=factors, checkpoints=checkpoints, moved_to=moved_to)
        if isinstance(model, nn.Module) and tokenizer is None:
            raise MsifError("a model that is an object needs its tokenizer: give tokenizer=.")
        self.model, self.data, self.factors, self.tokenizer, self.task = model, data, factors, tokenizer, task
        self.modules, self.split_heads, self.vocabulary_basis = modules, split_heads, vocabulary_basis
        self.dtype, self.device = dtype, device
        self.fields: dict[str, Any] = dict(fields or {})
        self.split, self.streaming = split, streaming
        self.length, self.max_examples, self.batch_tokens = max_length, max_examples, batch_tokens
        self.settings, self.learning_rate_sum = settings or FitSettings(), learning_rate_sum
        if fsdp and isinstance(model, nn.Module):
            raise MsifError("fsdp= shares weights out as they are loaded: give the model's folder or name.")
        if checkpoints is not None and isinstance(model, nn.Module):
            raise MsifError("checkpoints= are of the training of a model in a folder: give the folder.")
        if checkpoints is not None and learning_rate_sum is not None:
            raise MsifError("the learning rates of checkpoints are read from them: leave --learning-rate-sum out.")
        self.checkpoints = checkpoints
        self._since: Path | None = None  # the checkpoint from which on its steps are counted
        self.moved_to, self.memory, self.checkpoint_every, self.fsdp = moved_to, memory, checkpoint_every, fsdp

    def __repr__(self) -> str:
        parts = [repr(str(self.model)) if not isinstance(self.model, nn.Module) else type(self.model).__name__]
        parts += [f"data={str(self.data)!r}"] if isinstance(self.data, (str, Path)) else []
        parts += [f"factors={str(self.factors)!r}"] if self.factors is not None else []
        return f"Stage({', '.join(parts)})"

    def checked(self) -> Stage:
        """What can be told to be wrong with the device and the data before the model is loaded.

        Raises:
            MsifError: the first thing found.
        """
        resolve_device(self.device)
        vocabulary_blocks(self.vocabulary_basis)
        if self.corpus is not None:
            choose_format(self.corpus, task=self.task, **self.fields)
        return self

    @cached_property
    def loaded(self) -> LoadedModel:
        if isinstance(self.model, nn.Module):
            return wrap_model(self.model, self.tokenizer)  # type: ignore[arg-type]
        return load_model(self.model, self.task, self.dtype, "cpu" if self.fsdp else self.device)

    @cached_property
    def corpus(self) -> Corpus | None:
        if self.data is None:
            return None
        return as_corpus(self.data, split=self.split, streaming=self.streaming, max_examples=self.max_examples)

    @cached_property
    def format(self) -> Format:
        """How its data are read.

        Raises:
            MsifError: there are no data, or not with such fields.
        """
        labels = label_arguments(self.loaded, self.task)
        return choose_format(self._rows(), task=self.task, **labels, **self.fields)

    @cached_property
    def max_length(self) -> int:
        return longest(self.length, [self.loaded])

    @cached_property
    def batches(self) -> TokenBatches:
        """Its data, in the batches that a fit takes.

        Raises:
            MsifError: there are no data, or they have a token that the model has not.
        """
        batches = TokenBatches(
            self._rows(),
            self.format,
            self.loaded.tokenizer,
            self.max_length,
            self.batch_tokens,
            seed=self.settings.seed,
        )
        check_vocabulary(batches, self.loaded)
        return batches

    def _rows(self) -> Corpus:
        if self.corpus is None:
            raise MsifError(f"{self} has no data: give data=, what the model was trained on.")
        return self.corpus

    @cached_property
    def objective(self) -> Objective:
        return objective_for(self.task, self.loaded)

    @cached_property
    def tracked(self) -> list[TrackedModule]:
        """What is tracked, or of factors that are there what they were fitted for.

        Raises:
            MsifError: there are no factors for some of it.
        """
        if self.opened is None:
            split_heads = self.split_heads is not False
            return track_modules(self.loaded.model, self.modules or "maps", split_heads, self.vocabulary_basis)
        split = any(module.splits_heads for module in self.store.tracked)
        if self.split_heads is not None and self.split_heads != split:
            wanted = "--split-heads" if self.split_heads else "--no-split-heads"
            raise MsifError(
                f"the factors in {self.factors} were not fitted with {wanted}: leave it out, or fit them so."
            )
        if self.modules is None:
            return self.store.tracked
        chosen = {module.name for module in track_modules(self.loaded.model, self.modules)}
        kept = [module for module in self.store.tracked if module.name in chosen]
        if len(kept) < len(chosen):
            missing = min(chosen - {module.name for module in kept})
            raise MsifError(
                f"the factors in {self.factors} have none for '{missing}': fit them with --modules {self.modules}."
            )
        return kept

    @cached_property
    def side(self) -> Side:
        """What is tracked of its model, whose weights from here on are shared out if they are to be."""
        side = Side(self.loaded.model, self.tracked, self.objective)
        if self.fsdp:
            shard(self.loaded.model, resolve_device(self.device))
        return side

    @cached_property
    def opened(self) -> FactorStore | None:
        """Factors that must be there, for there are no data to fit them on."""
        return FactorStore.open(self.factors) if self.factors is not None and self.data is None else None

    @cached_property
    def store(self) -> FactorStore:
        """Its factors: reused where they are in the folder, else fitted into it, from where an interrupted fit was.

        Raises:
            MsifError: there is no folder, or it holds other factors; no data to fit on; see ``fit``.
        """
        if self.factors is None:
            raise MsifError(f"{self} has no factors: give factors=, a folder for them.")
        if self.opened is not None:
            check_factors(self.opened, self.loaded)
            return self.opened
        if self.loaded.model.device.type == "meta":
            raise MsifError("device 'meta' has no weights to fit on: it is for estimates.")
        check_rows(self._rows(), self.format)
        return fit(
            self.side.model,
            self.side.tracked,
            self.objective,
            self.batches,
            self.factors,
            self.settings,
            identity=self.identity,
            provenance={**self.named, "device": self.device, "versions": versions()},
            checkpoint_every=self.checkpoint_every,
            memory=self.memory,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for two fits to be one, beside data and settings."""
        model = {"config": self.loaded.config, "weights": self.loaded.weights, "dtype": str(self.loaded.model.dtype)}
        return {"model": model, "task": self.task}

    @property
    def named(self) -> dict[str, str]:
        """The names of model and data, for messages and provenance."""
        data = self.data if isinstance(self.data, (str, Path)) else getattr(self.corpus, "name", None)
        return {"model": self.loaded.name, "data": str(data)}

    @cached_property
    def tau(self) -> dict[str, Tensor]:
        """τ of each block, from what its training left beside the model; see ``natural_tau``."""
        return natural_tau(self.loaded.name, self.loaded.model, self.tracked, self.learning_rate_sum, self._since)

    @cached_property
    def segments(self) -> list[Stage]:
        """A stage for each segment of its training, in order, the last with the model itself; or the stage alone.

        Factors of a checkpoint are in the folder of the stage's own, under the checkpoint's name.

        Raises:
            MsifError: see ``training_segments``.
        """
        if self.checkpoints is None:
            return [self]
        folders = training_segments(self.checkpoints, str(self.model))
        return [self._at(folder, since) for since, folder in zip([None, *folders], folders, strict=False)]

    def _at(self, folder: Path, since: Path | None) -> Stage:
        """The stage at a checkpoint, or at its end."""
        stage, own = copy(self), folder == Path(str(self.model)).expanduser()
        for name, value in vars(Stage).items():
            if isinstance(value, cached_property) and (name in ("tau", "segments") if own else name != "corpus"):
                stage.__dict__.pop(name, None)
        stage.checkpoints, stage._since = None, since
        if not own:
            stage.model = folder
            stage.factors = None if self.factors is None else Path(self.factors) / folder.name
        return stage

    @cached_property
    def adapter(self) -> Adapted:
        """What its training trained, LoRA on frozen weights.

        Raises:
            MsifError: it is no adapter in a folder, or another kind of one.
        """
        if self.loaded.adapter is None:
            raise MsifError(
                f"--adapter-hop is for a fine-tuned model that is an adapter's folder, and {self.loaded.name} is a "
                "whole model: leave it out, or give the adapter."
            )
        return self.loaded.adapter.checked()

    @cached_property
    def adapter_tau(self) -> dict[str, Tensor]:
        """τ of each of its adapter's parameters; see ``msif.models.training.adapter_tau``."""
        return adapter_tau(self.loaded.name, self.adapter, self.learning_rate_sum)

    def training(self, examples: int | None = None) -> TokenBatches:
        """Its own training data, or so many sequences of them: its ``data``, or else what its factors were fitted on.

        Raises:
            MsifError: they are not there, or not the same any more.
        """
        if self.opened is None:
            return spread(self.batches, examples)
        return spread(fitted_data(self.store, self.loaded, self.moved_to), examples)


def fitted_data(store: FactorStore, loaded: LoadedModel, moved_to: str | None = None) -> TokenBatches:
    """The data that factors were fitted on by ``msif.fit_factors``, as the batches of that fit.

    Raises:
        MsifError: the fit's configuration or its data are not there, or the data have changed.
    """
    path = store.path / "config.yaml"
    if not path.is_file():
        raise MsifError(
            f"{path} is not there, so the data of these factors is not known: fit them by msif.fit_factors."
        )
    flags: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = moved_to or flags["data"]
    options = {name: flags[name] for name in ("split", "streaming", "max_examples")}
    corpus = as_corpus(source, **options)
    fields = {name: flags[name] for name in FIELDS}
    format = choose_format(corpus, task=flags["task"], **label_arguments(loaded, flags["task"]), **fields)
    fitted: dict[str, Any] = store.manifest["run"]["data"]
    if corpus.fingerprint(format.columns) != fitted["content"]:
        raise MsifError(
            f"the data in {source} is not what the factors in {store.path} were fitted on: name the right file with "
            "--pretrained-data or --finetuned-data, or fit them again."
        )
    limits = {name: fitted[name] for name in ("max_length", "batch_tokens", "seed", "window")}
    return TokenBatches(corpus, format, loaded.tokenizer, **limits)
