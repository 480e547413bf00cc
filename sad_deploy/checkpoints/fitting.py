"""A state dict into a network: the names' prefixes, what does not fit, and what is done about the type.

The names need not be the network's own if only a prefix differs. What was taken off, put on or left out is
said; of what does not fit, all is said at once, with the nearest names and the shapes.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from sad_runtime.errors import UserError

from ..shorten import shorten
from .contents import NESTED, below

_WRAPPERS = ("module.", "_orig_mod.")
_AVERAGED = "n_averaged"
_COUNTER = ".num_batches_tracked"
_COUNTED = ("*total_ops", "*total_params")
"""What profilers (thop) leave in a network."""

_SHOWN = 4


def without_prefix(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A network's own weights from among those of what it was a part of while it was trained.

    1. All names are there: nothing is done.
    2. ``DataParallel`` (``module.``), ``torch.compile`` (``_orig_mod.``) and torch's ``AveragedModel`` put a
       prefix before all names: it is taken off.
    3. Lightning and others save a module that holds the network, its loss and perhaps an averaged copy: the
       names are ``model.conv1.weight``, ``criterion.weight``. What has a prefix before the network's names is
       taken: of several one whose shapes fit, then a usual one, then the first in the file.
    4. The network lies in a wrapper, and the file holds what it wraps: the wrapper's prefix is put on.

    Args:
        state: Tensors by name.
        expected: The network's own.
        source: What to call the weights in a note.

    Returns:
        The tensors and, in sentences, what was done; as they are, and no sentence, if nothing had to be done
        or no prefix fits.
    """
    required = [name for name in expected if not name.endswith(_COUNTER)]
    if not required or all(name in state for name in required):
        return dict(state), ()
    inner, taken_off = _unwrapped(dict(state))
    said = (f"the names in {source} begin with {taken_off}, which was taken off",) if taken_off else ()
    if all(name in inner for name in required):
        return inner, said
    if found := _part(inner, expected, required, (taken_off, source)):
        return found
    outer = next((name.partition(".")[0] + "." for name in required if "." in name), "")
    if outer and all(name.startswith(outer) for name in expected):
        found = without_prefix(inner, below(expected, outer), source=source)
        wanted = [name.removeprefix(outer) for name in required]
        if all(name in found[0] for name in wanted):
            note = f"the weights of {source} are those of the network's {outer.removesuffix('.')}"
            return {outer + name: value for name, value in found[0].items()}, (*said, *found[1], note)
    return inner, said


def _unwrapped(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Without wrappers' prefixes, and these."""
    taken = ""
    for _ in range(2 * len(_WRAPPERS)):  # any may be outside the other
        inside = {name: value for name, value in state.items() if name != _AVERAGED}
        prefix = next((wrapper for wrapper in _WRAPPERS if all(k.startswith(wrapper) for k in inside)), None)
        if not inside or prefix is None:
            break
        state, taken = below(inside, prefix), taken + prefix
    return state, taken


def _part(
    state: dict[str, Tensor],
    expected: Mapping[str, Tensor],
    required: list[str],
    outside: tuple[str, str],
) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """Case 3; ``outside`` is what was taken off before, and what to call the weights."""
    taken_off, source = outside
    first = required[0]
    prefixes = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    misfits = {
        prefix: sum(state[prefix + name].shape != expected[name].shape for name in required)
        for prefix in prefixes
        if all(prefix + name in state for name in required)
    }
    if not misfits:
        return None
    fitting = [prefix for prefix in misfits if misfits[prefix] == min(misfits.values())]
    taken, *others = sorted(fitting, key=lambda prefix: prefix.removesuffix(".") not in NESTED)
    rest = [name for name in state if not name.startswith(tuple(fitting))]
    left_out = f"; left out: {shorten(rest, _SHOWN)}" if rest else ""
    notes = [f"the weights of {source} whose names begin with {taken_off}{taken} were taken{left_out}"]
    if others:
        keys = " or ".join(f"--weights-key {prefix.removesuffix('.')}" for prefix in others)
        notes.append(f"those that begin with {', '.join(others)} would fit as well: {keys} takes them")
    return below(state, taken), tuple(notes)


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    num_classes: int,
    ignore: Iterable[str] = (),
    ignore_keys: Iterable[str] = (),
) -> tuple[str, ...]:
    """Copy a state dict into a network; every parameter and buffer must be there.

    Missing ``num_batches_tracked`` counters of BatchNorm are forgiven: nothing reads them here. Numbers that
    profilers left (``total_ops``) are left out. The names may have a prefix in common: see
    :func:`without_prefix`. Weights of another precision become the network's.

    Args:
        model: Changed in place, or, on error, not at all.
        state: Tensors by name.
        source: What to call the weights in an error.
        num_classes: K of the network, by which a class-count mismatch is recognised.
        ignore: Beginnings of keys to leave out, which the network is known not to have.
        ignore_keys: Patterns of keys to leave out, such as ``*.aux.*``.

    Returns:
        Sentences about what was chosen and left out.

    Raises:
        UserError: Keys are missing, unexpected or of the wrong shape, or values are not finite or quantized;
            all of it is said at once, shortened. Or nothing has a name that is to be ignored.
    """
    expected = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    state, ignored = _without_ignored(state, expected, tuple(ignore_keys), source)
    state, notes = without_prefix(state, expected, source=source)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(ignore))}
    wrong = {k: v for k, v in state.items() if k in expected and v.shape != expected[k].shape}
    if found := _other_class_count(wrong, expected, num_classes):
        raise UserError(
            f"{source} has {found} classes, the model {num_classes}: {_by_shapes(wrong, expected)[0]}",
            hint=f"the data, or --classes FILE, must name the {found} classes they were trained on",
        )
    if problems := _problems(state, expected, wrong):
        raise UserError(
            f"{source} does not fit {type(model).__name__}: " + "; ".join(problems),
            hint=_advice(wrong, expected),
        )
    model.load_state_dict(state, strict=False)
    return ignored + notes + _of_other_types(state, expected, source)


def _without_ignored(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], patterns: tuple[str, ...], source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    unused = [pattern for pattern in patterns if not fnmatch.filter(state, pattern)]
    if unused:
        raise UserError(
            f"--ignore-keys {','.join(unused)}: no name in {source} is like that",
            hint=f"its names are {shorten(list(state), _SHOWN)}; * stands for anything",
        )
    left = {
        name
        for pattern in (*patterns, *_COUNTED)
        for name in fnmatch.filter(state, pattern)
        if pattern in patterns or (name not in expected and state[name].numel() == 1)
    }
    kept = {name: value for name, value in state.items() if name not in left}
    return kept, ((f"left out of {source}: {shorten(sorted(left), _SHOWN)}",) if left else ())


def _problems(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], wrong: Mapping[str, Tensor]
) -> list[str]:
    """All that does not fit."""
    missing = [k for k in expected if k not in state and not k.endswith(_COUNTER)]
    unexpected = [k for k in state if k not in expected]
    near = [
        f"{name} (nearest: {close[0]})"
        if (close := difflib.get_close_matches(name, unexpected, n=1, cutoff=0.5))
        else name
        for name in missing[:_SHOWN]
    ]
    floating = {k: v for k, v in state.items() if v.is_floating_point()}
    found = [
        _listed("missing", near + missing[_SHOWN:]),
        _listed("unexpected", unexpected),
        _listed("wrong shape", _by_shapes(wrong, expected)),
        _listed("not finite", [k for k, v in floating.items() if not bool(v.isfinite().all())]),
        _listed("quantized", [k for k, v in state.items() if v.is_quantized]),
    ]
    return [problem for problem in found if problem]


def _by_shapes(wrong: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [f"{k} {tuple(v.shape)} instead of {tuple(expected[k].shape)}" for k, v in wrong.items()]


def _advice(wrong: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    for name, value in wrong.items():
        (had, *rest), (has, *others) = (list(t.shape[1:]) or [0] for t in (value, expected[name]))
        if (
            value.dim() == 4
            and value.shape[0] == expected[name].shape[0]
            and rest == others
            and 3 in (had, has)
        ):
            return (
                f"the weights are for images of {had} channels, the network for {has}: build it so, "
                f"for example with timm:NAME(in_chans={had}) or a factory's argument"
            )
    return (
        "check that --model names the network these weights were trained with; --ignore-keys PATTERN leaves "
        "unexpected ones out"
    )


def _of_other_types(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> tuple[str, ...]:
    types = {
        str(value.dtype).removeprefix("torch.")
        for name, value in state.items()
        if value.is_floating_point() and value.dtype is not expected[name].dtype
    }
    return (f"{source} is in {', '.join(sorted(types))}; float32 is computed in",) if types else ()


def _other_class_count(
    wrong: Mapping[str, Tensor], expected: Mapping[str, Tensor], num_classes: int
) -> int | None:
    """The checkpoint's class count, if that alone is what does not fit."""
    counts = set()
    for key, value in wrong.items():
        shape = expected[key].shape
        if not shape or shape[0] != num_classes or value.dim() != len(shape) or value.shape[1:] != shape[1:]:
            return None
        counts.add(value.shape[0])
    return counts.pop() if len(counts) == 1 else None


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {shorten(names, _SHOWN)}" if names else ""
