"""The shapes world: exact scenes, exact pictures, closed vocabulary."""

import json
import random
from dataclasses import replace

import pytest
import torch

from t2i.data import shapes
from t2i.data.shapes import solids
from t2i.data.shapes.layout import scene_from_seed
from t2i.data.shapes.palette import PAINTS
from t2i.data.shapes.scene import COLOURS, HALF_WIDTH, HEIGHT, RELATIONS, SHAPES, TUBE, Box, Camera, Scene, Thing

SCENES = [scene_from_seed(seed) for seed in range(300)]


def one(shape: str, **attributes: object) -> Scene:
    return Scene((Thing(shape, "red", angle=0.6, **attributes),), camera=Camera(distance=4.2))


# --- scenes -----------------------------------------------------------------------------------------------------------


def test_a_seed_is_a_scene_and_scenes_survive_json():
    assert scene_from_seed(5) == scene_from_seed(5) != scene_from_seed(6)
    for scene in SCENES[:50]:
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_scenes_are_mostly_what_people_type_first():
    counts = [len(s.things) for s in SCENES]
    assert 0.42 < counts.count(1) / 300 < 0.58
    assert 0.25 < counts.count(2) / 300 < 0.41
    assert counts.count(3) > counts.count(4) > 0
    things = [t for s in SCENES for t in s.things]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.colour for t in things} == set(COLOURS)
    assert 0.55 < sum(t.material == "matte" and t.pattern == "plain" for t in things) / len(things) < 0.85
    several = [s for s in SCENES if len(s.things) > 1]
    assert 0.06 < sum(any(t.support is not None for t in s.things) for s in several) / len(several) < 0.2
    assert any(len({replace(t, x=0, y=0, angle=0) for t in s.things}) == 1 for s in several)


def test_everything_is_inside_the_picture_and_mostly_unhidden():
    for scene in SCENES:
        found = shapes.truth(scene)
        for i, a in enumerate(found):
            x0, y0, x1, y1 = a["box"]
            assert 0.03 < x0 < x1 < 0.97
            assert 0.03 < y0 < y1 < 0.97
            assert y1 - y0 > 0.12
            for j, b in enumerate(found[:i]):
                if j not in (scene.things[i].support,) and scene.things[j].support != i:
                    assert Box(*a["box"]).overlap(Box(*b["box"])) <= 0.3


def test_relations_are_plain_to_see():
    seen = set()
    for scene in SCENES:
        found = shapes.truth(scene)
        for i, name, j in shapes.relations(scene):
            a, b = found[i], found[j]
            seen.add(name)
            if name in ("left of", "right of"):
                assert (b["centre"][0] - a["centre"][0]) * (1 if name == "left of" else -1) > 0.08
            elif name in ("in front of", "behind"):
                assert (b["depth"] - a["depth"]) * (1 if name == "in front of" else -1) > 0.3
            else:
                assert a["box"][3] < b["box"][1] + 0.5 * (b["box"][3] - b["box"][1])
                assert abs(a["centre"][0] - b["centre"][0]) < 0.08
    assert seen == set(RELATIONS)


@pytest.mark.parametrize("relation", RELATIONS)
def test_compose_grants_the_relation(relation):
    for seed in range(5):
        scene = shapes.compose([("red", "cube"), ("blue", "cylinder")], relation, random.Random(seed))
        assert [(t.colour, t.shape) for t in scene.things] == [("red", "cube"), ("blue", "cylinder")]
        assert (0, relation, 1) in shapes.relations(scene)


def test_compose_counts_keeps_attributes_and_is_a_function_of_its_generator():
    wanted = [Thing("sphere", "green", size="small", material="shiny", pattern="striped")] * 4
    scene = shapes.compose(wanted, rng=random.Random(3))
    assert scene == shapes.compose(wanted, rng=random.Random(3))
    assert [(t.shape, t.size, t.material, t.pattern) for t in scene.things] == [
        ("sphere", "small", "shiny", "striped")
    ] * 4


@pytest.mark.parametrize(
    ("kinds", "relation", "message"),
    [
        ([("red", "cube"), ("blue", "cone")], "on top of", "cannot stand on"),
        ([("mauve", "cube")], None, "mauve"),
        ([("red", "teapot")], None, "teapot"),
        ([("red", "cube")], "left of", "two things"),
        ([("red", "cube"), ("red", "cone")], "inside", "inside"),
        ([("red", "cube")] * 5, None, "5"),
        ([], None, "0"),
    ],
)
def test_compose_says_what_is_wrong(kinds, relation, message):
    with pytest.raises(ValueError, match=message):
        shapes.compose(kinds, relation)


# --- solids -----------------------------------------------------------------------------------------------------------


def distance(shape: str, p: solids.Vector) -> torch.Tensor:
    """How far points are from the surface, at least for points near it."""
    x, y, z = p
    half, height = HALF_WIDTH[shape], HEIGHT[shape]
    ring = (x * x + y * y).sqrt()
    if shape == "sphere":
        return (x * x + y * y + (z - half) ** 2).sqrt() - half
    if shape == "torus":
        return (((x * x + (z - half) ** 2).sqrt() - half + TUBE) ** 2 + y * y).sqrt() - TUBE
    width = half if shape in ("cube", "cylinder") else half * (1 - z / height)
    across = torch.maximum(x.abs(), y.abs()) if shape in ("cube", "pyramid") else ring
    return torch.maximum(across - width, (z - height / 2).abs() - height / 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_enter_at_the_surface_and_normals_face_them(shape):
    generator = torch.Generator().manual_seed(1)
    aim = torch.rand(3, 4000, generator=generator) * 2.4 - 1.2
    aim[2] += 0.7
    start = torch.tensor([1.0, -6.0, 3.0])[:, None].expand(3, 4000)
    o, d = tuple(start), tuple(aim - start)
    t = solids.entry(shape, o, d)
    hit = t < torch.inf
    assert 0.1 < hit.float().mean() < 0.9
    p = tuple((a + t * b)[hit] for a, b in zip(o, d, strict=True))
    assert distance(shape, p).abs().max() < 3e-3
    n = torch.stack(solids.normal(shape, p))
    torch.testing.assert_close(n.norm(dim=0), torch.ones(n.shape[1]), atol=2e-2, rtol=0)
    assert ((n * torch.stack(d)[:, hit]).sum(0) < 0.03).float().mean() > 0.995
    inside = torch.stack(
        [torch.stack([a + s * b for a, b in zip(o, d, strict=True)]) for s in torch.linspace(0.5, 1.5, 101)]
    )
    touched = (distance(shape, tuple(inside.transpose(0, 1))) < -5e-3).any(0)
    assert not (touched & ~hit).any()  # no ray that passes through is missed
    assert solids.cover(shape, o, d)[~hit].max() <= (0.5 if shape == "torus" else 0)
    assert (solids.cover(shape, o, d)[hit] > 0).float().mean() > 0.99


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_have_the_promised_shape_and_range():
    image = shapes.render(SCENES[:3], (48, 64))
    assert image.shape == (3, 3, 48, 64)
    assert image.dtype == torch.float32
    assert image.isfinite().all()
    assert image.min() >= -1
    assert image.max() <= 1
    assert not image.is_inference()


def test_a_picture_has_the_same_bytes_alone_and_in_any_batch():
    together = shapes.render(SCENES[:40], 64)
    for i in (0, 7, 33, 39):
        assert torch.equal(shapes.render(SCENES[i], 64)[0], together[i])
    assert torch.equal(shapes.render(SCENES[39::-1], 64).flip(0), together)


@pytest.mark.parametrize("samples", [1, 4])
def test_a_window_is_the_crop_of_the_picture(samples):
    scenes = SCENES[:6]
    whole = shapes.render(scenes, 256, samples=samples)
    windows = [
        (x / 256, y / 256, (x + 64) / 256, (y + 64) / 256)
        for x, y in [(96, 128), (0, 0), (192, 192), (64, 80), (100, 4), (128, 96)]
    ]
    part = shapes.render(scenes, 64, windows, samples)
    for picture, crop, window in zip(whole, part, windows, strict=True):
        x, y = round(window[0] * 256), round(window[1] * 256)
        assert torch.equal(crop, picture[:, y : y + 64, x : x + 64])


def test_large_pictures_traced_in_bands_match_small_ones():
    scene = SCENES[10]
    small = shapes.render(scene, 64, samples=16)
    large = shapes.render(scene, 512, samples=1)
    averaged = torch.nn.functional.avg_pool2d(((large + 1) / 2) ** 2, 8).sqrt() * 2 - 1
    assert (small - averaged).abs().mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["large", "small"])
def test_truth_boxes_fit_the_pixels(shape, size):
    scene = one(shape, size=size, x=0.4, y=0.2)
    blue = replace(scene, things=(replace(scene.things[0], colour="blue"),))
    changed = (shapes.render(scene, 256, samples=1) - shapes.render(blue, 256, samples=1)).abs().sum(1)[0] > 0.1
    rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
    seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    told = torch.tensor(shapes.truth(scene)[0]["box"]) * 256
    slack = 0.025 * (told[2:] - told[:2]).max() + 1.5
    assert (told[:2] <= seen[:2] + 1).all()
    assert (told[2:] >= seen[2:] - 1).all()
    assert (told - seen).abs().max() < slack


@pytest.mark.parametrize("shape", ["cube", "sphere", "cylinder"])
def test_every_colour_is_nearest_to_its_own_name(shape):
    scenes = [shapes.compose([(c, shape)], rng=random.Random(i)) for i, c in enumerate(COLOURS)]
    images = (shapes.render(scenes, 64) + 1) / 2
    paints = torch.tensor([PAINTS[c] for c in COLOURS])[:, None] * torch.linspace(0.6, 1.1, 11)[:, None]  # shades
    for colour, scene, image in zip(COLOURS, scenes, images, strict=True):
        u, v = shapes.truth(scene)[0]["centre"]
        patch = image[:, int(v * 64) - 3 : int(v * 64) + 4, int(u * 64) - 3 : int(u * 64) + 4].mean((1, 2))
        assert COLOURS[int((paints - patch).norm(dim=2).amin(1).argmin())] == colour


def test_things_cast_soft_shadows_away_from_the_light():
    scene = one("sphere")
    empty = shapes.render(replace(scene, things=()), 128)
    darker = (empty - shapes.render(scene, 128))[0].mean(0)
    box = [round(v * 128) for v in shapes.truth(scene)[0]["box"]]
    beside = darker.clone()
    beside[:, box[0] : box[2]] = 0
    right, left = beside[:, 64:], beside[:, :64]  # the light comes from the left
    assert right.max() > 0.2
    assert left.max() < 0.1
    assert ((right > 0.03) & (right < 0.15)).sum() > 10  # penumbra


def test_patterns_and_shine_change_the_picture():
    plain = shapes.render(one("cube"), 64)
    for change in ({"pattern": "striped"}, {"pattern": "checkered"}, {"material": "shiny"}, {"size": "small"}):
        assert (shapes.render(one("cube", **change), 64) - plain).abs().max() > 0.3


def test_render_refuses_bad_windows_and_samples():
    with pytest.raises(ValueError, match="window"):
        shapes.render(SCENES[0], 64, (0.5, 0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="2 windows for 1"):
        shapes.render(SCENES[0], 64, [(0, 0, 1, 1)] * 2)
    with pytest.raises(ValueError, match="samples"):
        shapes.render(SCENES[0], 64, samples=3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_pictures():
    cpu, gpu = shapes.render(SCENES[:32], 64), shapes.render(SCENES[:32], 64, device="cuda").cpu()
    assert ((cpu - gpu).abs() > 1e-3).float().mean() < 1e-4


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions_stay_inside_the_vocabulary():
    from t2i.text.words import WordTokenizer, split

    tokenizer = WordTokenizer(shapes.WORDS)
    assert len(shapes.WORDS) == len(set(shapes.WORDS)) < 300
    used = set()
    for seed in range(3000):
        for kind, text in shapes.captions(SCENES[seed % 300], random.Random(seed)).items():
            assert not tokenizer.unknown(text), (kind, text)
            assert text == text.lower()
            assert len(split(text)) <= 60
            used.update(split(text))
    assert len(set(shapes.WORDS) - used) <= 8


def test_short_captions_name_every_shape_and_all_colours_or_none():
    nouns = {"cube": "cube|box", "sphere": "sphere|ball", "torus": "torus|ring|donut"}
    silent = 0
    for i, scene in enumerate(SCENES):
        words = shapes.captions(scene, random.Random(i))["short"]
        told = [t.colour in words or (t.colour == "purple" and "violet" in words) for t in scene.things]
        if not all(told):
            subject = words.split(" on a ")[0]  # the rest may be a floor of some colour
            assert not any(colour in subject.split() for colour in COLOURS)
            silent += 1
        for thing in scene.things:
            assert any(n in words for n in nouns.get(thing.shape, thing.shape).split("|"))
    assert 0.02 < silent / len(SCENES) < 0.2


def test_a_red_cube_is_a_likely_caption():
    texts = [shapes.captions(shapes.compose([("red", "cube")]), random.Random(i))["short"] for i in range(200)]
    assert texts.count("a red cube") > 80
    assert len(set(texts)) > 8


def test_captions_count_and_place():
    three = shapes.compose([("green", "sphere")] * 3)
    texts = {shapes.captions(three, random.Random(i))["short"] for i in range(60)}
    assert {"three green spheres", "3 green spheres"} <= texts
    stacked = shapes.compose([("red", "cube"), ("blue", "cube")], "on top of")
    texts = {shapes.captions(stacked, random.Random(i))["short"] for i in range(300)}
    assert {"a red cube on top of a blue cube", "a blue cube under a red cube"} <= texts
    assert not texts & {"a blue cube on top of a red cube", "a red cube under a blue cube"}
    beside = shapes.compose([("red", "cube"), ("blue", "cube")], "left of")
    texts = {shapes.captions(beside, random.Random(i))["short"] for i in range(300)}
    assert {"a red cube to the left of a blue cube", "a blue cube right of a red cube"} <= texts
    assert not any("blue cube to the left of" in t or "red cube to the right of" in t for t in texts)
    assert "a red cube and a blue cube" in texts  # things are named from left to right
    assert "a blue cube and a red cube" not in texts


def test_things_that_look_the_same_stand_side_by_side_only_where_none_is_behind_another():
    row, file, corner = (
        Scene(tuple(Thing("cube", "orange", x=x, y=y) for x, y in places))
        for places in (((-1.0, 0.0), (1.0, 0.0)), ((0.0, -1.0), (0.0, 1.5)), ((-1.0, 0.0), (1.0, 0.0), (0.0, 1.5)))
    )
    said = [
        {text for i in range(200) for text in shapes.captions(scene, random.Random(i)).values()}
        for scene in (row, file, corner)
    ]
    assert [any("side by side" in text for text in texts) for texts in said] == [True, False, False]


def test_alt_captions_are_careless():
    pairs = [(s, shapes.captions(s, random.Random(i))["alt"]) for i, s in enumerate(SCENES)]
    right = sum(all(t.colour in text and t.shape in text for t in s.things) for s, text in pairs)
    assert 0 < right < 150
    assert max(len(text.split()) for _, text in pairs) < 9


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_is_a_pure_function_of_its_seed():
    together = shapes.batch(range(12), 32)
    alone = shapes.sample(7, 32)
    assert torch.equal(alone["image"], together["image"][7])
    for name in ("caption", "captions", "scene", "seed", "key"):
        assert alone[name] == together[name][7]
    assert alone["caption"] in alone["captions"].values()
    assert Scene.from_dict(json.loads(alone["scene"])) == scene_from_seed(7)


def test_crops_are_aligned_windows_of_the_full_picture():
    drawn = shapes.crops(range(6), 256, 64)
    whole = shapes.batch(range(6), 256)
    assert drawn["image"].shape == (6, 3, 64, 64)
    assert drawn["caption"] == whole["caption"]
    corners = (drawn["window"] * 256).round().long()
    assert (corners % 4 == 0).all()
    assert len({tuple(c.tolist()) for c in corners}) > 3
    for crop, full, (x0, y0, x1, y1) in zip(drawn["image"], whole["image"], corners, strict=True):
        assert torch.equal(crop, full[:, y0:y1, x0:x1])
    with pytest.raises(ValueError, match="512"):
        shapes.crops([0], 256, 512)
