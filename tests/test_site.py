"""What `make site` says about built pages: nothing where they are right, and each thing that is wrong."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent / "notebooks" / "site" / "check_pages.py"
_spec = importlib.util.spec_from_file_location("check_pages", FILE)
check_pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_pages)

GOOD = """<html><head><link rel="stylesheet" href="style.css?v=1"><link rel="canonical" href="https://example.org/"></head>
<body><h1 id="top">A</h1><h2>B</h2><h3>C</h3><h2>D</h2><a href="#top">up</a> <a href="more/b.html#here%20it%20is">b</a>
<a href="https://example.org/">elsewhere</a> <img src="a.png" alt="What is on it"></body></html>"""
OTHER = '<h1 id="here it is">B</h1><a href="../a.html#top">a</a>'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "more" / "b.html").write_text(OTHER)
    (tmp_path / "style.css").write_text("@font-face { src: url(font.woff2) }")
    (tmp_path / "a.png").touch()
    return tmp_path


def test_nothing_is_wrong_with_good_pages(site, capsys):
    assert check_pages.problems(site) == []
    assert check_pages.main([str(site)]) == 0
    assert "2 pages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("#top", "#bottom", "a.html refers to #bottom, an anchor that is not there"),
        ("#here%20it", "#there%20it", "a.html refers to more/b.html#there%20it%20is, an anchor that is not there"),
        ("more/b.html", "more/c.html", "a.html refers to more/c.html#here%20it%20is, which is not there"),
        ("a.png", "b.png", "a.html refers to b.png, which is not there"),
        ("h3", "h4", "a.html: a heading of level 4 below one of level 2"),
        ("<h2>B</h2>", "<h1>B</h1>", "a.html has 2 titles instead of one"),
        ("What is on it", " ", "a.html: the picture a.png has no alternative text"),
        ("What is on it", "a.png", "a.html: the picture a.png has no alternative text"),
        (
            "</head>",
            '<script src="https://cdn.example/x.js">',
            "a.html loads https://cdn.example/x.js from another host",
        ),
        ("</head>", "<style>p { src: url('//x.example/f') }</style>", "a.html loads //x.example/f from another host"),
        ("style.css?v=1", "https://cdn.example/s.css", "a.html loads https://cdn.example/s.css from another host"),
    ],
)
def test_each_thing_that_is_wrong_is_said(site, capsys, old, new, said):
    assert old in GOOD
    (site / "a.html").write_text(GOOD.replace(old, new))
    assert said in check_pages.problems(site)
    assert check_pages.main([str(site)]) == 1
    assert said in capsys.readouterr().err


def test_styles_load_nothing_from_elsewhere(site):
    (site / "style.css").write_text("@import 'https://cdn.example/a.css'; p { src: url(https://fonts.example/f) }")
    assert check_pages.problems(site) == [
        "style.css loads https://cdn.example/a.css from another host",
        "style.css loads https://fonts.example/f from another host",
    ]


def test_a_folder_without_pages_is_no_site(tmp_path, capsys):
    assert check_pages.main([str(tmp_path)]) == 1
    assert "make site" in capsys.readouterr().err
