"""Picture paths in messages: every way of writing one is found, and no other text is touched."""

import shlex
import time
import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlx_llama4.cli.talk.dropped_paths import find_images
from mlx_llama4.cli.talk.pasted_urls import urls_in

PLAIN = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "b.JPG", "my photo.png", "it's.heic", "notes.txt", "ü.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "Screenshot at 3.04.05\u202fPM.png").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("message", "text", "names"),
    [
        ("compare D/a.png with D/b.JPG", "compare image 1 with image 2", "a.png b.JPG"),
        ("describe D/a.png", "describe image 1", "a.png"),
        ("describe D/a.png.", "describe image 1.", "a.png"),
        ("What is this? D/a.png", "What is this?", "a.png"),
        ("What is this?\nD/a.png\nD/b.JPG\n", "What is this?", "a.png b.JPG"),
        ("D/a.png What is this?", "What is this?", "a.png"),
        ("D/a.png D/b.JPG which is larger?", "which is larger?", "a.png b.JPG"),
        ("D/a.png is a star, right?", "image 1 is a star, right?", "a.png"),
        ("D/a.png and D/b.JPG: which?", "image 1 and image 2: which?", "a.png b.JPG"),
        ("D/a.png 和 D/b.JPG", "image 1 和 image 2", "a.png b.JPG"),
        ("D/a.png? Is D/a.png red?", "Is image 1 red?", "a.png"),
        ("D/a.png", "", "a.png"),
        ("'D/a.png'?", "", "a.png"),
        ("Is `D/a.png`, or (D/b.JPG), red?", "Is image 1, or (image 2), red?", "a.png b.JPG"),
        ("看D/a.png吗", "看image 1吗", "a.png"),
        ("~/a.png", "", "a.png"),
        ("see a.png!", "see image 1!", "a.png"),
        ("see ./a.png and b.JPG", "see image 1 and image 2", "a.png b.JPG"),
        (r"see my\ photo.png", "see image 1", "my photo.png"),
        (r"see D/my\ photo.png", "see image 1", "my photo.png"),
        ("see D/my photo.png", "see image 1", "my photo.png"),
        ("see 'my photo.png'", "see image 1", "my photo.png"),
        (r"see 'D/it'\''s.heic'", "see image 1", "it's.heic"),
        ("see D/it's.heic", "see image 1", "it's.heic"),
        ('see "D/it\'s.heic"', "see image 1", "it's.heic"),
        ("see file://D/my%20photo.png", "see image 1", "my photo.png"),
        ("see file://localhostD/a.png", "see image 1", "a.png"),
        ("see D/Screenshot at 3.04.05 PM.png", "see image 1", "Screenshot at 3.04.05\u202fPM.png"),
        (
            "see D/Screenshot\\ at\\ 3.04.05\u202fPM.png",
            "see image 1",
            "Screenshot at 3.04.05\u202fPM.png",
        ),
        (f"see D/{unicodedata.normalize('NFD', 'ü')}.png", "see image 1", "ü.png"),
    ],
)
def test_found(pictures: Path, message: str, text: str, names: str) -> None:
    found = find_images(message.replace("D/", f"{pictures}/"))
    expected = [names] if "hot" in names else names.split()
    assert (found.text, [path.name for path in found.paths]) == (text, expected)
    assert all(path.is_file() for path in found.paths)


@pytest.mark.parametrize(
    "message",
    [
        "no path at all\n", "/usr/bin, 1/2 and and/or", "https://example.com/a.png", "xa.png",
        "a.png.bak", "a.png-old", "D/a.png/b", "D/none.png", "D/notes.txt", "D/folder.png",
        "photo.png", r"C:\pictures\a.png", "", " \n ", "~nobody/a.png", "a.pngs", "D/\0.png",
    ],
)  # fmt: skip
def test_left_alone(pictures: Path, message: str) -> None:
    message = message.replace("D/", f"{pictures}/")
    found = find_images(message)
    assert (found.text, found.paths) == (message, ())


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("hello nope.png what is this", "nope.png"),
        ("see D/none.png.", "D/none.png"),
        ("see 'D/my none.png' and \"other one.JPG\"!", "D/my none.png|other one.JPG"),
        (r"see D/my\ none.png", r"D/my\ none.png"),
        ("(none.png), <none.png>", "none.png"),
        ("D/a.png or D/b.png?", "D/b.png"),
        ("file://D/none.png ~/none.webp", "file://D/none.png|~/none.webp"),
        (r"C:\pictures\a.png", r"C:\pictures\a.png"),
        ("ftp://example.com/a.png", "ftp://example.com/a.png"),
        ("D/folder.png", "D/folder.png"),
        ("~nobody/a.png", "~nobody/a.png"),
        ("write .png or *.png, or {a,b}.png; a.png, a.png.bak, xa.pngs", ""),
        ("https://example.com/none.png and http://x/?p=D/a.png", ""),
        ("no path at all", ""),
    ],
)
def test_names_that_lead_nowhere(pictures: Path, message: str, lost: str) -> None:
    found = find_images(message.replace("D/", f"{pictures}/"))
    assert "|".join(found.lost) == lost.replace("D/", f"{pictures}/")


U = "https://example.com/u.png"


@pytest.mark.parametrize(
    ("message", "text", "names"),
    [
        (f"What is this? {U}", "What is this?", [U]),
        (f"{U} What is this?", "What is this?", [U]),
        (f"compare {U}, D/a.png and {U}.", "compare image 1, image 2 and image 1.", [U, "a.png"]),
        (f"see <{U}> (or ![it]({U}))", "see image 1 (or ![it](image 1))", [U]),
        (f"看{U}吗", "看image 1吗", [U]),
        (f"see {U}?size=1 and {U}", f"see {U}?size=1 and image 1", [U]),
        (f"see {U}/D/a.png", f"see {U}/D/a.png", []),
    ],
)
def test_urls_that_were_fetched(pictures: Path, message: str, text: str, names: list[str]) -> None:
    found = find_images(message.replace("D/", f"{pictures}/"), (), {U})
    assert found.text == text.replace("D/", f"{pictures}/")
    assert [name if isinstance(name, str) else name.name for name in found.paths] == names
    assert found.lost == ()


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("see http://a.b/c.png.", ["http://a.b/c.png"]),
        ("(https://a.b/c_(d).png), https://a.b/c_(d).png)", ["https://a.b/c_(d).png"]),
        ("HTTPS://A.B/c?d=1#e!", ["HTTPS://A.B/c?d=1#e"]),
        ("x=data:image/png;base64,AA/+A== data:text/plain,a", ["data:image/png;base64,AA/+A=="]),
        ("http:// https://. ftp://a.b/c", []),
    ],
)
def test_urls_in_a_text(text: str, urls: list[str]) -> None:
    assert urls_in(text) == urls


NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="/"),
    max_size=40,
).filter(lambda name: len(name.encode()) < 200)


def in_double_quotes(path: str) -> str:
    return '"' + "".join("\\" + c if c in '"\\$`' else c for c in path) + '"'


def behind_backslashes(path: str) -> str:
    return "".join(c if c.isalnum() or c in "/._-\u202f" else "\\" + c for c in path)


@PLAIN
@given(name=NAMES, suffix=st.sampled_from([".png", ".JPEG", ".heic"]))
@example(name="a.png b", suffix=".png")
@example(name="'\"\\ $`~", suffix=".png")
def test_any_name_in_any_way(pictures: Path, name: str, suffix: str) -> None:
    path = pictures / "new" / (name + suffix)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    try:
        plain = str(path)
        for written in (
            plain, shlex.quote(plain), "'" + plain.replace("'", "'\\''") + "'",
            in_double_quotes(plain), behind_backslashes(plain), "file://" + quote(plain),
        ):  # fmt: skip
            found = find_images(f"what about {written}, then?")
            assert (found.text, found.paths) == ("what about image 1, then?", (path,)), written
    finally:
        path.unlink()


@PLAIN
@given(st.text(st.sampled_from(list("/~'\"\\ .:%na\npgPNG()é漢\u202f")), max_size=80))
def test_text_without_pictures_is_unchanged(text: str) -> None:
    text = text.replace("a", "x")
    found = find_images(text)
    assert (found.text, found.paths) == (text, ())


@pytest.mark.parametrize(
    "unit",
    [
        "/ ",
        "x.png ",
        "/x.png ",
        "'/x ",
        "\\",
        "/",
        '"/n.png" ',
        "(",
        "a.png/",
        "x.png\n/",
        "http://a",
        "https://x.png ",
        "http://" + ")" * 99,
    ],
)
def test_long_texts_are_quick(unit: str) -> None:
    text = unit * (40_000 // len(unit)) + "/none.png"
    started = time.process_time()
    assert find_images(text).text == text
    assert time.process_time() - started < 2
