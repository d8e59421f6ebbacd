"""``ontogeny.record`` inside the worker function of Ray Train's ``TorchTrainer``."""

from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from recorded_ranks import SETTINGS, train_alone, train_on_ray
from same_record import same_record

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),  # in Ray itself
    pytest.mark.ray,
    pytest.mark.slow,
]


def test_workers_of_ray_train_record_what_one_process_records(ray_nodes: Cluster, tmp_path: Path):
    trainer = TorchTrainer(
        train_on_ray,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="recorded", storage_path=str(tmp_path / "ray")),
    )
    trainer.fit()
    train_alone(SETTINGS["clipped"], tmp_path, "alone", 2)
    same_record(str(tmp_path / "alone"), str(tmp_path / "run"), 1e-6)
