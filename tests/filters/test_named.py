"""Filters by name: what each text becomes, and every way to get it wrong."""

from __future__ import annotations

import pytest

from steelyard.filters.disk import Disk
from steelyard.filters.doppler import Doppler
from steelyard.filters.named import make_filter, read


def test_doppler_by_its_factor():
    one = make_filter(read("doppler:0.9"))
    assert isinstance(one, Doppler)
    assert one.noise_gain == pytest.approx(0.1 / 1.9)  # (1 - phi) / (1 + phi)
    two = make_filter(read("doppler:0.8,order=2"))
    assert isinstance(two, Doppler)
    assert two.noise_gain == pytest.approx(Doppler.cascade(0.8, 2).noise_gain)
    assert two.noise_gain != pytest.approx(0.2 / 1.8)


def test_doppler_by_its_cut_off():
    one = make_filter(read("doppler:cutoff=0.05,order=2,kind=bessel"))
    assert isinstance(one, Doppler)
    expected = Doppler.design(0.05, order=2, kind="bessel")
    assert one.noise_gain == pytest.approx(expected.noise_gain)


def test_disk():
    one, two = make_filter(read("disk:0.7")), make_filter(read("disk:0.7,look_ahead=0.5"))
    assert isinstance(one, Disk)
    assert isinstance(two, Disk)
    # kappa 0.7: gamma = 0.3 / 0.7 by default
    assert one.look_ahead == pytest.approx(0.3 / 0.7)
    assert two.look_ahead == 0.5


def test_dice_is_read_but_is_no_filter():
    named = read("dice:2,accounting=paper")
    assert named.options == {"feedback": 2.0, "accounting": "paper"}
    with pytest.raises(ValueError, match="comes first, before every other filter"):
        make_filter(named)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dopler:0.9", "unknown filter 'dopler'.*choose one of doppler, disk, dice"),
        ("doppler", "give phi, as in doppler:0.9"),
        ("doppler:0.9,cutoff=0.1", "give phi, as in doppler:0.9"),
        ("doppler:x", "phi must be a number, found 'x'"),
        ("doppler:1.5", "doppler:1.5.*found 1.5"),
        ("doppler:0.9,kind=bessel", "kind goes with a cut-off"),
        ("doppler:0.9,0.8", "no option '0.8'"),
        ("disk:0.7,gamma=1", "no option 'gamma'; disk has gain, look_ahead"),
        ("disk:0", "disk:0.*gain"),
        ("disk:0.5,look_ahead=-1", "look"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        make_filter(read(text))
    assert "\n" not in str(error.value)
