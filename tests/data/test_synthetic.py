"""The embedded data set: repeatable, balanced, with masks that mean what they say, and not solvable by colour."""

from __future__ import annotations

import numpy as np
import pytest

from viny.data import synthetic
from viny.data.synthetic import BORDER, GROUND, OBJECT

SIZE = 64


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray, int, int]]:
    """A hundred images of the segmentation stream."""
    return [synthetic.render("segmentation", index, SIZE, seed=7) for index in range(100)]


def test_the_same_name_gives_the_same_bytes():
    for stream in synthetic.STREAMS:
        first = synthetic.render(stream, 12, SIZE, seed=3)
        # Other draws in between, and the global generator, must not matter.
        synthetic.render(stream, 13, SIZE, seed=3)
        np.random.seed(0)
        second = synthetic.render(stream, 12, SIZE, seed=3)
        assert first[0].tobytes() == second[0].tobytes()
        assert first[1].tobytes() == second[1].tobytes()
        assert first[2:] == second[2:]


def test_streams_indices_and_seeds_never_share_an_image():
    images = {
        synthetic.render(stream, index, 32, seed)[0].tobytes()
        for stream in synthetic.STREAMS
        for index in (0, 1, 11, 111)
        for seed in (0, 1, 11)
    }
    assert len(images) == 3 * 4 * 3


@pytest.mark.parametrize("size", [16, 33, 64, 96])
def test_shapes_types_and_values(size):
    image, mask, scene, kind = synthetic.render("unlabelled", 5, size, seed=0)
    assert image.shape == (3, size, size)
    assert image.dtype == np.uint8
    assert mask.shape == (size, size)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {OBJECT, GROUND, BORDER}
    assert image.std() > 5
    assert type(scene) is int
    assert 0 <= scene < len(synthetic.SCENES)
    assert type(kind) is int
    assert 0 <= kind < len(synthetic.KINDS)


def test_every_mask_holds_all_three_classes(drawn):
    for _, mask, _, _ in drawn:
        assert set(np.unique(mask)) == {OBJECT, GROUND, BORDER}


def test_coverage(drawn):
    shares = np.array([[np.mean(mask == value) for value in range(3)] for _, mask, _, _ in drawn])
    mean = shares.mean(axis=0)
    assert 0.14 < mean[OBJECT] < 0.30
    assert 0.55 < mean[GROUND] < 0.80
    assert 0.08 < mean[BORDER] < 0.15
    for index in range(100):
        inside = synthetic.draw("segmentation", index, SIZE, seed=7)[1]
        # The limits hold on the doubled grid; halving it may move the share by a little.
        assert synthetic.COVERAGE[0] - 0.02 <= inside.mean() <= synthetic.COVERAGE[1] + 0.02


def test_the_border_lies_between_object_and_ground(drawn):
    rows, columns = np.indices((SIZE, SIZE)).reshape(2, -1)
    for index in range(0, 100, 10):
        mask = drawn[index][1].ravel()
        inside = synthetic.draw("segmentation", index, SIZE, seed=7)[1].ravel()
        border = np.flatnonzero(mask == BORDER)

        def distances(pixels, others):
            """From each pixel to the nearest of the others, in pixels."""
            dy, dx = rows[pixels, None] - rows[None, others], columns[pixels, None] - columns[None, others]
            return np.sqrt((dy * dy + dx * dx).min(axis=1))

        within = synthetic.band_radius(SIZE)
        assert (distances(border, np.flatnonzero(inside)) <= within).all()
        assert (distances(border, np.flatnonzero(~inside)) <= within).all()
        # Nothing that close to the outline is left out, and the rest keeps its side.
        assert (distances(np.flatnonzero(mask == OBJECT), np.flatnonzero(~inside)) > within).all()
        assert (distances(np.flatnonzero(mask == GROUND), np.flatnonzero(inside)) > within).all()
        assert inside[mask == OBJECT].all()
        assert not inside[mask == GROUND].any()


def test_the_band_of_a_straight_edge_has_both_sides():
    inside = np.zeros((120, 120), dtype=bool)
    inside[:, :60] = True
    mask = synthetic.trimap(inside)
    # A fortieth of 120 is three pixels on either side; the image's own edge is not an outline.
    assert (mask[:, :57] == OBJECT).all()
    assert (mask[:, 57:63] == BORDER).all()
    assert (mask[:, 63:] == GROUND).all()


def test_scenes_are_balanced_in_their_own_stream_only():
    count = len(synthetic.SCENES)
    assert count == 6
    own = [synthetic.render("scenes", index, 16, seed=1)[2] for index in range(30)]
    assert own == [index % count for index in range(30)]
    others = [synthetic.render("unlabelled", index, 16, seed=1)[2] for index in range(120)]
    assert others != [index % count for index in range(120)]
    assert set(others) == set(range(count))


def test_every_kind_of_object_occurs(drawn):
    assert {kind for *_, kind in drawn} == set(range(len(synthetic.KINDS)))


def test_mean_colour_does_not_give_the_scene_away():
    made = [synthetic.render("scenes", index, 32, seed=2) for index in range(600)]
    colours = np.stack([image.mean(axis=(1, 2)) for image, *_ in made])
    scenes = np.array([scene for _, _, scene, _ in made])
    known, asked = slice(0, 300), slice(300, 600)
    gaps = ((colours[asked, None] - colours[None, known]) ** 2).sum(axis=2)
    accuracy = np.mean(scenes[known][gaps.argmin(axis=1)] == scenes[asked])
    assert accuracy < 0.6


def test_colour_alone_does_not_part_object_from_ground(drawn):
    # Even the best split of one image's pixels, by the mean colours of its two sides, leaves much undecided.
    accuracies = []
    for image, mask, _, _ in drawn:
        pixels = image.reshape(3, -1).T.astype(np.float32)
        side = mask.ravel()
        gaps = [((pixels - pixels[side == value].mean(axis=0)) ** 2).sum(axis=1) for value in (OBJECT, GROUND)]
        guess = np.argmin(gaps, axis=0)
        accuracies.append(np.mean([np.mean(guess[side == value] == value) for value in (OBJECT, GROUND)]))
    assert 0.6 < np.mean(accuracies) < 0.95


@pytest.mark.parametrize(
    ("stream", "index", "size"), [("pets", 0, 64), ("scenes", -1, 64), ("scenes", 0, synthetic.MIN_SIZE - 1)]
)
def test_a_wrong_call_is_refused(stream, index, size):
    with pytest.raises(ValueError, match=r"unknown stream|negative|too small"):
        synthetic.render(stream, index, size, seed=0)


def test_surroundings_tell_object_from_ground_better_than_a_single_place(drawn):
    def separation(blur: int) -> float:
        """How well red minus blue, averaged over squares of that side, ranks object pixels above ground pixels."""
        found = []
        for image, mask, _, _ in drawn[:30]:
            warmth = image[0].astype(float) - image[2]
            sums = np.pad(np.pad(warmth, blur // 2, mode="edge").cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            mean = sums[blur:, blur:] - sums[:-blur, blur:] - sums[blur:, :-blur] + sums[:-blur, :-blur]
            ranks = np.sort(mean[mask == GROUND])
            found.append(np.searchsorted(ranks, mean[mask == OBJECT]).mean() / len(ranks))
        return float(np.mean(found))

    single, around = separation(1), separation(13)
    assert 0.6 < single < 0.9
    assert around > single + 0.05
