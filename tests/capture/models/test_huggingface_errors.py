"""Error messages for Hugging Face models and tokenizers."""

import pickle
import sys

import pytest
import torch
from tiny import TEXT, make_run, tiny_config
from tiny_hf import SETTINGS, hf_config, save_model, save_tokenizer

from analysis.run.run import open_run
from capture.config.reading import differences
from capture.corpus.datums import load_corpus
from capture.engine.build import build_engine, complete_config
from capture.engine.step_plan import StepPlan
from capture.errors import ConfigError, ShardError
from capture.training.loop import capture_run

pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model.hf.family=gtp2", "model.hf.family: got 'gtp2', must be one of the"),
        ("model.hf.family=null", "model.hf.family: got null, must name a family"),
        (
            "model.hf.settings.n_layr=2",
            "model.hf.settings.n_layr: is not a setting of gpt2. Perhaps",
        ),
        ("model.hf.settings.resid_pdrop=0.1", "model.hf.settings.resid_pdrop: got 0.1, must be 0"),
        (
            "model.hf.settings.n_head=3",
            "model.hf.settings: do not describe a model of the family gpt2: ",
        ),
        (
            "model.hf.settings.n_layer=two",
            "model.hf.settings: do not describe a model of the family gpt2: ",
        ),
        ("model.hf.settings.vocab_size=9", "model.hf: embeds 9 tokens, the corpus has "),
        (
            "corpus.window=9",
            "corpus.window: got 9, but the model has 8 positions. Shorten the window",
        ),
        (
            "model.width=8",
            "model.width: got 8, but model.kind is hf. Leave it out and use model.hf.settings.",
        ),
        ("model.kind=transformer", "model.hf: is set, but model.kind is transformer. Set model."),
        ("model.hf.settings=3", "model.hf.settings: got '3', must be keys and values."),
        ("model.hf.path=/nowhere", "model.hf.path: got '/nowhere', which is not a folder."),
        ("corpus.tokenizer=/nowhere", "corpus.tokenizer: got '/nowhere', which is not a folder."),
        ("capture.units=['layers.*']", None),
        ("capture.units=['h.*']", "capture.units: 'h.*' matches no parameter of the model (trans"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, override, text):
    def attempt() -> None:
        config = complete_config(hf_config(tmp_path, "gpt2", override))
        build_engine(StepPlan(config, load_corpus(config.corpus, batch=4)), frozenset({"outliers"}))

    if text is None:
        attempt()
        return
    with pytest.raises(ConfigError) as found:
        attempt()
    assert str(found.value).startswith(text)
    assert "\n" not in str(found.value)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)


@pytest.mark.parametrize(
    ("missing", "override", "text"),
    [
        ("config.json", "run.seed=0", "model.hf.path: got '{}', which cannot be read: "),
        ("model.safetensors", "run.seed=0", "model.hf.path: got '{}', which cannot be read: "),
        ("tokenizer.json", "run.seed=0", "corpus.tokenizer: got '{}', which cannot be read: "),
        ("", "corpus.tokenizer=words", "corpus.tokenizer: got words, but {} was trained with "),
        ("", "model.hf.family=llama", "model.hf.family: got llama, but {} holds a gpt2. Leave"),
        ("", "model.hf.settings.n_layer=3", "model.hf.path: {} has no transformer.h.2.attn."),
        ("", "model.hf.settings.n_embd=4", "model.hf.path: {} has no transformer."),
    ],
)
def test_a_folder_must_hold_the_model_asked_for(tmp_path, missing, override, text):
    source = tmp_path / "source"
    save_model(source, "gpt2", vocabulary=300)
    if missing:
        (source / missing).unlink()
    config = hf_config(tmp_path, {"path": str(source)}, f"corpus.tokenizer={source}", override)
    with pytest.raises(ConfigError) as found:
        capture_run(config, lambda event: None)
    assert str(found.value).startswith(text.format(source))
    assert "\n" not in str(found.value)


def test_a_pickle_is_not_read(tmp_path):
    source = tmp_path / "source"
    model = save_model(source, "gpt2", vocabulary=300)
    (source / "model.safetensors").unlink()
    torch.save(model.whole.state_dict(), source / "pytorch_model.bin")
    config = hf_config(tmp_path, {"path": str(source)}, f"corpus.tokenizer={source}")
    with pytest.raises(ConfigError, match="which cannot be read"):
        capture_run(config, lambda event: None)


def test_a_vocabulary_that_the_model_cannot_embed_is_refused_with_both_numbers(tmp_path):
    source = tmp_path / "source"
    save_model(source, "gpt2", vocabulary=200)
    size = save_tokenizer(source)
    config = hf_config(tmp_path, {"path": str(source)}, f"corpus.tokenizer={source}")
    with pytest.raises(ConfigError, match=f"embeds 200 tokens, the corpus has {size}"):
        capture_run(config, lambda event: None)


def test_without_the_library_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"Run: pip install 'ontogeny\[hf\]'"):
        complete_config(hf_config(tmp_path, "gpt2"))


def test_a_tokenizer_s_text_is_readable_and_its_tokens_are_named(tmp_path):
    size = save_tokenizer(tmp_path / "tokenizer")
    make_run(tiny_config(tmp_path, f"corpus.tokenizer={tmp_path}/tokenizer", "training.epochs=1"))
    run = open_run(str(tmp_path / "run"))
    assert run.num_tokens == size == len(set(run.tokens))
    assert "Ġcat" in run.tokens
    assert all(text in TEXT for text in run.texts.to_pylist())
    count_of = run.vocabulary().set_index("token")["count"]
    assert count_of["Ġcat"] == sum(run.token_NT.ravel() == run.tokens.index("Ġcat"))


def test_a_run_that_describes_more_than_its_checkpoint_holds_is_refused(tmp_path):
    """It is refused before the model is built, which could need any amount of memory."""
    uri = str(tmp_path / "run")
    make_run(hf_config(tmp_path, "gpt2"))
    for asked in ({"n_layer": 10**7}, {"n_embd": 2**20}):
        run = open_run(uri)
        object.__setattr__(run.config.model.hf, "settings", SETTINGS["gpt2"] | asked)
        with pytest.raises(ShardError, match=r"the model of run\.yaml needs"):
            run.network()


def test_settings_are_compared_one_by_one_when_a_run_is_resumed(tmp_path):
    one = hf_config(tmp_path, "gpt2")
    other = hf_config(tmp_path, "gpt2", "model.hf.settings.n_layer=3")
    assert differences(one, other) == ["model.hf.settings.n_layer: 2 → 3"]
    fewer = hf_config(
        tmp_path, {"family": "gpt2", "settings": {"n_embd": 8, "n_layer": 2, "n_head": 2}}
    )
    assert differences(one, fewer) == ["model.hf.settings.n_positions: 8 → None"]
