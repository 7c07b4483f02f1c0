"""What the options of the erofs driver may be."""

import pytest

from layerstore import InvalidOptionError
from layerstore.drivers.erofs.options import Options, parse_driver_options


@pytest.mark.parametrize(
    "given, meant",
    [
        ({}, Options("", 0, containerd_cache=False, directio=False)),
        ({"erofs.size": " 10G "}, Options(size="10G")),
        ({"size": "1.5g"}, Options(size="1.5g")),
        ({"erofs.flatten": "20"}, Options(flatten=20)),
        ({"flatten": "0"}, Options()),
        ({"erofs.containerd_cache": "on", "erofs.directio": "off"}, Options(containerd_cache=True)),
        ({" EROFS.Directio ": " on"}, Options(directio=True)),
    ],
)
def test_options_are_taken_with_and_without_the_drivers_name(given, meant):
    assert parse_driver_options(given) == meant


@pytest.mark.parametrize(
    "given, said",
    [
        ({"erofs.sise": "1"}, "erofs: unknown option erofs.sise"),
        ({"overlay2.size": "1G"}, "erofs: unknown option overlay2.size"),
        ({"erofs.erofs.size": "1G"}, "erofs: unknown option erofs.erofs.size"),
        ({"erofs.": "1G"}, r"erofs: unknown option erofs\."),
        ({"erofs.size": "many"}, "invalid size: 'many'"),
        *(({"erofs.flatten": text}, "erofs.flatten is a number of layers, or 0 for never, not") for text in ("", "-1", "on", "1.5", "9" * 99, "²", "70000")),
        *(({"directio": text}, "erofs.directio is on or off, not") for text in ("", "true", "ON", "1")),
        ({"containerd_cache": "yes"}, "erofs.containerd_cache is on or off, not 'yes'"),
    ],
)
def test_what_they_cannot_be_is_told(given, said):
    with pytest.raises(InvalidOptionError, match=said):
        parse_driver_options(given)
