"""Valid configurations are read; mistakes are explained in one line."""

import pickle
import re
import sys
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from capture import errors
from capture.config import safe_yaml
from capture.config.keys import COMMON_WORDS, every_key, similar_keys
from capture.config.reading import differences, make_config, read_config
from capture.config.settings import Config, to_values
from capture.errors import CaptureError, ConfigError


def message(*overrides: str, values: dict | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config(values or {}, overrides)
    return str(caught.value)


def test_the_wikitext2_configuration_has_the_values_of_the_study():
    config = read_config("wikitext2")
    model, training, corpus = config.model, config.training, config.corpus
    assert (model.layers, model.width, model.hidden, model.heads) == (3, 200, 200, 4)
    assert (model.dropout, model.init_range) == (0.2, 0.1)
    assert (corpus.kind, corpus.window) == ("wikitext2", 35)
    assert (training.batch, training.epochs, training.clip) == (20, 5, 0.5)
    assert (training.learning_rate, training.decay) == (5.0, 0.95)
    assert (config.capture.outliers.k, config.capture.outliers.scope) == (1000, "datum")


def test_the_demo_differs_from_the_defaults_only_in_its_text():
    changed = {line.split(":")[0] for line in differences(read_config("demo"), Config())}
    assert changed <= {"corpus.kind", "corpus.path"}


CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_bundled_configurations_and_the_overrides_in_their_comments_are_valid(name):
    """A model that is loaded from the hub brings its own tokenizer."""
    assert read_config(name).model == read_config(CONFIGS / f"{name}.yaml").model
    for line in (CONFIGS / f"{name}.yaml").read_text().splitlines():
        if line.startswith("#"):
            advised = [word.rstrip(".,:") for word in re.findall(r"[a-z_.]+=\S+", line)]
            config = read_config(name, advised)
            assert config.corpus.tokenizer == (config.model.hf.path or "words")


def test_writing_to_yaml_and_reading_back_is_identity():
    config = read_config("wikitext2", ["run.seed=7", "capture.units=[layers.0.*, '*.bias']"])
    again = make_config(yaml.safe_load(yaml.safe_dump(to_values(config))))
    assert again == config
    assert again.capture.units == ["layers.0.*", "*.bias"]


def test_equal_values_give_equal_configurations_and_other_types_are_checked_anew():
    values = {"training": {"batch": 1}}
    assert make_config(values) is make_config({"training": {"batch": 1}})
    assert make_config(values, ["run.seed=3"]).run.seed == 3
    assert make_config(values).run.seed == Config().run.seed
    with pytest.raises(ConfigError, match=r"training\.batch: got True"):
        make_config({"training": {"batch": True}})


def test_values_that_equal_defaults_are_checked_like_others():
    """Only values that differ from the defaults are merged; true equals 1 and is no number."""
    values = to_values(Config())
    assert make_config(values) == Config()
    values["workers"]["count"] = True
    assert Config().workers.count == 1
    assert message(values=values) == "workers.count: got True, must be a whole number."


def test_files_are_read_alike_without_the_yaml_loaders_in_c(monkeypatch):
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    wanted = [read_config(name) for name in names]
    monkeypatch.setattr(safe_yaml, "PLAIN_VALUES", yaml.SafeLoader)
    monkeypatch.setattr(safe_yaml, "TEXTS_ONLY", yaml.BaseLoader)
    assert [read_config(name) for name in names] == wanted


def test_overrides_replace_values_of_the_file_and_of_earlier_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {epochs: 2, clip: 1}\n")
    config = read_config(path, ["training.epochs=3", "training.epochs=4"])
    assert (config.training.epochs, config.training.clip) == (4, 1.0)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("capture.audit_tolerance=1e-4", 1e-4),
        ("run.uri=007", "007"),
        ("corpus.path=null", None),
        ("capture.outliers.scope=step", "step"),
    ],
)
def test_overrides_take_the_type_of_their_key(override, wanted):
    config = make_config({}, [override])
    value = config
    for part in override.partition("=")[0].split("."):
        value = getattr(value, part)
    assert value == wanted
    assert type(value) is type(wanted)


TYPED = ("0123", "12:30", "on", "1.10", "1_000", "2023-01-01", "0x1f", "no", "1e3", ".5", "007")


@pytest.mark.parametrize("text", TYPED)
@pytest.mark.parametrize("key", ["corpus.path", "run.uri", "store.profile"])
def test_a_key_that_takes_text_gets_the_text_as_typed(tmp_path, key, text):
    """YAML 1.1 reads these as numbers, dates and booleans."""
    group, _, name = key.partition(".")
    (tmp_path / "mine.yaml").write_text(f"{group}: {{{name}: {text}}}\n")
    overrides = ["corpus.kind=text", f"{key}={text}"] if group == "corpus" else [f"{key}={text}"]
    for config in (make_config({}, overrides), read_config(tmp_path / "mine.yaml", overrides[:-1])):
        assert getattr(getattr(config, group), name) == text


def test_a_list_of_texts_gets_them_as_typed(tmp_path):
    (tmp_path / "mine.yaml").write_text("capture:\n  units: [on, 0123, 'a b']\n")
    wanted = ["on", "0123", "a b"]
    assert read_config(tmp_path / "mine.yaml").capture.units == wanted
    assert make_config({}, ["capture.units=[on, 0123, 'a b']"]).capture.units == wanted


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_is_null_where_a_key_may_be_null(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(f"corpus: {{path: {text}}}\n")
    assert make_config({}, [f"corpus.path={text}"]).corpus.path is None
    assert read_config(tmp_path / "mine.yaml").corpus.path is None


@pytest.mark.parametrize(("text", "wanted"), [("010", 10), ("+7", 7), ("1_000", 1000), ("0", 0)])
def test_whole_numbers_are_decimal(tmp_path, text, wanted):
    (tmp_path / "mine.yaml").write_text(f"run: {{seed: {text}}}\n")
    assert make_config({}, [f"run.seed={text}"]).run.seed == wanted
    assert read_config(tmp_path / "mine.yaml").run.seed == wanted


@pytest.mark.parametrize("text", ["1:30", "0x10", "0b11", "1:30.5"])
def test_numbers_that_are_not_decimal_are_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(f"training: {{clip: {text}}}\n")
    assert message(f"run.seed={text}").startswith(
        f"run.seed: got '{text}', must be a whole number. Write it in decimal"
    )
    with pytest.raises(ConfigError, match=f"got '{text}', must be a number. Write it in decimal"):
        read_config(tmp_path / "mine.yaml")


def test_every_group_of_settings_is_documented_and_frozen():
    config = Config()
    with pytest.raises(FrozenInstanceError):
        config.run = config.run  # pyright: ignore[reportAttributeAccessIssue]
    parts = [getattr(config, f.name) for f in fields(config) if f.name != "engine"]
    assert all(is_dataclass(part) and type(part).__doc__ for part in parts)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "model.layer=3",
            "model.layer: unknown key; allowed here: kind, hf, layers, width, hidden, heads, "
            "dropout, positions, init, init_range, attention_bias, norm, classes, seed. "
            "Perhaps model.layers is meant.",
        ),
        (
            "colour=red",
            "colour: unknown key; allowed here: "
            "run, corpus, model, training, capture, intervention, store, workers, engine, "
            "deepspeed.",
        ),
        ("run.seed.x=1", "run.seed.x: unknown key; run.seed has no keys."),
        ("model.layers=many", "model.layers: got 'many', must be a whole number."),
        ("model.layers=2.5", "model.layers: got 2.5, must be a whole number."),
        ("model.layers=true", "model.layers: got True, must be a whole number."),
        ("model.layers=null", "model.layers: got None, must be a whole number."),
        ("model.layers=0", "model.layers: got 0, must be at least 1."),
        ("training.clip=-1", "training.clip: got -1.0, must be above 0."),
        ("training.device=tpu", "training.device: got 'tpu', must be one of auto, cpu, cuda."),
        ("capture.units=[]", "capture.units: is empty, must hold at least one pattern."),
        ("capture.units=7", "capture.units: got 7, must be a list, each text."),
        ("capture={}", "capture: got '{}', must be a group of keys: record, units, "),
        (
            "capture.outliers=5",
            "capture.outliers: got 5, must be a group of keys: enabled, k, scope, steps.",
        ),
        ("run.uri=", "run.uri: is empty, must name a folder or a prefix."),
        ("run.uri=${oc.env:HOME}", "run.uri: got '${oc.env:HOME}'; interpolations are not supp"),
        ("run.seed=[", "run.seed: got '[', which is not valid YAML."),
        ("epochs", "epochs: is not an override. Write key=value, as in run.seed=1."),
        ("training.learning_rate=.nan", "training.learning_rate: got nan, must be above 0."),
        ("store.patience_seconds=.nan", "store.patience_seconds: got nan, must be at least 0."),
    ],
)
def test_a_wrong_override_is_explained(override, text):
    assert message(override).startswith(text)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("epochs=2", "Perhaps training.epochs is meant."),
        ("trainning.epochs=2", "Perhaps training.epochs is meant."),
        ("capture.outlier.k=2", "Perhaps capture.outliers.k is meant."),
        ("kind=text", "Perhaps model.kind or corpus.kind is meant."),
        ("training.max_steps=9", "Perhaps training.epochs is meant."),
        ("training.steps=9", "Perhaps training.epochs is meant."),
        ("training.lr=0.1", "Perhaps training.learning_rate is meant."),
        ("training.batch_size=4", "Perhaps training.batch is meant."),
        ("training.warmup=4", "Perhaps training.schedule.warmup_steps is meant."),
        ("model.dim=4", "Perhaps model.width is meant."),
        ("model.num_layers=4", "Perhaps model.layers is meant."),
        ("trainning.epoch=2", "Perhaps training.epochs is meant."),
    ],
)
def test_an_unknown_key_is_answered_with_the_whole_name_of_one(override, meant):
    assert message(override).endswith(meant)


def test_no_key_is_suggested_whose_name_is_another_word():
    for key in every_key(Config):
        assert similar_keys(f"{key.rpartition('.')[0]}.qzqzqzqz") == []


def test_words_of_other_trainers_lead_to_keys_that_exist():
    assert set(COMMON_WORDS.values()) <= set(every_key(Config))
    assert not set(COMMON_WORDS) & {key.rpartition(".")[2] for key in every_key(Config)}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"modle": {"layers": 3}}, "modle: unknown key; allowed here: run, corpus, model, "),
        ({"model": {"layers": [3]}}, "model.layers: got [3], must be a whole number."),
        ({"model": {"layers": {"a": 3}}}, "model.layers: got keys, must be a whole number."),
        ({"model": 3}, "model: got 3, must be a group of keys: kind, hf, layers, width"),
        ({"corpus": {"path": ["a"]}}, "corpus.path: got ['a'], must be text or null."),
        ({1: 2}, "1: unknown key; allowed here: run, "),
    ],
)
def test_a_wrong_file_is_explained(values, text):
    assert message(values=values).startswith(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: [1", "is not valid YAML (line 1)"),
        ("- 1\n- 2\n", "must hold keys and values, not list"),
        ("hello", "must hold keys and values, not str"),
        ("run: !!python/object/apply:os.system ['true']", "has a tag, which is not supported"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_named(tmp_path, text, found):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: {found}")


@pytest.mark.parametrize("name", ["configs.py", "configs/__init__.py", "configs/demo.yaml"])
def test_a_user_s_own_configs_beside_a_script_does_not_hide_the_bundled_ones(
    tmp_path, name, monkeypatch
):
    """The folder of a script comes first on the path; ``configs`` would be imported from there."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("# the user's own: the same text is valid Python and YAML\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_config("demo").run.uri == "runs/demo"
    with pytest.raises(ConfigError, match=r"^dmeo: no such file. Did you mean demo\? Give a YAML"):
        read_config("dmeo")
    assert "configs" not in sys.modules


def test_a_missing_file_lists_the_bundled_configurations():
    with pytest.raises(
        ConfigError,
        match=r"dmeo: no such file\. Did you mean demo\? Give a YAML file or one of: .*demo",
    ):
        read_config("dmeo")


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning)
    ],
)
def test_every_error_can_be_pickled(kind):
    error = kind("here", "is wrong", "Mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == "here: is wrong. Mend it."
    assert isinstance(error, CaptureError)
    assert again.exit_code in (errors.BAD_INPUT, errors.NOT_TRUSTWORTHY)
