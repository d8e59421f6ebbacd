"""Syntactic heads: planted heads look along one relation; files of sentences, good and bad."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import sem
from tiny_run import tiny_run
from torch import Tensor

from analysis.run.run import open_run
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.metrics.heads.syntax import syntactic_heads, words_attended
from analysis.trajectory.observed.dependencies import (
    Edge,
    Sentence,
    read_dependencies,
    words_of_run,
)
from analysis.trajectory.observed.text import Text
from analysis.trajectory.trajectory import trajectory_of_run
from capture.errors import CorpusError
from cluster.cli import main

TOKENS = ["<unk>", "dogs", "chase", "cats", ",", "the", "big", "."]
FILE = """\
# sent_id = 1
1\tThe\tthe\tDET\t_\t_\t2\tdet\t_\t_
2\tdogs\tdog\tNOUN\t_\t_\t3\tnsubj:pass\t_\t_
3-4\tchasecats\t_\t_\t_\t_\t_\t_\t_\t_
3\tchase\tchase\tVERB\t_\t_\t0\troot\t_\t_
4\tCats\tcat\tNOUN\t_\t_\t3\tobj\t_\tSpaceAfter=No
4.1\tnothing\t_\t_\t_\t_\t_\t_\t_\t_
5\t.\t.\tPUNCT\t_\t_\t3\tpunct\t_\t_

1\tzebras\tzebra\tNOUN\t_\t_\t2\tnsubj\t_\t_
2\tchase\tchase\tVERB\t_\t_\t0\troot\t_\t_
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "some.conllu"
    made.write_text(FILE)
    return made


def test_a_file_is_read(path: Path) -> None:
    first, second = read_dependencies(str(path), words_of_run(TOKENS), window=8)
    assert first.words == [[5], [1], [2], [3], [7]]
    edges = [(0, 1, "det"), (1, 2, "nsubj"), (3, 2, "obj"), (4, 2, "punct")]
    assert list(first.edges) == [Edge(*edge) for edge in edges]
    assert second.words == [[0], [2]]
    (only,) = read_dependencies(str(path), words_of_run(TOKENS[1:]), window=8)
    assert only.num_tokens == 5  # the other has no word but one: zebras is not known
    assert len(read_dependencies(str(path), words_of_run(TOKENS), window=4)) == 1


def test_words_know_whether_a_space_stands_before_them(path: Path) -> None:
    asked = []

    def encode(word: str, space: bool) -> list[int]:
        asked.append((word, space))
        return [1, 2] if word == "dogs" else [3]

    (first, _) = read_dependencies(str(path), encode, window=8)
    spaces = [("The", False), ("dogs", True), ("chase", True), ("Cats", True), (".", False)]
    assert asked[:5] == spaces
    assert first.num_tokens == 6


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("3\tnsubj:pass", "9\tnsubj"), r"conllu:3: has the head '9', which is no word"),
        (("\t_\tSpaceAfter=No", ""), r"conllu:6: has 8 columns\. Wanted 10 columns"),
    ],
)
def test_a_bad_line_is_named(path: Path, change: tuple[str, str], problem: str) -> None:
    path.write_text(FILE.replace(*change))
    with pytest.raises(CorpusError, match=problem) as refused:
        read_dependencies(str(path), words_of_run(TOKENS), window=8)
    assert "\n" not in str(refused.value)


def test_a_file_without_sentences_that_fit_is_refused(path: Path) -> None:
    with pytest.raises(CorpusError, match="no sentence with dependencies of at most 1 tokens"):
        read_dependencies(str(path), words_of_run(TOKENS), window=1)
    with pytest.raises(CorpusError, match="cannot be read"):
        read_dependencies(str(path.parent / "none"), words_of_run(TOKENS), window=8)


# --- heads ----------------------------------------------------------------------------------------


def planted(rng: np.random.Generator) -> Sentence:
    """Seven words of one or two tokens; each but the first depends on an earlier one (obj), or has
    it as its dependent (nsubj)."""
    words = [[int(token) for token in rng.integers(1, 90, rng.integers(1, 3))] for _ in range(7)]
    edges = []
    for later in range(1, 7):
        earlier = int(rng.integers(later))
        pair = (later, earlier, "obj") if later % 2 else (earlier, later, "nsubj")
        edges.append(Edge(*pair))
    return Sentence(words, edges)


SENTENCES = [planted(np.random.default_rng(seed)) for seed in range(20)]


class Planted:
    """Heads: along obj, along everything, at the word before, and at the word itself."""

    def attention(self, token_NT: Tensor) -> list[Tensor]:
        wanted = token_NT[0].tolist()
        own = next(s for s in SENTENCES if [t for word in s.words for t in word] == wanted)
        owner_T = np.repeat(np.arange(7), [len(word) for word in own.words])
        weight_HTT = torch.zeros(4, len(owner_T), len(owner_T))
        partner = {max(e.head, e.dependent): (min(e.head, e.dependent), e) for e in own.edges}
        for t, word in enumerate(owner_T):
            earlier, edge = partner.get(int(word), (int(word), None))
            goals = [earlier if edge and edge.relation == "obj" else word, earlier, word - 1, word]
            for head, goal in enumerate(goals):
                there = torch.from_numpy(owner_T == max(int(goal), 0))
                weight_HTT[head, t, there] = 1 / float(there.sum())
        return [weight_HTT[None]]


def test_planted_heads_look_along_their_relations() -> None:
    text = Text(100, 20, None, None, [], sentences=SENTENCES)
    rows = list(syntactic_heads(Planted(), text))  # pyright: ignore[reportArgumentType]
    found = {row.component: row for row in rows}
    assert found["L0H0 obj"].value == found["L0H1"].value == 1
    assert found["L0H0 obj"].n == 60
    assert found["L0H1"].n == 120
    before = np.mean([abs(e.head - e.dependent) == 1 for s in SENTENCES for e in s.edges])
    assert found["L0H2"].value == pytest.approx(before)
    assert found["L0H2"].null == pytest.approx(before)  # one back is the best fixed distance
    share_S = [np.mean([abs(e.head - e.dependent) == 1 for e in s.edges]) for s in SENTENCES]
    assert found["L0H2"].standard_error == pytest.approx(sem(share_S))  # over sentences
    assert found["L0H1 nsubj"].value > found["L0H1 nsubj"].null + 0.3


def test_attention_between_words_is_summed_over_those_looked_at_and_averaged_over_others() -> None:
    own = Sentence([[1, 2], [3]], [])

    class Two:
        def attention(self, token_NT: Tensor) -> list[Tensor]:
            return [torch.tensor([[[[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]]])]

    (weight_HWW,) = words_attended(Two(), own)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(weight_HWW[0], [[1, 0], [0.5, 0.5]])


def test_dependencies_and_paths_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "w.conllu"
    lines = [f"{n + 1}\tw{n}\tw\tX\t_\t_\t{n}\t{'dep' if n else 'root'}\t_\t_" for n in range(6)]
    made.write_text("\n".join(lines))
    config = TrajectoryConfig(
        metrics=("syntactic_heads", "path_patching"),
        dependencies=str(made),
        paths="L0H0:L1H1",
        checkpoints=2,
        datums=5,
    )
    found = trajectory_of_run(open_run(tiny_run()), config)
    assert found.series("syntactic_heads", "L1H1")["n"].tolist() == [5, 5]
    assert found.series("syntactic_heads", "L1H1")["null"].tolist() == [1, 1]
    assert len(found.series("path_patching", "L0H0 > L1H1")) == 2
    assert main(["trajectory", tiny_run(), "--name", "x", "--paths", "L9H0:logits"]) == 2
    assert "--paths: got 'L9H0:logits', but the model has no L9H0" in capsys.readouterr().err
    assert main(["trajectory", tiny_run(), "--name", "x", "--dependencies", "none.conllu"]) == 2
    assert "none.conllu: cannot be read" in capsys.readouterr().err
