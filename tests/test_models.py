from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard.models import MODELS, Task, batchnorm_names, build, replace_batchnorm

GREY = Task(kind="image", classes=10, shape=(28, 28, 1))
COLOUR = Task(kind="image", classes=7, shape=(32, 32, 3))
FEATURES = Task(kind="features", classes=3, shape=(20,))
LANGUAGE = Task(kind="language", shape=(16,), vocabulary=50)
SMALL = {"layers": 2, "width": 24, "heads": 3}  # transformers small enough for a test


def batch(task: Task, n: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if task.kind == "language":
        return torch.randint(task.vocabulary, (n, task.shape[0]), generator=generator)
    shape = task.shape
    if task.kind == "image":
        shape = (shape[2], shape[0], shape[1])
    return torch.randn(n, *shape, generator=generator)


CASES = [
    ("cnn", GREY, {}, (10,)),
    ("cnn", COLOUR, {}, (7,)),
    ("mlp", GREY, {}, (10,)),
    ("mlp", FEATURES, {"hidden": (8, 9)}, (3,)),
    ("mlp", FEATURES, {"hidden": ()}, (3,)),
    ("vit", COLOUR, SMALL, (7,)),
    ("vit", GREY, SMALL, (10,)),
    ("gpt", LANGUAGE, SMALL, (16, 50)),
    ("gpt", LANGUAGE, {**SMALL, "tied": True}, (16, 50)),
]
each_model = pytest.mark.parametrize(("name", "task", "options", "logits"), CASES)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@each_model
def test_maps_a_batch_to_logits(name, task, options, logits):
    model = build(name, task, seed=0, **options)
    for n in (0, 1, 3):  # 0: an empty Poisson batch
        assert model(batch(task, n)).shape == (n, *logits)


@each_model
def test_weights_are_a_function_of_the_seed(name, task, options, logits):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(name, task, seed=3, **options).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    again = build(name, task, seed=3, **options).state_dict()
    other = build(name, task, seed=4, **options).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@each_model
def test_a_sample_s_logits_depend_on_that_sample_only(name, task, options, logits):
    model, x = build(name, task, seed=0, **options).double(), batch(task)
    x = x if task.kind == "language" else x.double()
    changed = x.clone()
    changed[1] = batch(task, 5)[4]
    before, after = model(x), model(changed)
    assert torch.allclose(before[[0, 2]], after[[0, 2]], rtol=0, atol=1e-12)
    assert not torch.allclose(before[1], after[1])


@each_model
def test_parameters_lie_in_layers_that_the_engine_knows(name, task, options, logits):
    known = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.Conv2d)
    model = build(name, task, seed=0, **options)
    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            assert isinstance(module, known), path
    assert batchnorm_names(model) == []


@each_model
def test_every_layer_sees_one_row_per_sample(name, task, options, logits):
    model, sizes = build(name, task, seed=0, **options), {}
    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(
                lambda _, inputs, __, path=path: sizes.update({path: inputs[0].shape[0]})
            )
    model(batch(task, 3))
    assert set(sizes.values()) == {3}


@pytest.mark.parametrize(
    ("name", "task", "options", "count"),
    [
        ("cnn", GREY, {}, 26_010),  # the literature's network
        ("mlp", GREY, {}, 784 * 256 + 256 + 256 * 10 + 10),
        ("vit", Task(kind="image", classes=10, shape=(32, 32, 3)), {}, 2_693_194),
        ("gpt", Task(kind="language", shape=(128,), vocabulary=8192), {}, 16_988_160),
    ],
)
def test_default_sizes(name, task, options, count):
    assert parameters(build(name, task, seed=0, **options)) == count


def test_tying_shares_the_embedding():
    untied = build("gpt", LANGUAGE, seed=0, **SMALL)
    tied = build("gpt", LANGUAGE, seed=0, tied=True, **SMALL)
    assert parameters(untied) - parameters(tied) == 50 * 24
    assert tied.get_submodule("head").weight is tied.get_submodule("token").weight


def test_gpt_is_causal_and_knows_order():
    model, x = build("gpt", LANGUAGE, seed=0, **SMALL).double(), batch(LANGUAGE)
    changed = x.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    before, after = model(x), model(changed)
    assert torch.allclose(before[:, :9], after[:, :9], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 9:], after[:, 9:])
    constant = model(torch.full((1, 16), 7))
    assert not torch.allclose(constant[:, 3], constant[:, 4])


def test_cnn_takes_every_size_from_14():
    for height in range(14, 34):
        task = Task(kind="image", classes=2, shape=(height, 15, 2))
        assert build("cnn", task, seed=0)(batch(task)).shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "task", "options", "message"),
    [
        ("cmn", GREY, {}, "unknown model 'cmn': did you mean 'cnn'"),
        ("resnet", GREY, {}, "unknown model 'resnet': our own models are cnn, mlp, vit, gpt"),
        ("cnn", FEATURES, {}, "'cnn' does not take features data: use 'mlp'"),
        ("gpt", GREY, {}, "'gpt' does not take image data: use 'cnn'"),
        ("cnn", Task(kind="image", classes=2, shape=(8, 8, 1)), {}, "found 8 x 8: use 'mlp'"),
        ("mlp", Task(kind="features", classes=1, shape=(4,)), {}, "at least 2 classes"),
        ("gpt", Task(kind="language", shape=(4,)), {}, "at least 2 tokens"),
        ("vit", GREY, {"patch": 5}, "patch 5 does not divide"),
        ("gpt", LANGUAGE, {"heads": 5}, "5 heads do not divide"),
    ],
)
def test_refuses_in_one_line(name, task, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(name, task, seed=0, **options)
    assert "\n" not in str(caught.value)


def test_refuses_unknown_kinds_and_long_sequences():
    with pytest.raises(ValueError, match="unknown task kind 'audio'"):
        Task(kind="audio", shape=(3,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="17 tokens: this model's context is 16"):
        build("gpt", LANGUAGE, seed=0, **SMALL)(torch.zeros(1, 17, dtype=torch.int64))


def test_every_model_is_tested():
    assert {case[0] for case in CASES} == set(MODELS)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (7, 7), (32, 32), (48, 24), (64, 32), (37, 1), (66, 22)]
)
def test_batchnorm_becomes_groupnorm_with_the_largest_group_count(channels, groups):
    model = nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels, eps=1e-3))
    weight = torch.nn.init.normal_(model[1].weight)
    assert batchnorm_names(model) == ["1"]
    assert replace_batchnorm(model) == 1
    norm = model[1]
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels, norm.eps) == (groups, channels, 1e-3)
    assert norm.weight is weight
    assert batchnorm_names(model) == []
    assert replace_batchnorm(model) == 0


def test_replace_batchnorm_in_depth_shared_and_without_affine():
    shared = nn.BatchNorm2d(4)
    model = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Conv2d(3, 4, 1), shared),
            "b": nn.Sequential(nn.Conv2d(4, 4, 1), shared, nn.BatchNorm3d(6, affine=False)),
        }
    ).eval()
    assert replace_batchnorm(model) == 2
    assert model.get_submodule("a.1") is model.get_submodule("b.1")
    last = model.get_submodule("b.2")
    assert isinstance(last, nn.GroupNorm)
    assert not last.affine
    assert not last.training


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (32, 2), (256, 16), (1024, 32)])
def test_batchnorm1d_keeps_groups_that_vary(channels, groups):
    model = nn.Sequential(nn.Linear(5, channels), nn.BatchNorm1d(channels))
    replace_batchnorm(model)
    norm = model[1]
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups
    assert model(torch.randn(3, 5)).std(0).min() > 0.01  # one channel a group would be constant


def test_replace_batchnorm_refuses_what_it_cannot_swap():
    with pytest.raises(ValueError, match="put it inside a module"):
        replace_batchnorm(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="'0' is a lazy BatchNorm"):
        replace_batchnorm(nn.Sequential(nn.LazyBatchNorm2d()))
