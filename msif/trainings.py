"""τ of the stages' trainings: as the files beside a model tell it, or as the evidence has it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from msif.attribution.damping import AUTO, EVIDENCE, Damping, Tau
from msif.attribution.evidence import evidence_tau
from msif.attribution.gradients import Side
from msif.attribution.methods import DAMPED
from msif.errors import MsifError
from msif.models.training import TrainingUnknown
from msif.options import Options
from msif.stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """τ of a stage, and whether files told it ("auto") or the evidence did."""

    stage: Stage
    tau: Tau
    kind: str


@dataclass(frozen=True)
class Trainings:
    """What a run takes of its stages' trainings.

    Attributes:
        damping: with the α that is taken in the place of none.
        known: of the stages whose training is read.
        warning: why α is 0 where nobody said so.
    """

    damping: Damping
    known: tuple[Known, ...] = ()
    warning: str | None = None

    def beside(self, *known: Known) -> Trainings:
        """With more of them."""
        return replace(self, known=(*self.known, *known))

    def tau_of(self, stage: Stage) -> Tau | None:
        """None where its training is not read."""
        return next((one.tau for one in self.known if one.stage is stage), None)


@dataclass(frozen=True)
class Reader:
    """
    Attributes:
        first, last: one stage where there is a single one.
        estimate: whether the run is foretold alone, for which the evidence is not taken.
    """

    options: Options
    first: Stage
    last: Stage
    estimate: bool = False

    def read(self) -> Trainings:
        """
        Raises:
            MsifError: what was asked for by name is not known.
        """
        options, found = self.options, Trainings(self.options.damping)
        if options.method == "source":
            return found.beside(*self._of_source())
        if options.method not in DAMPED:
            return found
        if options.method == "multi-stage" and self.first is not self.last:  # before weights are shared out
            found = self._of_adapter() if options.adapter_hop else self._of_last()
        kind = options.damping.scale_of(later=False)
        if kind is not None:
            return found.beside(self._known(self.first, kind))
        if options.nears:
            reader = "--halves reads how the first model was trained"
            return found.beside(self._needed(self.first, reader, "leave --halves out"))
        return found

    def _known(self, stage: Stage, kind: str = AUTO) -> Known:
        """By the name of a scale.

        Raises:
            TrainingUnknown: files do not tell, nor does the evidence.
        """
        unknown = None
        if kind == AUTO:
            try:
                return Known(stage, stage.tau, AUTO)
            except TrainingUnknown as error:
                if stage.learning_rate_sum is not None:  # what was said is not passed over
                    raise
                unknown = error
        if self.estimate:
            return Known(stage, {module.name: torch.ones(len(module.blocks)) for module in stage.tracked}, EVIDENCE)
        tokens = int(stage.store.manifest["counts"]["supervised"])
        try:
            tau = evidence_tau(_side(stage), stage.store, tokens, None if stage is self.first else _side(self.first))
        except TrainingUnknown as error:
            raise unknown.and_(error.reason, *error.remedies) if unknown else error from error
        pulls = sorted(1 / float(value[0]) for value in tau.values())
        told = f", for {unknown.reason}" if unknown else ""
        log.info("the evidence has 1/τ of %s from %.2g to %.2g%s", stage.loaded.name, pulls[0], pulls[-1], told)
        return Known(stage, tau, EVIDENCE)

    def _needed(self, stage: Stage, reader: str, *without: str) -> Known:
        """The same for what no number can stand for.

        Raises:
            MsifError: see ``TrainingUnknown.of``.
        """
        try:
            return self._known(stage)
        except TrainingUnknown as error:
            raise error.of(reader, *without) from error

    def _of_source(self) -> list[Known]:
        """Of whole trainings, or by files alone of the segments between checkpoints."""
        reader = "--method source reads how each model was trained", "use --method multi-stage, which can do without"
        found = []
        for stage in dict.fromkeys((self.first, self.last)):
            if stage.checkpoints is None:
                found.append(self._needed(stage, *reader))
                continue
            try:
                found += [Known(part, part.tau, AUTO) for part in stage.segments]
            except TrainingUnknown as error:
                raise error.of(*reader) from error
        return found

    def _of_last(self) -> Trainings:
        """With the α that the run takes in the place of none, so that its configuration repeats it.

        That of λ where it is a name; else 1/τ where it is known, by the name of what told it; else 0, with a warning.
        Nobody asked for it, so nothing that lies beside the model is an error.
        """
        last, damping = self.last, self.options.damping
        adapted = last.loaded.adapter
        if adapted is not None and adapted.other is None:
            log.info(
                "%s is taken as a fine-tuning of all weights; --adapter-hop takes it as LoRA, which foretold "
                "retraining better (docs/adapters.md)",
                adapted.name,
            )
        if damping.alpha is None and damping.is_natural:
            damping = replace(damping, alpha=damping.damping)
        kind = damping.scale_of(later=True)
        if kind is not None:
            return Trainings(damping).beside(self._known(last, kind))
        if damping.alpha is not None:
            return Trainings(damping)
        try:
            known = self._known(last)
        except TrainingUnknown as error:
            warning = (
                f"--alpha is 0, since nothing tells the scale of the fine-tuning of {last.loaded.name} "
                f"({error.reason}): give --alpha X (1/τ of fine-tuning), or if only its learning rates are missing "
                "--learning-rate-sum."
            )
            return Trainings(replace(damping, alpha=0.0), warning=warning)
        return Trainings(replace(damping, alpha=known.kind)).beside(known)

    def _of_adapter(self) -> Trainings:
        """α of the adapter's own parameters is 1/τ of their training, unless it is given.

        Raises:
            MsifError: its files do not tell.
        """
        damping = self.options.damping
        if damping.alpha is None:
            damping = replace(damping, alpha=damping.damping if damping.is_natural else AUTO)
        kind = damping.scale_of(later=True)
        if kind == EVIDENCE:
            raise MsifError("the evidence has no α of an adapter's own parameters: give --alpha auto, or X above 0.")
        if kind is None:
            return Trainings(damping)
        try:
            return Trainings(damping).beside(Known(self.last, self.last.adapter_tau, AUTO))
        except TrainingUnknown as error:
            raise MsifError(
                f"--adapter-hop needs the adapter's pull to where it started, and 1/τ of its training is not known "
                f"({error.reason}): give --alpha X, above 0."
            ) from error


def _side(stage: Stage) -> Side:
    """What is tracked of its model, as it is: ``Stage.side`` shares weights out where they are to be."""
    return Side(stage.loaded.model, stage.tracked, stage.objective)
