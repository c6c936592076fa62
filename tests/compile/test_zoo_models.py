# ruff: noqa: E402 - what is imported below may be missing
"""The networks of the zoo: as many parameters as published, outputs of the right shape, kernels of Triton's alone."""

import math

import pytest
from compile_support import TORCH_WARNS, need_torch_and_triton

need_torch_and_triton()

import torch
from torch import nn

from miriam.frontend._inductor_lowering import lower
from miriam.zoo.models import MODELS
from miriam.zoo.models.attention import attention

pytestmark = TORCH_WARNS

# torchvision's and transformers' tables, in units; InceptionV3 without its second head, which has 3,326,696 more.
PUBLISHED = {
    "alexnet": 61_100_840, "squeezenet": 1_235_496, "resnet18": 11_689_512, "resnet34": 21_797_672,
    "resnet50": 25_557_032, "vit-b16": 86_567_656, "vgg19": 143_667_240,
    "resnet152": 60_192_808, "densenet201": 20_013_928, "inceptionv3": 27_161_264 - 3_326_696,
    "distilbert": 66_362_880,
}  # fmt: skip


@pytest.mark.parametrize("label", PUBLISHED)
def test_a_network_has_the_parameters_of_the_published_one(label: str) -> None:
    with torch.device("meta"):
        module = MODELS[label].make()
    assert sum(parameter.numel() for parameter in module.parameters()) == PUBLISHED[label]


@pytest.mark.parametrize("label", MODELS)
def test_a_network_takes_its_inputs(label: str) -> None:
    model = MODELS[label]
    with torch.device("meta"):
        module = model.make().eval().half()
    given = model.inputs(2, "meta")
    assert given.shape == (2, *model.shape)
    with torch.no_grad():
        out = module(given)
    classes = {"cifarnet": (10,), "gru": (100,), "lstm": (100,), "distilbert": (128, 768)}
    assert out.shape == (2, *classes.get(label, (1000,)))


def test_token_ids_cover_the_vocabulary_and_stay_in_it() -> None:
    ids = MODELS["distilbert"].inputs(64)
    assert ids.dtype is torch.int64
    assert 0 <= ids.min() < 300 < 30_000 < ids.max() < 30_522
    assert MODELS["resnet18"].inputs(1).dtype is torch.float16


def test_tokens_see_each_other_and_their_places() -> None:
    torch.manual_seed(0)
    module = MODELS["distilbert"].make().eval()
    ids = MODELS["distilbert"].inputs(1)
    other = ids.clone()
    other[0, 5] = (other[0, 5] + 1) % 30_522
    with torch.no_grad():
        before, after = module(ids), module(other)
        alike = module(torch.full((1, 8), 7))
    assert ((before - after).abs().amax(2) > 0).all()
    assert not torch.allclose(alike[0, 0], alike[0, 1])


@pytest.mark.parametrize(("label", "pixels"), [("vgg19", 224), ("densenet201", 64), ("inceptionv3", 96)])
def test_the_image_reaches_the_end_of_a_deep_network(label: str, pixels: int) -> None:
    """Random weights that let it fade away would hide wrong kernels."""
    torch.manual_seed(0)
    module, image = MODELS[label].make().eval(), torch.randn(1, 3, pixels, pixels)
    with torch.no_grad():
        one, other = module(image), module(image.flip(3))
    assert torch.isfinite(one).all()
    assert not torch.allclose(one, other, rtol=1e-3)


def test_attention_is_a_weighted_mean() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 17, 32).unbind(0)
    wanted = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(32), 3) @ v
    torch.testing.assert_close(attention(q, k, v), wanted)


class _Attending(nn.Module):
    def forward(self, x):
        return attention(x, x, x)


def _two_blocks() -> nn.Module:
    """DistilBERT with two of its six blocks: what is between blocks is there, and nothing three times."""
    module = MODELS["distilbert"].make()
    module.blocks = module.blocks[:2]
    return module


LOWERED = {
    "attention": (_Attending, torch.zeros(1, 2, 17, 32).half()),
    "rows of seven": (lambda: nn.Conv2d(32, 32, (1, 7), padding=(0, 3)), torch.zeros(1, 32, 17, 17).half()),
    "columns of seven": (lambda: nn.Conv2d(32, 32, (7, 1), padding=(3, 0)), torch.zeros(1, 32, 17, 17).half()),
    "average pool": (lambda: nn.AvgPool2d(3, 1, 1), torch.zeros(1, 32, 17, 17).half()),
    "distilbert": (_two_blocks, MODELS["distilbert"].inputs(1)),
}


@pytest.mark.parametrize("name", LOWERED)
def test_what_the_larger_networks_are_made_of_becomes_triton_kernels_alone(name: str) -> None:
    make, given = LOWERED[name]
    found = lower(make().half(), [given])
    assert found.kernels
    assert found.libraries == ()
