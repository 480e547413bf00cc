"""The state of a calibration while it is made, in a file beside its bundle: ``--resume`` goes on from it.

Everything that a batch leaves behind is in it: the sums of every process, and what the sweep of η found so
far. The order of images and the attacks' noise follow from the seed. So what is taken up again ends with the
same bits, provided that it is the same calibration: the file says of which one it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sad_runtime.errors import UserError, reason_of
from sad_runtime.files import written_whole

from .data import ImageSet
from .processes import ALONE, Processes
from .running_statistics import Share
from .sweep import CalibrationSweep

_KEY = "sad_deploy_calibration"

_LEAST_APART = 0.2
"""Seconds between two savings."""

_SHARE = 50
"""How many times as long as the last saving took it is at least until the next one: 2 % of the time."""

State = Mapping[float, Share]
"""As :meth:`.sweep.CalibrationSweep.state` gives it."""


class Keeper:
    """Keeps nothing: of a calibration that begins at the beginning.

    Args:
        processes: That work together.

    Attributes:
        processes: These.
        done: Batches, of all processes, that need not be done again.
        etas: That were calibrated for then.
        state: What this process had then.
        notes: What :meth:`note` was told before, JSON values; None if nothing.
    """

    done = 0
    etas: tuple[float, ...] = ()
    state: State = MappingProxyType({})
    notes: Any = None

    def __init__(self, processes: Processes = ALONE) -> None:
        self.processes = processes

    def note(self, value: Any) -> None:
        """Keep JSON values beside the statistics from now on."""

    def after(self, sweep: CalibrationSweep) -> None:
        """Called when every process has done one more batch; all must call it."""


NOT_KEPT = Keeper()


class FileKeeper(Keeper):
    """Keeps the state in a file.

    Args:
        path: The file.
        identity: What makes this calibration the same as the one that was interrupted, by name.
        processes: That work together; the first one writes.
        resume: Whether to go on from what is there.
        notice: Called with a line once the file cannot be written: the calibration goes on without.

    Raises:
        UserError: What is there is of another calibration, or cannot be read.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, str],
        processes: Processes,
        *,
        resume: bool,
        notice: Callable[[str], None] = warnings.warn,
    ) -> None:
        super().__init__(processes)
        self._path, self._identity, self._notice, self._is_kept = path, dict(identity), notice, True
        self._saved_at, self._cost = time.monotonic(), 0.0
        read = _read(path, self._identity) if resume and processes.is_first else None
        found = processes.gather(read)[0]
        if found is None:
            return
        said, tensors = found
        self.done, self.etas, self.notes = said["batches"], tuple(said["etas"]), said["notes"]
        self.state = {
            eta: Share(
                tensors[f"{processes.rank}/{i}/sum"],
                tensors[f"{processes.rank}/{i}/squares"],
                *said["counts"][processes.rank],
            )
            for i, eta in enumerate(self.etas)
        }

    def note(self, value: Any) -> None:
        """Keep JSON values beside the statistics from now on."""
        self.notes = value

    def after(self, sweep: CalibrationSweep) -> None:
        """Save the state if the last time is long enough ago.

        Raises:
            UserError: Another process has ended.
        """
        waited = time.monotonic() - self._saved_at
        if not self.processes.gather(waited > max(_LEAST_APART, _SHARE * self._cost))[0]:
            return
        started = time.monotonic()
        states = self.processes.gather(sweep.state())
        if self.processes.is_first and self._is_kept:
            try:
                self._write(sweep, states)
            except UserError as error:
                self._is_kept = False
                self._notice(f"{error.message}; the state of this calibration is not kept any more")
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started

    def _write(self, sweep: CalibrationSweep, states: Sequence[State]) -> None:
        said = {
            "identity": self._identity,
            "batches": sweep.batches,
            "etas": sweep.etas,
            "counts": [_counts(next(iter(state.values()))) for state in states],  # the same for each eta
            "notes": self.notes,
        }
        tensors = {
            f"{rank}/{i}/{name}": tensor
            for rank, state in enumerate(states)
            for i, eta in enumerate(sweep.etas)
            for name, tensor in (("sum", state[eta].sum), ("squares", state[eta].squares))
        }
        content = safetensors.torch.save(tensors, {_KEY: json.dumps(said)})
        with written_whole(self._path, durable=True) as draft:
            draft.write_bytes(content)


def _counts(share: Share) -> tuple[int, int]:
    return share.count, share.until


def state_file(bundle: Path) -> Path:
    """Where the state of a calibration lies whose bundle goes to a folder."""
    return bundle.parent / f"{bundle.name}.calibrating"


def forget(path: Path) -> None:
    """Remove a state that nobody needs any more."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def identity_of(
    model: nn.Module, images: Mapping[str, ImageSet], options: Any, processes: Processes = ALONE
) -> dict[str, str]:
    """What must be the same when a calibration is taken up again, by a name for people.

    Args:
        model: Φ0.
        images: All that it sees, by any name.
        options: What was asked for; anything with a ``repr`` that says it all.
        processes: That work together.
    """
    network = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        network.update(name.encode())
        network.update(np.ascontiguousarray(value.detach().cpu().numpy()).data)
    seen = hashlib.sha256()
    for name, each in sorted(images.items()):
        seen.update(f"{name} {each.images.shape}".encode())
        for array in (each.images, each.labels):
            if array is not None:
                seen.update(np.ascontiguousarray(array).data)
    return {
        "options": repr(options),
        "network": network.hexdigest(),
        "images": seen.hexdigest(),
        "number of processes": str(processes.count),
        "device": next(model.parameters()).device.type,
        "version of torch": torch.__version__,
    }


def _read(path: Path, identity: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What a file says and holds; None if there is none."""
    try:
        with safetensors.safe_open(path, "pt") as opened:
            said = json.loads(opened.metadata()[_KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 -- no mapping
        before = said["identity"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the state of a calibration", hint="--overwrite begins anew"
        ) from error
    if other := [name for name, value in identity.items() if before.get(name) != value]:
        raise UserError(
            f"{path} is of another calibration: {', '.join(other)} differ",
            hint="--resume with what was asked for then, or --overwrite to begin anew",
        )
    return said, tensors
