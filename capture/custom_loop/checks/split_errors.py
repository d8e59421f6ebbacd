"""What is said if a datum's captured gradient is not its own, or if datums interact."""

from collections.abc import Sequence

from torch import nn

from capture.custom_loop.checks.split_check import Mismatch
from capture.custom_loop.packing.documents import Documents
from capture.errors import SplitError
from capture.gradients.parameter_use import ParameterUse
from capture.gradients.vmap_fallback import module_and_share

REMEDY = (
    "Nothing of the open segment is stored. Leave the units concerned out, or see the page on "
    "custom training loops, section What is checked"
)


PACKED = (
    "documents of a packed row interact: they attend to each other, or positions do not start again"
)
PACKED_REMEDY = (
    "Nothing of the open segment is stored. Block attention between documents (Hugging Face models "
    "do so for position_ids without an attention mask if model.config.use_cache is False), or give "
    "one id for each row, so that rows are the datums"
)


def split_error(
    found: Mismatch,
    slot: int,
    step: int,
    model: nn.Module,
    uses: Sequence[ParameterUse],
    documents: Documents | None,
    *,
    follows_rows: bool,
) -> SplitError:
    """Return the error; ``follows_rows``: whether ``fallback="vmap"`` was passed already."""
    shapes = {name: use.shape for use in uses for name in use.roles}
    at = f", used on {tuple(shapes[found.what])}" if found.what in shapes else ""
    normalizing = normalizing_module(model)
    cause = normalizing or (PACKED if documents is not None else "")
    if found.difference >= 0:
        share = f"{found.difference:.0%}" if found.difference >= 0.01 else f"{found.difference:.2%}"
        problem = (
            f"{found.what}{at}: the gradient captured for datum {slot} of the batch differs by "
            f"{share} from that of a pass of this datum alone"
        )
        if found.what in dict(model.named_parameters()):
            problem += f" ({module_and_share(model, [found.what])})"
        cause = cause or first_axis_cause(shapes.get(found.what, ()), uses[0].num_datums)
    else:
        problem = (
            f"datum {slot} of the batch cannot be compared with a pass of this datum alone, whose "
            "outputs are not the batch's rows"
        )
        cause = cause or "the model selects rows, or cannot take one datum"
    remedy = REMEDY if documents is None else PACKED_REMEDY
    if documents is None and not follows_rows and not normalizing:
        remedy += '. If the model chooses rows or puts positions first, pass fallback="vmap"'
    return SplitError(f"step {step}", f"{problem}; {cause}", remedy)


def first_axis_cause(shape: Sequence[int], num_datums: int) -> str:
    """Return why a split may be wrong at an output of this shape, features last."""
    cause = "the first axis of its input is not the datum, or datums interact in the model"
    if len(shape) > 2 and shape[1] == num_datums:
        cause += " (if positions come first: say batch_first=True where its module takes it)"
    return cause


def normalizing_module(model: nn.Module) -> str:
    """Return a clause that names a module with which datums interact, if there is one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            return f"{name} ({type(module).__name__}) normalizes over the batch"
    return ""


def loss_error(difference: float, slot: int, step: int) -> SplitError:
    problem = (
        "datums interact in the loss, or between calls of the model: the gradient at the outputs "
        f"of datum {slot} of the batch changes by {difference:.1%} with the outputs of other datums"
    )
    return SplitError(f"step {step}", problem, REMEDY)
