"""EK-FAC influence against kronfluence's own scores, and its solver against a dense inverse."""

import builtins
import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_run
from torch.utils.data import TensorDataset

from analysis.influence.baselines import ekfac, gradients
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.run.run import Run, open_run
from capture.errors import ConfigError, RunError

DATUMS = ("datum:validation:1", "datum:validation:2")


@functools.cache
def run() -> Run:
    return open_run(tiny_run())


@functools.cache
def queries() -> tuple[Query, ...]:
    return tuple(build_queries(run(), [*DATUMS]))


def test_the_solver_is_the_dense_inverse():
    draw = torch.Generator().manual_seed(0)

    def orthogonal(size: int) -> torch.Tensor:
        square = torch.randn(size, size, generator=draw, dtype=torch.float64)
        return torch.linalg.qr(square).Q

    output_OO, input_II = orthogonal(3), orthogonal(4)
    eigenvalue_OI = torch.rand(3, 4, generator=draw, dtype=torch.float64)
    gradient_OI = torch.randn(3, 4, generator=draw)
    basis = ekfac.layer_basis(output_OO, input_II, eigenvalue_OI)
    vectors_PP = torch.kron(output_OO, input_II)
    damped_P = eigenvalue_OI.flatten() + 0.1 * eigenvalue_OI.mean()
    hessian_PP = vectors_PP @ damped_P.diag() @ vectors_PP.T
    wanted_P = torch.linalg.solve(hessian_PP, gradient_OI.double().flatten())
    torch.testing.assert_close(basis.inverse_times(gradient_OI).flatten(), wanted_P)


def test_without_curvature_it_is_the_dot_product_of_the_layers(monkeypatch: pytest.MonkeyPatch):
    model = run().network()
    flat = {}
    for name in ekfac.linear_modules(run(), model):
        outputs, inputs = model.get_parameter(f"{name}.weight").shape
        left_OO, right_II = (torch.eye(n, dtype=torch.float64) for n in (outputs, inputs + 1))
        half_OI = torch.full((outputs, inputs + 1), 0.5, dtype=torch.float64)
        flat[name] = ekfac.LayerBasis(left_OO, right_II, half_OI)
    monkeypatch.setattr(ekfac, "fit_bases", lambda run, model, names: flat)
    _, weights = gradients.model_and_weights(run())
    own = {name: weights[name] for name in ekfac.precondition(weights, flat)}
    directions = [{name: query.gradient(weights)[1][name] for name in own} for query in queries()]
    wanted_QD = 2 * gradients.dot_with_losses(run(), model, own, directions)
    found_QD = ekfac.ekfac(run(), queries())
    np.testing.assert_allclose(found_QD, wanted_QD, rtol=1e-4, atol=1e-6 * abs(wanted_QD).max())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scores_are_those_of_kronfluence(tmp_path: Path):
    pytest.importorskip("kronfluence")
    theirs_QD = kronfluence_scores(tmp_path)
    found_QD = ekfac.ekfac(run(), queries())
    # Kronfluence sums losses over positions where ours are means, and its scores have the sign of
    # ⟨∇query, H⁻¹ ∇loss⟩.
    wanted_QD = -theirs_QD / run().config.corpus.window ** 2
    np.testing.assert_allclose(found_QD, wanted_QD, rtol=1e-3, atol=1e-4 * abs(wanted_QD).max())
    assert np.corrcoef(found_QD[0], found_QD[1])[0, 1] < 0.999  # scores depend on the query


def kronfluence_scores(folder: Path) -> np.ndarray:
    """Return kronfluence's own pairwise scores, [Q, D], of the same queries."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments

    model = run().network()
    task = ekfac.language_task(ekfac.linear_modules(run(), model), run().config.run.seed)

    def rows(split: Any) -> list[torch.Tensor]:
        text = run().datums(split)
        token_NT = torch.from_numpy(np.stack(text["tokens"].to_numpy())).long()
        last_N1 = torch.tensor(text["last_target"].tolist())[:, None]
        return [token_NT, torch.cat([token_NT[:, 1:], last_N1], dim=1)]

    asked = TensorDataset(*(own[1:3] for own in rows("validation")))
    training = TensorDataset(*rows("train"))
    options: dict[str, Any] = {"cpu": True, "disable_tqdm": True, "output_dir": str(folder)}
    analyzer = Analyzer("theirs", prepare_model(copy.deepcopy(model), task), task, **options)
    arguments = FactorArguments(strategy="ekfac")
    batch = {"per_device_batch_size": 32}
    analyzer.fit_all_factors("f", training, factor_args=arguments, **batch)
    analyzer.compute_pairwise_scores(
        *("s", "f", asked, training),
        per_device_query_batch_size=2,
        per_device_train_batch_size=32,
        score_args=ScoreArguments(damping_factor=None),  # 0.1 × the mean eigenvalue
    )
    scores = analyzer.load_pairwise_scores("s")
    assert scores is not None
    return scores["all_modules"].double().numpy()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("kronfluence"):
            raise ImportError("no", name="kronfluence")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="kronfluence") as caught:
        ekfac.ekfac(run(), queries())
    assert "ontogeny[ekfac]" in str(caught.value)


def test_a_run_without_linear_layers_is_refused():
    with pytest.raises(RunError, match=r"no captured weight of a torch\.nn\.Linear"):
        ekfac.linear_modules(run(), torch.nn.Embedding(2, 2))  # pyright: ignore[reportArgumentType]
