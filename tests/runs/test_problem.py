"""Data and model as one problem: shapes, scaling, losses of one sample alone, measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from steelyard.data import Table
from steelyard.runs.config import TrainConfig
from steelyard.runs.problem import PADDING, choose_device, make_problem


def table(kind: str, x, y, classes: tuple[str, ...] = ("a", "b")) -> Table:
    return Table(
        name="made",
        kind=kind,
        train_x=x,
        train_y=y,
        test_x=x,
        test_y=y,
        classes=classes if y is not None else (),
        source="made here",
        licence="none",
    )


def config(model: str, **options: object) -> TrainConfig:
    return TrainConfig(model=model, data="made", steps=1, device="cpu", **options)


@pytest.fixture
def images() -> Table:
    pixels = np.arange(4 * 14 * 15, dtype=np.uint8).reshape(4, 14, 15, 1)
    pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255
    return table("image", pixels, np.array([0, 1, 0, 1]))


TEXTS = ["abcdefg", "hi", "", "xyz" * 3]


@pytest.fixture
def language():
    return make_problem(config("gpt", length=4), table("text", TEXTS, None))


# -- images and features -------------------------------------------------------------------------


def test_pixels_are_scaled_by_constants(images):
    problem = make_problem(config("cnn"), images)
    assert problem.train_x.dtype == torch.uint8  # in memory
    x, y = problem.batch(torch.tensor([0, 3]))
    assert x.shape == (2, 1, 14, 15)
    assert x[0, 0, 0, 0] == -1.0
    assert x[0, 0, 0, 1] == 1.0
    assert y.tolist() == [0, 1]
    assert problem.n == 4
    assert "fixed constant" in problem.public[0]


def test_features_are_compressed_by_a_fixed_function():
    rows = np.array([[0.0, -1e6], [math.e - 1, 3.0]], dtype=np.float32)
    problem = make_problem(config("mlp"), table("features", rows, np.array([0, 1])))
    x, _ = problem.batch(torch.tensor([0, 1]))
    expected = [[0.0, -math.log(1 + 1e6)], [1.0, math.log(4)]]
    torch.testing.assert_close(x, torch.tensor(expected))


def test_the_loss_of_a_sample_is_its_own_cross_entropy(images):
    problem = make_problem(config("cnn"), images)
    x, y = problem.batch(torch.arange(4))
    losses = problem.losses(problem.model, x, y)
    assert losses.shape == (4,)
    rows = problem.model(x).detach().log_softmax(1)
    torch.testing.assert_close(losses, -rows[torch.arange(4), y])


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_evaluation_does_not_depend_on_its_batch(images, batch):
    problem = make_problem(config("cnn"), images)
    whole = problem.evaluate(problem.model, batch=4)
    assert problem.evaluate(problem.model, batch=batch) == pytest.approx(whole)
    x, y = problem.batch(torch.arange(4))
    assert whole["accuracy"] == float((problem.model(x).argmax(1) == y).float().mean())


def test_evaluation_is_in_eval_mode_and_leaves_training_mode(images):
    problem = make_problem(config("cnn"), images)
    for training in (True, False):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(14 * 15, 2)).train(training)
        first = problem.evaluate(model, batch=2)
        assert problem.evaluate(model, batch=2) == first
        assert model.training is training


# -- text ----------------------------------------------------------------------------------------


def test_bytes_are_cut_into_chunks_that_predict_every_byte_once(language):
    assert language.task.kind == "language"
    rows = language.train_x
    assert rows.shape[1] == 5  # four to read, and the next of each
    real = [[t for t in row if t != PADDING] for row in rows.tolist()]
    assert real == [
        list(b"abcde"),
        list(b"efg"),
        list(b"hi"),
        [],
        list(b"xyzxy"),
        list(b"yzxyz"),
    ]
    predicted = sum(max(len(row) - 1, 0) for row in real)
    assert predicted == sum(max(len(text) - 1, 0) for text in TEXTS)
    x, y = language.batch(torch.tensor([0]))
    assert x.tolist() == [list(b"abcd")]
    assert y.tolist() == [list(b"bcde")]
    assert "chunk of 4 tokens" in language.assumptions[0]
    assert language.public == []  # nothing was computed to cut bytes


def test_the_loss_of_a_chunk_is_the_mean_over_its_own_bytes(language):
    x, y = language.batch(torch.arange(6))
    losses = language.losses(language.model, x, y)
    rows = language.model(x).detach().log_softmax(2)
    for i in range(6):
        real = [-rows[i, t, y[i, t]] for t in range(4) if y[i, t] != PADDING]
        expected = torch.stack(real).mean() if real else torch.tensor(0.0)
        torch.testing.assert_close(losses[i], expected)
    alone = language.losses(language.model, x[1:2], y[1:2])
    torch.testing.assert_close(losses[1:2], alone)


def test_perplexity_is_per_byte_whatever_the_chunks(language):
    x, y = language.batch(torch.arange(6))
    rows = language.model(x).detach().log_softmax(2)
    real = y != PADDING
    total = -rows.gather(2, y.clamp(max=PADDING)[..., None])[..., 0][real].sum()
    expected = float(total) / int(real.sum())
    measured = language.evaluate(language.model, batch=4)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert "accuracy" not in measured


def test_a_language_model_of_tokens_reads_whole_documents(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from steelyard.hf.sources import quiet

    letters = Tokenizer(models.WordLevel(unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "?", "<eos>"])
    letters.train_from_iterator(["abcdefgh"], trainer)
    size = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    with quiet():
        gpt2 = transformers.GPT2Config(**size, vocab_size=11, bos_token_id=2, eos_token_id=2)
        transformers.GPT2LMHeadModel(gpt2).save_pretrained(tmp_path)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>", unk_token="?"
        ).save_pretrained(tmp_path)
    texts = ["abcdefgh", "abc"]  # eight tokens: longer than a chunk
    problem = make_problem(config(str(tmp_path), length=4), table("text", texts, None))
    rows = problem.train_x.tolist()
    assert len(rows) == 3
    assert rows[0][-1] == rows[1][0]  # the last token read is the first of the next chunk
    assert [len(set(row) - {problem.padding}) for row in rows] == [5, 4, 3]


# -- refusals ------------------------------------------------------------------------------------


def test_models_that_do_not_read_the_data(images):
    with pytest.raises(ValueError, match=r"'cnn' does not read text.*use gpt"):
        make_problem(config("cnn"), table("text", TEXTS, None))
    with pytest.raises(ValueError, match="'gpt' does not take image data"):
        make_problem(config("gpt"), images)


def test_a_typo_without_the_hf_extra_is_no_reason_to_install_it(images, monkeypatch):
    monkeypatch.setattr("steelyard.runs.problem.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'cn': did you mean 'cnn'\? .*steelyard\[hf\]"):
        make_problem(config("cn"), images)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(210, 32), nn.BatchNorm1d(32))
        self.head = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x))


def test_batchnorm(images, monkeypatch):
    monkeypatch.setattr("steelyard.models.build", lambda *_, **__: Normalised())
    with pytest.raises(ValueError, match=r"'layers\.2' is a BatchNorm.*--replace-batchnorm"):
        make_problem(config("mlp"), images)
    replaced = make_problem(config("mlp", replace_batchnorm=True), images)
    assert isinstance(replaced.model.layers[2], nn.GroupNorm)
    plain = make_problem(config("mlp", epsilon=None), images)
    assert isinstance(plain.model.layers[2], nn.BatchNorm1d)  # nothing to protect: as it is
    twin = make_problem(config("mlp", epsilon=None, replace_batchnorm=True), images)
    assert isinstance(twin.model.layers[2], nn.GroupNorm)  # the twin of a run that replaced it


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name, said in (("banana", "unknown device"), ("meta", "use cpu"), ("cuda:99", "use cpu")):
        with pytest.raises(ValueError, match=f"device '{name}'") as error:
            choose_device(name)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
