"""docs/licences.md has every distribution that users install, under licences that this program can be used with."""

from __future__ import annotations

import re
from email.message import Message

import pytest

from docs import licences


def rows() -> dict[str, str]:
    return dict(re.findall(r"^\| (\S+) \| (.+) \|$", licences.FILE.read_text(), re.MULTILINE)[1:])


def test_the_page_is_what_the_installed_distributions_say() -> None:
    assert licences.FILE.read_text() == licences.page(), "run python -m docs.licences"


@pytest.mark.parametrize(("name", "licence"), rows().items())
def test_a_licence_is_accepted(name: str, licence: str) -> None:
    assert set(re.split(r" (?:AND|OR) ", licence)) <= licences.ACCEPTED


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "GPL-3.0-only", "License": "MIT"}, "GPL-3.0-only"),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Classifier": "License :: Other/Proprietary License"}, "License :: Other/Proprietary License"),
        ({}, "none"),
    ],
)
def test_a_licence_is_that_of_the_metadata(fields: dict[str, str], licence: str) -> None:
    message = Message()
    for name, value in fields.items():
        message[name] = value
    assert licences.licence(message) == licence
