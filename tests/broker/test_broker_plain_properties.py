"""The short way through a property string says what the long one says, or declines."""

from hypothesis import given
from hypothesis import strategies as st

from rocketq.broker.send import _SPECIAL, _outlines, _plain
from rocketq.properties import decode_properties, encode_properties

names = st.sampled_from(["UNIQ_KEY", "TAGS", "KEYS", "WAIT", "MY_UNIQ_KEY", "k", "DELAY", "PGROUP"])
values = st.sampled_from(["", "a", "true", "false", "7F000001123418B4AAC2000000001A2F", "a=b", "ü"])


@given(st.lists(st.tuples(names, values), max_size=5), st.booleans())
def test_what_is_plain_is_read_as_ever(pieces: list[tuple[str, str]], complete: bool) -> None:
    text = "".join(f"{name}\x01{value}\x02" for name, value in pieces)
    text = text if complete else text[:-1]
    properties = decode_properties(text)
    for _ in range(2):  # the second time from what was kept
        plain = _plain(text)
        if plain is not None:
            unique_id, outline = plain
            assert unique_id == properties["UNIQ_KEY"]
            assert outline == (
                properties.get("TAGS"),
                properties.get("KEYS"),
                properties.get("WAIT") != "false",
            )
            assert _SPECIAL.isdisjoint(properties)
            assert text == encode_properties(properties)


def test_a_usual_producers_properties_are_plain() -> None:
    unique = "7F000001123418B4AAC2000000001A2F"
    for text in (
        f"UNIQ_KEY\x01{unique}\x02WAIT\x01true\x02TAGS\x01TagA\x02",
        f"KEYS\x01k1 k2\x02UNIQ_KEY\x01{unique}\x02WAIT\x01true\x02",
        f"UNIQ_KEY\x01{unique}\x02",
    ):
        assert _plain(text) is not None


def test_strings_with_keys_are_not_kept() -> None:
    text = "KEYS\x01never-kept\x02UNIQ_KEY\x0101\x02"
    assert _plain(text) == ("01", (None, "never-kept", True))
    assert "KEYS\x01never-kept\x02" not in _outlines


def test_many_kinds_of_strings_do_not_pile_up() -> None:
    for number in range(3000):
        _plain(f"UNIQ_KEY\x0101\x02n\x01{number}\x02")
    assert len(_outlines) <= 1000
