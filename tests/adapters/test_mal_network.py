"""Mask Auto-Labeler's network: its names and sizes, and its numbers against a naive re-implementation in NumPy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.domain.errors import SpecError
from tasks.models.mal.architecture import ARCHITECTURES, MalArchitecture
from tasks.models.mal.network import MalNetwork, MaskHead, RoiHead, size_of_boxes
from tasks.models.mal.vit import Block, resize_positions

Array = NDArray[np.float64]

SMALL_BOX, MEDIUM_BOX, LARGE_BOX = (0.0, 0.0, 20.0, 20.0), (5.0, 5.0, 65.0, 65.0), (0.0, 10.0, 200.0, 110.0)
ONE_OF_EACH = torch.tensor([SMALL_BOX, MEDIUM_BOX, LARGE_BOX])


def architecture(**changes) -> MalArchitecture:
    return MalArchitecture(**({"dim": 48, "depth": 2, "heads": 3, "head_hidden": 16, "head_out": 16} | changes))


def random_network(sizes: MalArchitecture, seed: int = 0) -> MalNetwork:
    """Every parameter is drawn, biases and norms too, so that none can be left out unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MalNetwork(sizes).eval()
        for name, parameter in network.named_parameters():
            if name.endswith(("bias", "cls_token", "pos_embed")):
                torch.nn.init.normal_(parameter, std=0.3)
            elif parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            elif "blocks" in name:
                torch.nn.init.normal_(parameter, std=0.15)
    return network


def random_crops(count: int, side: int) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(7))


# The names and sizes of the published files


def published_tensors(d: int, depth: int, rows: int, stem: str) -> dict[str, tuple[int, ...]]:
    """A network's tensors as the files have them, written out."""
    tensors: dict[str, tuple[int, ...]] = {"backbone.cls_token": (1, 1, d), "backbone.pos_embed": (1, rows, d)}
    if stem == "conv":
        for stage, (before, after) in enumerate(pairwise((3, d // 8, d // 4, d // 2, d))):
            tensors[f"backbone.patch_embed.proj.{stage}.0.weight"] = (after, before, 3, 3)
            tensors[f"backbone.patch_embed.proj.{stage}.1.weight"] = (after,)
            tensors[f"backbone.patch_embed.proj.{stage}.1.bias"] = (after,)
        tensors["backbone.patch_embed.proj.3.3.weight"] = (d, d, 1, 1)
        tensors["backbone.patch_embed.proj.3.3.bias"] = (d,)
    else:
        tensors["backbone.patch_embed.proj.weight"] = (d, 3, 16, 16)
        tensors["backbone.patch_embed.proj.bias"] = (d,)
    layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    for index in range(depth):
        for layer, shape in layers.items():
            tensors[f"backbone.blocks.{index}.{layer}.weight"] = shape
            tensors[f"backbone.blocks.{index}.{layer}.bias"] = shape[:1]
        for norm in ("norm1", "norm2"):
            tensors |= {f"backbone.blocks.{index}.{norm}.{kind}": (d,) for kind in ("weight", "bias")}
    tensors |= {f"backbone.norm.{kind}": (d,) for kind in ("weight", "bias")}
    tensors |= {"roi_head.mlp1.weight": (256, d), "roi_head.mlp1.bias": (256,)}
    tensors |= {"roi_head.mlp2.weight": (256, 256), "roi_head.mlp2.bias": (256,)}
    for index in range(4):
        tensors[f"mask_head.convs.{index}.conv.weight"] = (256, 256 if index else d, 3, 3)
        tensors[f"mask_head.convs.{index}.conv.bias"] = (256,)
    return tensors


def on_meta(sizes: MalArchitecture) -> MalNetwork:
    with torch.device("meta"):
        return MalNetwork(sizes)


@pytest.mark.parametrize("stem", ["conv", "patch"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_has_the_name_and_the_shape_of_the_published_files(name, stem):
    known = ARCHITECTURES[name]
    sizes = MalArchitecture(known.dim, known.depth, known.heads, stem=stem, grid=known.grid)

    found = {key: tuple(tensor.shape) for key, tensor in on_meta(sizes).state_dict().items()}

    assert found == published_tensors(known.dim, known.depth, 257 if name == "vit-mae-huge/14" else 197, stem)


@pytest.mark.parametrize(
    ("name", "millions", "digits", "tensors"),
    [
        ("vit-deit-tiny/16", 7.96, 2, 174),
        ("vit-deit-small/16", 25.2, 1, 174),
        ("vit-deit-base/16", 93.09, 2, 174),
        ("vit-mae-base/16", 93.09, 2, 174),
        ("vit-mae-large/16", 314.2, 1, 318),
        ("vit-mae-huge/14", 646.4, 1, 414),
    ],
)
def test_a_network_has_the_published_number_of_parameters_in_the_published_number_of_tensors(
    name, millions, digits, tensors
):
    """MAL-1: tiny and huge can be built, as the two that could not be."""
    state = on_meta(ARCHITECTURES[name]).state_dict()

    assert round(sum(tensor.numel() for tensor in state.values()) / 1e6, digits) == millions
    assert len(state) == tensors


def test_a_network_with_one_patch_convolution_has_164_tensors_less_the_unused_classifiers_two():
    assert len(on_meta(MalArchitecture(768, 12, 12, stem="patch")).state_dict()) == 164 - 2


# Shapes


@pytest.mark.parametrize("crop", [128, 224, 256, 512])
@pytest.mark.parametrize(("adjusts_scale", "share"), [(True, 4), (False, 2)])
def test_logits_have_a_quarter_of_the_crops_side_or_half_of_it_at_one_scale(crop, adjusts_scale, share):
    network = random_network(architecture(adjusts_scale=adjusts_scale))

    with torch.inference_mode():
        logits = network(random_crops(3, crop), ONE_OF_EACH)

    assert logits.shape == (3, 1, crop // share, crop // share)


def test_the_maps_inside_have_the_published_shapes_for_a_crop_of_512():
    network = random_network(architecture())
    shapes: dict[str, list[tuple[int, ...]]] = {"stem": [], "features": [], "query": [], "values": []}

    def record(kind):
        return lambda module, inputs, output: shapes[kind].append(tuple(output.shape))

    for stage in network.backbone.patch_embed.proj:
        stage.register_forward_hook(record("stem"))
    network.backbone.register_forward_hook(record("features"))
    network.roi_head.register_forward_hook(record("query"))
    network.mask_head.register_forward_hook(record("values"))
    with torch.inference_mode():
        network(random_crops(3, 512), ONE_OF_EACH)

    assert shapes == {
        "stem": [(3, 6, 256, 256), (3, 12, 128, 128), (3, 24, 64, 64), (3, 48, 32, 32)],
        "features": [(3, 48, 32, 32)],
        "query": [(3, 16)],
        "values": [(1, 16, 32, 32), (1, 16, 64, 64), (1, 16, 128, 128)],
    }


def test_no_crops_have_no_logits():
    assert random_network(architecture())(torch.zeros(0, 3, 64, 64), torch.zeros(0, 4)).shape == (0, 1, 16, 16)


def test_a_mask_head_of_three_convolutions_does_not_enlarge_the_map():
    head = MaskHead(architecture(head_convs=3, adjusts_scale=False))

    assert head(torch.randn(1, 48, 4, 4)).shape == (1, 16, 4, 4)


def test_the_values_of_the_mask_head_are_never_negative():
    values = random_network(architecture()).mask_head(torch.randn(2, 48, 4, 4))

    assert values.min() >= 0


# A naive re-implementation in double precision


def n_convolve(x: Array, weight: Array, bias: Array | None, stride: int, pad: int) -> Array:
    """Maps (C, H, W) and weights (O, C, k, k): one place of the kernel after the other."""
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    height, width = ((length - k) // stride + 1 for length in x.shape[1:])
    out = np.zeros((len(weight), height, width))
    for row in range(k):
        for column in range(k):
            seen = x[:, row : row + stride * height : stride, column : column + stride * width : stride]
            out += np.einsum("oc,chw->ohw", weight[:, :, row, column], seen)
    return out if bias is None else out + bias[:, None, None]


def n_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def n_normalise(x: Array, weight: Array, bias: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias


def n_bilinear(x: Array, height: int, width: int) -> Array:
    """Maps (..., H, W): every new pixel from its four neighbours, with pixel centres at halves."""

    def weights(old: int, new: int) -> Array:
        matrix = np.zeros((new, old))
        for index in range(new):
            position = max(0.0, (index + 0.5) * old / new - 0.5)
            lower = int(position)
            matrix[index, lower] += 1 - (position - lower)
            matrix[index, min(lower + 1, old - 1)] += position - lower
        return matrix

    return weights(x.shape[-2], height) @ x @ weights(x.shape[-1], width).T


def keys_cubic(x: float, a: float) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slightly_shifted(old: int, new: int) -> Array:
    """The conv stem's family: a = -0.75, a factor of (new + 0.1) / old, pixels beyond the edge are those at it."""
    matrix = np.zeros((new, old))
    for index in range(new):
        position = (index + 0.5) * old / (new + 0.1) - 0.5
        for neighbour in range(math.floor(position) - 1, math.floor(position) + 3):
            matrix[index, min(max(neighbour, 0), old - 1)] += keys_cubic(position - neighbour, -0.75)
    return matrix


def antialiased(old: int, new: int) -> Array:
    """The patch stem's family: a = -0.5, the kernel as wide as a new pixel, pixels beyond the edge do not count."""
    matrix, width = np.zeros((new, old)), max(1.0, old / new)
    for index in range(new):
        position = (index + 0.5) * old / new - 0.5
        row = np.array([keys_cubic((position - neighbour) / width, -0.5) for neighbour in range(old)])
        matrix[index] = row / row.sum()
    return matrix


def n_positions(positions: Array, side: int, stem: str) -> Array:
    """An embedding (1 + n * n, D) for a grid of side x side."""
    grid = math.isqrt(len(positions) - 1)
    if side == grid:
        return positions
    matrix = (slightly_shifted if stem == "conv" else antialiased)(grid, side)
    plane = np.einsum("ra,cb,abd->rcd", matrix, matrix, positions[1:].reshape(grid, grid, -1))
    return np.concatenate([positions[:1], plane.reshape(side * side, -1)])


def n_tokens(p: dict[str, Array], crop: Array, sizes: MalArchitecture) -> Array:
    if sizes.stem == "patch":
        return n_convolve(crop, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], sizes.patch, 0)
    for stage in range(4):
        name = f"patch_embed.proj.{stage}"
        crop = n_convolve(crop, p[f"{name}.0.weight"], None, 2, 1)
        crop = (crop - crop.mean()) / np.sqrt(crop.var() + 1e-6)  # one group: all channels and pixels
        crop = n_gelu(crop * p[f"{name}.1.weight"][:, None, None] + p[f"{name}.1.bias"][:, None, None])
    return n_convolve(crop, p["patch_embed.proj.3.3.weight"], p["patch_embed.proj.3.3.bias"], 1, 0)


def n_attention(p: dict[str, Array], name: str, x: Array, heads: int) -> Array:
    dim = x.shape[1]
    width = dim // heads
    qkv = x @ p[f"{name}.qkv.weight"].T + p[f"{name}.qkv.bias"]
    out = np.zeros_like(x)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        query, key, value = (qkv[:, part * dim : (part + 1) * dim][:, own] for part in range(3))
        scores = np.exp(query @ key.T / math.sqrt(width))
        out[:, own] = scores / scores.sum(axis=1, keepdims=True) @ value
    return out @ p[f"{name}.proj.weight"].T + p[f"{name}.proj.bias"]


def n_features(p: dict[str, Array], crop: Array, sizes: MalArchitecture) -> Array:
    patches = n_tokens(p, crop, sizes)
    side = patches.shape[1]
    x = np.concatenate([p["cls_token"][0], patches.reshape(sizes.dim, -1).T])
    x = x + n_positions(p["pos_embed"][0], side, sizes.stem)
    for index in range(sizes.depth):
        name = f"blocks.{index}"
        y = n_normalise(x, p[f"{name}.norm1.weight"], p[f"{name}.norm1.bias"])
        x = x + n_attention(p, f"{name}.attn", y, sizes.heads)
        y = n_normalise(x, p[f"{name}.norm2.weight"], p[f"{name}.norm2.bias"])
        y = n_gelu(y @ p[f"{name}.mlp.fc1.weight"].T + p[f"{name}.mlp.fc1.bias"])
        x = x + y @ p[f"{name}.mlp.fc2.weight"].T + p[f"{name}.mlp.fc2.bias"]
    x = n_normalise(x, p["norm.weight"], p["norm.bias"])[1:]
    return x.T.reshape(sizes.dim, side, side)


def n_logits(network: MalNetwork, crop: Array, area: float) -> Array:
    """The logits (h, w) of one crop (3, S, S) around a box of `area` square pixels."""
    sizes = network.architecture
    p = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    backbone = {name[9:]: value for name, value in p.items() if name.startswith("backbone.")}
    features = n_features(backbone, crop, sizes)
    h = features.shape[1]
    query = np.maximum(0, p["roi_head.mlp1.weight"] @ features.mean((1, 2)) + p["roi_head.mlp1.bias"])
    query = p["roi_head.mlp2.weight"] @ query + p["roi_head.mlp2.bias"]
    branch = 1 if not sizes.adjusts_scale else 0 if area <= 1024 else 1 if area <= 9216 else 2
    x = n_bilinear(
        features, [h // 2, h, 2 * h][branch] * sizes.scale_before, [h // 2, h, 2 * h][branch] * sizes.scale_before
    )
    for index in range(sizes.head_convs):
        if index == 3:
            x = n_bilinear(x, int(x.shape[1] * sizes.scale), int(x.shape[2] * sizes.scale))
        name = f"mask_head.convs.{index}.conv"
        x = np.maximum(0, n_convolve(x, p[f"{name}.weight"], p[f"{name}.bias"], 1, 1))
    logits = np.einsum("c,chw->hw", query, x)
    target = 4 * h if sizes.adjusts_scale else 4 * logits.shape[0]
    return n_bilinear(logits, target, target)


@pytest.mark.parametrize(
    ("crop", "changes"),
    [
        (64, {}),
        (128, {"heads": 4}),
        (224, {}),
        (64, {"stem": "patch"}),
        (224, {"stem": "patch"}),
        (112, {"stem": "patch", "patch": 14, "grid": 16, "adjusts_scale": False}),
        (64, {"head_convs": 5, "head_hidden": 24, "head_out": 8}),
        (64, {"adjusts_scale": False}),
        (64, {"adjusts_scale": False, "scale_before": 2, "scale": 1.5}),
        (64, {"adjusts_scale": False, "head_convs": 2}),
    ],
    ids=str,
)
def test_the_logits_are_those_of_a_naive_implementation_in_double_precision(crop, changes):
    network, crops = random_network(architecture(**changes)), random_crops(3, crop)

    with torch.inference_mode():
        logits = network(crops, ONE_OF_EACH)[:, 0].numpy()

    areas = [400, 3600, 20000]
    expected = np.stack([n_logits(network, one.double().numpy(), area) for one, area in zip(crops, areas, strict=True)])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# Boxes and the branches of the network


@pytest.mark.parametrize(("side", "size"), [(32.0, 0), (96.0, 1)])
def test_a_box_of_exactly_1024_or_9216_square_pixels_gets_a_mask_from_its_own_branch(side, size):
    """MAL-2: it fell between two branches, and its mask was the whole box."""
    network, crops = random_network(architecture()), random_crops(1, 64)
    inside = [SMALL_BOX, MEDIUM_BOX][size]

    with torch.inference_mode():
        on_the_limit = network(crops, torch.tensor([[0.0, 0.0, side, side]]))
        within = network(crops, torch.tensor([inside]))

    assert torch.equal(on_the_limit, within)
    assert on_the_limit.abs().max() > 0


def test_a_box_without_area_gets_a_mask_from_the_branch_of_small_ones():
    """MAL-2: the published network has no branch for it, and its mask was the whole box."""
    network, crops = random_network(architecture()), random_crops(1, 64)

    with torch.inference_mode():
        assert torch.equal(network(crops, torch.zeros(1, 4)), network(crops, torch.tensor([SMALL_BOX])))


@given(st.tuples(*[st.integers(0, 300)] * 4))
def test_every_box_has_one_size_and_larger_boxes_no_smaller_one(numbers):
    width, height, more_width, more_height = numbers
    boxes = torch.tensor([[3.0, 4.0, 3 + width, 4 + height], [0.0, 0.0, width + more_width, height + more_height]])

    smaller, larger = size_of_boxes(boxes).tolist()

    assert smaller == (0 if width * height <= 1024 else 1 if width * height <= 9216 else 2)
    assert smaller <= larger


@given(x=st.integers(0, 409600), y=st.integers(0, 409600), side=st.sampled_from([32, 96]))
def test_a_box_at_a_limit_has_one_size_at_every_hundredth_of_a_pixel(x, y, side):
    """COCO has x, y, w and h, and x + w - x is not always w."""
    left, top = x / 100, y / 100
    boxes = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float64)

    assert size_of_boxes(boxes).tolist() == [{32: 0, 96: 1}[side]]


@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_a_batch_of_boxes_of_all_sizes_gives_each_crop_what_it_gets_alone(stem):
    network, crops = random_network(architecture(stem=stem)), random_crops(5, 64)
    boxes = torch.tensor([LARGE_BOX, SMALL_BOX, MEDIUM_BOX, SMALL_BOX, LARGE_BOX])

    with torch.inference_mode():
        together = network(crops, boxes)
        alone = torch.cat([network(crops[row : row + 1], boxes[row : row + 1]) for row in range(5)])

    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_only_the_area_of_a_box_matters():
    network, crops = random_network(architecture()), random_crops(1, 64)

    with torch.inference_mode():
        here = network(crops, torch.tensor([[0.0, 0.0, 50.0, 50.0]]))
        there = network(crops, torch.tensor([[300.0, 20.0, 325.0, 120.0]]))

    assert torch.equal(here, there)


def test_the_three_sizes_of_boxes_are_looked_at_in_three_ways():
    network, crop = random_network(architecture()), random_crops(1, 64)

    with torch.inference_mode():
        small, medium, large = network(crop.expand(3, -1, -1, -1), ONE_OF_EACH)

    assert (small - medium).abs().max() > 1e-3
    assert (medium - large).abs().max() > 1e-3


def test_at_one_scale_the_box_does_not_matter():
    network, crop = random_network(architecture(adjusts_scale=False)), random_crops(1, 64)

    with torch.inference_mode():
        small, large = (network(crop, torch.tensor([box])) for box in (SMALL_BOX, LARGE_BOX))

    assert torch.equal(small, large)


def test_the_query_is_of_the_whole_crop_and_not_of_the_place():
    head, features = RoiHead(architecture()), torch.randn(1, 48, 6, 6)

    torch.testing.assert_close(head(features), head(features.flip(-1).transpose(-1, -2)))


# The position embedding


@pytest.mark.parametrize("stem", ["conv", "patch"])
@pytest.mark.parametrize("side", [4, 7, 8, 16, 32])
def test_the_position_embedding_is_resized_by_the_formula_of_its_family(stem, side):
    positions = torch.randn(1, 1 + 14 * 14, 6, generator=torch.Generator().manual_seed(1))

    resized = resize_positions(positions, side, stem)[0].double().numpy()

    np.testing.assert_allclose(resized, n_positions(positions[0].double().numpy(), side, stem), atol=2e-5)


def test_the_two_families_resize_the_position_embedding_visibly_differently():
    """MAL-4: the patch embedding changed and with it the resize; a checkpoint needs its own."""
    positions = torch.randn(1, 1 + 14 * 14, 6, generator=torch.Generator().manual_seed(1))

    assert (resize_positions(positions, 32, "conv") - resize_positions(positions, 32, "patch")).abs().max() > 0.1


@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_a_position_embedding_of_the_crops_own_grid_stays_as_it_is(stem):
    positions = torch.randn(1, 1 + 14 * 14, 6)

    assert resize_positions(positions, 14, stem) is positions


# Training's side


def test_stochastic_depth_lets_a_sample_skip_a_branch_or_doubles_it():
    torch.manual_seed(0)
    block = Block(48, 3, drop_path=0.5).train()
    tokens = torch.randn(16, 5, 48)
    with torch.no_grad():
        attended = block.attn(block.norm1(tokens))
        dropped = block._dropped(attended)

    ratios = (dropped / attended).mean(dim=(1, 2)).round()
    assert set(ratios.tolist()) == {0.0, 2.0}


def test_stochastic_depth_grows_linearly_over_the_blocks_and_ends_with_the_training():
    sizes = architecture(depth=3)
    network = MalNetwork(sizes, drop_path=0.4)
    plain = MalNetwork(sizes)
    plain.load_state_dict(network.state_dict())
    crops = random_crops(1, 64)

    assert [block._drop_path for block in network.backbone.blocks] == [0.0, 0.2, 0.4]
    with torch.inference_mode():
        assert torch.equal(network.eval()(crops, ONE_OF_EACH[:1]), plain.eval()(crops, ONE_OF_EACH[:1]))


# What makes no network


@pytest.mark.parametrize(
    "changes",
    [{"head_convs": 3}, {"scale_before": 2}, {"scale": 1.5}, {"dim": 50}, {"heads": 7}, {"depth": 0}, {"dim": 0}],
    ids=str,
)
def test_sizes_that_make_no_network_are_refused(changes):
    with pytest.raises(SpecError, match="expected"):
        architecture(**changes)


@pytest.mark.parametrize(
    ("changes", "crop", "step"),
    [({}, 240, 32), ({}, 0, 32), ({"adjusts_scale": False}, 250, 16), ({"patch": 14, "stem": "patch"}, 512, 28)],
    ids=str,
)
def test_a_crop_that_the_tokens_do_not_fill_is_refused(changes, crop, step):
    """MAL-1: huge/14 in TAO could not take its own default crop of 512."""
    with pytest.raises(SpecError, match=f"crop_size: found {crop}, expected a multiple of {step}"):
        architecture(**changes).refuse_crop(crop)
