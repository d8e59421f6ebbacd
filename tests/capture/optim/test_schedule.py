"""Learning-rate schedules: their formulas, their use in a run, and invalid settings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tiny import make_run, tiny_config

from capture.config.reading import make_config
from capture.errors import ConfigError
from capture.optim.schedule import ScheduleConfig, describe_schedule, learning_rate_factor

KINDS = ("epoch", "constant", "step", "cosine")


def factors(config: ScheduleConfig, *, decay: float = 0.5, num_steps: int = 12) -> list[float]:
    """Return the factors of all steps of a run whose epochs have four steps."""
    return [
        learning_rate_factor(config, decay, step=step, epoch=step // 4, num_steps=num_steps)
        for step in range(num_steps)
    ]


def test_the_default_is_the_study_s_decay_by_epoch_to_the_last_bit():
    found = factors(ScheduleConfig(), decay=0.95)
    assert found == [0.95 ** (step // 4) for step in range(12)]


def test_a_constant_rate_stays_and_a_stepped_one_falls_at_its_steps():
    assert factors(ScheduleConfig(kind="constant")) == [1.0] * 12
    found = factors(ScheduleConfig(kind="step", every_steps=5))
    assert found == [1.0] * 5 + [0.5] * 5 + [0.25] * 2


def test_a_cosine_goes_from_the_whole_rate_to_the_least_at_the_end():
    config = ScheduleConfig(kind="cosine", warmup_steps=2, least=0.1)
    found = factors(config)
    assert found[:3] == [0.5, 1.0, 1.0]
    assert found[7] == pytest.approx(0.55)  # halfway between steps 2 and 12
    ends = learning_rate_factor(config, 0.5, step=12, epoch=3, num_steps=12)
    assert ends == pytest.approx(0.1)
    assert found[11] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.9)) / 2)


@given(
    kind=st.sampled_from(KINDS),
    warmup=st.integers(0, 11),
    least=st.floats(0, 1),
    num_steps=st.integers(12, 60),
)
def test_every_schedule_warms_up_in_a_line_and_never_rises_again(kind, warmup, least, num_steps):
    config = ScheduleConfig(kind=kind, warmup_steps=warmup, least=least, every_steps=100)
    found = factors(config, decay=1.0, num_steps=num_steps)
    assert all(0 < one <= 1 for one in found)
    assert found[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    falling = found[max(0, warmup - 1) :]
    assert falling == sorted(falling, reverse=True)


def test_a_run_follows_its_schedule(tmp_path):
    settings = ("kind=cosine", "warmup_steps=3", "least=0.25")
    make_run(tiny_config(tmp_path, *(f"training.schedule.{one}" for one in settings)))
    steps = parquet.read_table(str(tmp_path / "run" / "steps")).to_pandas()
    config = ScheduleConfig(kind="cosine", warmup_steps=3, least=0.25)
    wanted = [5.0 * f for f in factors(config, decay=0.95, num_steps=28)]
    assert steps["learning_rate"].tolist() == wanted
    assert (steps["audit_error"] < 1e-5).all()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"every_steps": 0}, "every_steps: got 0, must be at least 1."),
        ({"warmup_steps": -1}, "warmup_steps: got -1, must be at least 0."),
        ({"least": 1.5}, "least: got 1.5, must be between 0 and 1."),
        ({"least": math.nan}, "least: got nan, must be between 0 and 1."),
    ],
)
def test_invalid_settings_are_explained(values, text):
    with pytest.raises(ConfigError) as caught:
        ScheduleConfig(**values)
    assert str(caught.value) == f"training.schedule.{text}"


def test_a_warm_up_longer_than_the_run_is_refused_before_anything_is_written(tmp_path):
    config = tiny_config(tmp_path, "training.schedule.warmup_steps=28")
    with pytest.raises(ConfigError) as caught:
        make_run(config)
    text = "training.schedule.warmup_steps: got 28, must be below 28, the steps of the run."
    assert str(caught.value) == text
    assert not (tmp_path / "run").exists()


def test_a_configuration_without_a_schedule_keeps_its_meaning():
    old = {"training": {"epochs": 2, "batch": 4, "learning_rate": 5.0, "decay": 0.95, "clip": 0.5}}
    training = make_config(old).training
    assert training.schedule == ScheduleConfig()
    assert training.optimizer.plain
    assert (training.accumulate, training.precision) == (1, "float32")


def test_a_schedule_is_described():
    config = ScheduleConfig(kind="cosine", least=0.1, warmup_steps=1000)
    assert (
        describe_schedule(config, 0.5) == "down a cosine to 10% of it after 1,000 steps of warm-up"
    )
    assert [describe_schedule(ScheduleConfig(kind=kind), 0.95) for kind in KINDS] == [
        "× 0.95 an epoch",
        "throughout",
        "× 0.95 every 1,000 steps",
        "down a cosine to 0% of it",
    ]
