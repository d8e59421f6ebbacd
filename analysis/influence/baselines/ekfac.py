"""EK-FAC influence functions at the last checkpoint, with the factors of kronfluence.

The influence function of a datum is −⟨∇query, (G + λ)⁻¹ ∇loss⟩, G the Gauss-Newton Hessian. EK-FAC
(George et al. 2018; Grosse et al. 2023, section 2.2) replaces G, layer by layer, by a matrix that
is diagonal in the product of the eigenbases of the layer's inputs and output gradients; targets are
drawn from the model's own predictions. λ is 0.1 × the mean eigenvalue of the layer (their choice).

Only the captured weights of ``nn.Linear`` modules take part, with their biases: Grosse et al. use
the MLPs of a transformer. The query's gradient is preconditioned once, so the scores of all datums
cost as much as those of ``final_gradient_dot``.

Shapes: Q query, D datum, N datum of a batch, T position, V vocabulary, O output, I input of a
layer and, where it has a bias, a last input of 1.
"""

import copy
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.influence.baselines.gradients import (
    DATUMS_AT_ONCE,
    dot_with_losses,
    model_and_weights,
)
from analysis.influence.queries.query import Query
from analysis.run.run import Run
from capture.errors import ConfigError, RunError
from capture.models.transformer import AnyModel

DAMPING = 0.1
"""λ relative to the mean eigenvalue of the layer."""
NAME = "fit"


@dataclass(frozen=True, eq=False)
class LayerBasis:
    """The eigenbasis of one layer and the damped eigenvalues in it."""

    output_OO: Tensor
    """Eigenvectors of the output gradients, in columns."""
    input_II: Tensor
    eigenvalue_OI: Tensor
    """Eigenvalues of the Gauss-Newton Hessian plus λ."""

    def inverse_times(self, gradient_OI: Tensor) -> Tensor:
        """Return (G + λ)⁻¹ times a gradient, [O, I]."""
        rotated_OI = self.output_OO.T @ gradient_OI.double() @ self.input_II / self.eigenvalue_OI
        return self.output_OO @ rotated_OI @ self.input_II.T


def ekfac(run: Run, queries: Sequence[Query]) -> np.ndarray:
    """Return the EK-FAC influence of every datum on every query, [Q, D].

    Raises ``ConfigError`` if kronfluence is not installed, and ``RunError`` for a run without
    captured weights of ``nn.Linear`` modules.
    """
    model, weights = model_and_weights(run)
    names = linear_modules(run, model)
    gradients = [query.gradient(weights)[1] for query in queries]
    bases = fit_bases(run, model, names)
    directions = [precondition(gradient, bases) for gradient in gradients]
    own = {name: weights[name] for name in directions[0]}
    return dot_with_losses(run, model, own, directions)


def linear_modules(run: Run, model: AnyModel) -> list[str]:
    """Return the names of the ``nn.Linear`` modules whose weights are captured.

    Raises ``RunError`` if there are none.
    """
    captured = set(run.layout.names)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in captured
    ]
    if not found:
        problem = "has no captured weight of a torch.nn.Linear module, which EK-FAC needs"
        raise RunError(run.uri, problem, "Choose another method, such as gradient")
    return found


def precondition(
    gradient: Mapping[str, Tensor], bases: Mapping[str, LayerBasis]
) -> dict[str, Tensor]:
    """Return (G + λ)⁻¹ times a gradient by parameter name, for the parameters of the layers."""
    found = {}
    for name, basis in bases.items():
        weight, bias = f"{name}.weight", f"{name}.bias"
        own_OI = gradient[weight]
        if bias in gradient:
            own_OI = torch.cat([own_OI, gradient[bias][:, None]], dim=1)
        solved_OI = basis.inverse_times(own_OI).to(own_OI.dtype)
        found[weight] = solved_OI[:, : gradient[weight].shape[1]]
        if bias in gradient:
            found[bias] = solved_OI[:, -1]
    return found


def fit_bases(run: Run, model: AnyModel, names: Sequence[str]) -> dict[str, LayerBasis]:
    """Return the basis of each layer, fitted on all training datums.

    Raises ``ConfigError`` if kronfluence is not installed.
    """
    try:
        from kronfluence.analyzer import (  # pyright: ignore[reportMissingImports]
            Analyzer,
            prepare_model,
        )
        from kronfluence.arguments import (  # pyright: ignore[reportMissingImports]
            FactorArguments,
        )
    except ImportError as error:
        problem = f"needs the package kronfluence, and {error.name} is not installed"
        remedy = "Run: pip install 'ontogeny[ekfac]'"
        raise ConfigError("influence.method", f"ekfac {problem}", remedy) from error
    datums = torch.utils.data.TensorDataset(
        *(torch.from_numpy(own).long() for own in (run.token_NT, run.target_NT))
    )
    task = language_task(names, seed=run.config.run.seed)
    prepared = prepare_model(copy.deepcopy(model), task)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it names torch.cuda.amp.GradScaler
        options: dict[str, Any] = {"cpu": True, "disable_tqdm": True, "output_dir": folder}
        analyzer = Analyzer("ekfac", prepared, task, **options)
        arguments = FactorArguments(strategy="ekfac")
        analyzer.fit_all_factors(
            NAME, datums, per_device_batch_size=DATUMS_AT_ONCE, factor_args=arguments
        )
        bases = analyzer.load_eigendecomposition(NAME)
        lambdas = analyzer.load_lambda_matrices(NAME)
    assert bases is not None
    assert lambdas is not None
    return {
        name: layer_basis(
            bases["gradient_eigenvectors"][name],
            bases["activation_eigenvectors"][name],
            lambdas["lambda_matrix"][name] / lambdas["num_lambda_processed"][name],
        )
        for name in names
    }


def layer_basis(output_OO: Tensor, input_II: Tensor, eigenvalue_OI: Tensor) -> LayerBasis:
    """Return the basis with damped eigenvalues, in float64."""
    eigenvalue_OI = eigenvalue_OI.double()
    damped_OI = eigenvalue_OI + DAMPING * eigenvalue_OI.mean()
    return LayerBasis(output_OO.double(), input_II.double(), damped_OI)


def language_task(names: Sequence[str], seed: int) -> Any:
    """Return a kronfluence task of a model that maps token ids to logits."""
    from kronfluence.task import Task  # pyright: ignore[reportMissingImports]

    generator = torch.Generator().manual_seed(seed)

    class NextToken(Task):
        """Cross-entropy summed over positions."""

        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            token_NT, target_NT = batch
            logit_MV = model(token_NT).float().flatten(0, 1)
            target_M = target_NT[:, -(len(logit_MV) // len(token_NT)) :].flatten()
            if sample:
                share_MV = logit_MV.detach().softmax(1)
                target_M = torch.multinomial(share_MV, 1, generator=generator).flatten()
            return F.cross_entropy(logit_MV, target_M, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return list(names)

    return NextToken()
