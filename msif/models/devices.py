"""Where a model can be run."""

from __future__ import annotations

import torch

from msif import distributed
from msif.errors import MsifError


def resolve_device(device: str) -> torch.device:
    """The device of a --device argument; "meta" has shapes and no numbers.

    Raises:
        MsifError: there is no such device, it has no float64, or several processes would share it.
    """
    if device in ("auto", "cuda"):
        _check_not_shared()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise MsifError(f"There is no device {device!r}: give --device auto, cpu or cuda.") from error
    if target.type == "meta":
        return target
    if target.type not in ("cpu", "cuda", "mps", "xpu"):
        raise MsifError(f"Device {device!r} cannot hold a model: give --device auto, cpu or cuda.")
    check_float64(target)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise MsifError(f"--device {device} is asked for, but there is no CUDA device here: give --device cpu or auto.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise MsifError(f"There is no {device} here: the last CUDA device is cuda:{torch.cuda.device_count() - 1}.")
    try:
        torch.zeros(1, device=target)
    except Exception as error:  # each backend fails in its own way
        raise MsifError(f"Device {device!r} cannot be used here: give --device auto, cpu or cuda.") from error
    try:
        torch.zeros(1, device=target, dtype=torch.float64)
    except Exception as error:  # so is some of Intel's
        raise _no_float64(target) from error
    return target


def _check_not_shared() -> None:
    """Processes on one device end in an error of nccl's."""
    if distributed.sharing() > 1:
        raise MsifError(
            f"{distributed.sharing()} processes would share one CUDA device: start as many on a machine as it has "
            "devices (torchrun --nproc-per-node), or give --device cpu."
        )


def check_float64(device: torch.device) -> None:
    """
    Raises:
        MsifError: the device is of a kind that has no float64.
    """
    if device.type == "mps":
        raise _no_float64(device)


def _no_float64(device: torch.device) -> MsifError:
    return MsifError(
        f"Device '{device}' has no float64, in which eigenvectors and inner products are computed: give --device cpu "
        "(in Python: model.to('cpu'))."
    )
