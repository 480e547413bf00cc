"""Try a backend on a bundle's own images before it is used for the first time, and remember the result."""

from __future__ import annotations

from ..bundle import Bundle
from ..choices import BackendChoice
from ..devices import cuda_devices, processor_features, processor_name
from ..errors import BackendError
from ..verification.record import Record, key_of, remember, remembered
from ..verification.references import REFERENCES, read_references
from ..verification.trial import QUICK_IMAGES, verdict
from . import onnxruntime, openvino, tensorrt
from .load import BackendOptions, Loaded, file_of


def is_verifiable(bundle: Bundle) -> bool:
    """Whether it carries what its reference says."""
    return REFERENCES in bundle.manifest.files


def key(bundle: Bundle, choice: BackendChoice, options: BackendOptions) -> str:
    """Everything that decides what a trial finds; nothing is loaded for it.

    Raises:
        BundleError: There is no such graph or engine.
    """
    files = bundle.manifest.files
    return key_of(
        {
            "file": files[file_of(bundle, choice, options.precision)],
            "references": files[REFERENCES],
            "backend": choice.value,
            "tf32": options.tf32,
            "runtime": _runtime(choice),
            "device": options.device if choice is BackendChoice.OPENVINO else None,
            "processor": [processor_name(), processor_features()],
            "gpus": [device.name for device in cuda_devices().devices],
        }
    )


def _runtime(choice: BackendChoice) -> str:
    if choice in (BackendChoice.CPU, BackendChoice.CUDA):
        return onnxruntime.version()
    return openvino.version() if choice is BackendChoice.OPENVINO else tensorrt.version(choice.value)


def try_out(
    bundle: Bundle, choice: BackendChoice, loaded: Loaded, options: BackendOptions, *, timed: bool = False
) -> Record | None:
    """What a loaded backend computes on the first of the bundle's images; None where it has no references.

    Args:
        bundle: Where it was loaded from.
        choice: Which backend it is.
        loaded: It.
        options: How it was loaded.
        timed: Whether to take its time too, with as many images as keep every core busy.

    Raises:
        BackendError: It failed on them.
    """
    record = found_by(bundle, loaded, options, timed=timed)
    if record is not None:
        remember(key(bundle, choice, options), record)
    return record


def found_by(
    bundle: Bundle, loaded: Loaded, options: BackendOptions, *, timed: bool = False
) -> Record | None:
    """:func:`try_out`, without remembering it."""
    references = read_references(bundle)
    if references is None:
        return None
    references = references.first(QUICK_IMAGES)
    trial = verdict(
        loaded.backend,
        references,
        precision=options.precision,
        tf32=options.tf32,
        batch_sizes=(len(references),),
        timed=openvino.PIECE * openvino.streams() if timed else None,
        known=accepted_figures(bundle, loaded.file),
    )
    return Record(trial.shortfalls, trial.seconds_per_image, len(references))


def accepted_figures(bundle: Bundle, file: str) -> dict[str, float] | None:
    """What the export of a graph, or of an engine's graph, measured and accepted."""
    of_engine = {engine.file: engine.graph for engine in bundle.manifest.engines}
    for graph in bundle.manifest.graphs:
        if graph.file == of_engine.get(file, file):
            return dict(graph.verification)
    return None


def check(
    bundle: Bundle,
    choice: BackendChoice,
    loaded: Loaded,
    options: BackendOptions,
    record: Record | None = None,
) -> str:
    """Refuse a backend that computes something else than the bundle's references say.

    Args:
        bundle: Where it was loaded from.
        choice: Which backend it is.
        loaded: It.
        options: How it was loaded.
        record: What a trial found, if that is known already.

    Returns:
        How it was verified, in a few words.

    Raises:
        BackendError: It does, and ``unverified`` does not let it pass; it is closed.
    """
    if not is_verifiable(bundle):
        if bundle.plain is not None:
            return "the classifier as it is, without a defence"
        if bundle.is_bare:
            return f"not verified here: sad-deploy verify {bundle.root / loaded.file} --against FORWARD.onnx"
        return f"not verified here: the bundle has no references, sad-deploy export {bundle.root} adds them"
    record = record or remembered(key(bundle, choice, options))
    earlier = record is not None
    if record is None:
        try:
            record = try_out(bundle, choice, loaded, options)
        except BaseException:
            loaded.backend.close()
            raise
    if record is None:
        return "not verified here: the bundle has no images"
    if record.shortfalls:
        message = unlike(bundle, choice, loaded.file, record)
        if not options.unverified:
            loaded.backend.close()
            raise BackendError(message, hint="sad-deploy verify has the figures; --unverified runs it anyway")
        options.notice(message)
        return "unverified"
    return "verified here before" if earlier else f"verified here on {record.images} images"


def unlike(bundle: Bundle, choice: BackendChoice, file: str, record: Record) -> str:
    """That a graph or engine computes something else, and what."""
    return (
        f"{bundle.root}/{file} does not compute on {choice} here what its reference says: "
        f"{'; '.join(record.shortfalls)}"
    )
