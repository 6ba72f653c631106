"""The page for the review shows the worst first, filters, and keeps what was ticked."""

import csv
import json
import os
import re
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
import pytest
import torch
from browser import CHROMIUM, look_at
from monai.data import MetaTensor
from PIL import Image, ImageColor

from custom.report.drawing import COLORS
from custom.report.planes import PHOTO, SIZE, plane_picture
from custom.report.reviewing import review_page

ROW = {"boundary_uncertainty": 0.2, "removed_share": 0.013, "volume_deviation": -2.4, "touches_border": 0}
PLACES = ["nothing_seg.nii.gz", 'p 1/über/a "b", c#1?100%_seg.nii.gz', "javascript:x/<i>x\udcff</i>_seg.nii.gz"]
ROWS = [
    {**ROW, "case": "nothing", "score": 100.0, "empty_classes": "cyst", "why": "empty"}
    | {"boundary_uncertainty": "", "volume_deviation": ""},
    {**ROW, "case": 'a "b", c', "score": 3.5, "empty_classes": "", "why": "unusual volume; touches the border"},
    {**ROW, "case": "<i>x</i>", "score": 0.5, "empty_classes": "", "why": "unusual volume"},
]
ROWS = [{**row, "prediction": place} for row, place in zip(ROWS, PLACES, strict=True)]
#: Do what a reader does, and leave what comes of it in the document.
READER = """<pre id="found"></pre><script>addEventListener("load", async () => {
  const found = { links: [...document.querySelectorAll("tbody a")].map(link => link.href) };
  found.ticked = [...document.querySelectorAll(".tick")].map(box => box.checked);
  const rows = [...document.querySelectorAll("tbody tr")];
  const shown = () => rows.filter(row => row.offsetHeight > 0).map(row => row.dataset.case);
  const set = (id, name, value) => { const field = document.getElementById(id); field[name] = value;
                                     field.dispatchEvent(new Event("input")); };
  found.all = shown();
  set("text", "value", "ITS BORDER"); found.none = shown();
  set("text", "value", "The Border"); found.border = shown();
  set("text", "value", ""); set("reason", "value", "unusual volume"); found.volume = shown();
  set("reason", "value", "");
  if (!found.ticked[1]) document.querySelectorAll(".tick")[1].click();
  set("open", "checked", true); found.open = shown();
  found.count = document.getElementById("count").textContent;
  const saved = new Promise(done => { URL.createObjectURL = blob => { blob.text().then(done); return "#"; }; });
  document.getElementById("save").click();
  found.table = await saved;
  document.getElementById("found").textContent = encodeURIComponent(JSON.stringify(found));
});</script>"""


@pytest.fixture
def folder(tmp_path):
    """A folder of predictions with pictures of two of the three scans."""
    (tmp_path / "out" / "review").mkdir(parents=True)
    for row in ROWS[:2]:
        Image.new("RGB", (300, 100), "red").save(tmp_path / "out" / "review" / f"{row['case']}.png")
    return tmp_path / "out"


def _pictures(folder) -> dict:
    return {row["case"]: folder / "review" / f"{row['case']}.png" for row in ROWS}


def test_the_page_needs_no_other_file_and_escapes_names(folder):
    page = " ".join(review_page(folder, ROWS, _pictures(folder), ["cyst"]).read_text().split())
    assert re.findall(r'src="(.{23})', page) == ["data:image/jpeg;base64,"] * 2
    assert "http" not in page
    assert f'background: {COLORS[0]}"></span>cyst' in page
    assert "<i>x</i>" not in page
    assert "boundary none, removed 1.3 %, volume none" in page
    assert "boundary 0.200, removed 1.3 %, volume -2.4" in page


def test_the_page_says_which_scans_were_left_out_and_why(folder):
    assert "left out" not in review_page(folder, ROWS, _pictures(folder), ["cyst"]).read_text()
    page = review_page(
        folder, ROWS, _pictures(folder), ["cyst"], ["a & b.nii: cannot be read.", "c.nii: NaN"]
    ).read_text()
    assert "Scans were left out, with 2 problems:" in page
    assert re.findall("<li>(.*?)</li>", page) == ["a &amp; b.nii: cannot be read.", "c.nii: NaN"]
    assert page.index("<h1>") < page.index("<li>") < page.index("<table")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page")
def test_a_browser_filters_keeps_the_ticks_and_saves_them(folder, tmp_path):
    page = review_page(folder, ROWS, _pictures(folder), ["cyst"]).read_text().replace("</body>", READER + "</body>")
    names = [row["case"] for row in ROWS]
    for ticked in ([False] * 3, [False, True, False]):  # the second time the page is opened it remembers
        shown, _ = look_at(page, tmp_path)
        found = json.loads(unquote(re.search(r'<pre id="found">(.*?)</pre>', shown)[1]))
        assert found["ticked"] == ticked
        places = [os.path.join(tmp_path, place) for place in PLACES]
        assert [os.fsdecode(unquote_to_bytes(urlsplit(link).path)) for link in found["links"]] == places
        assert found["all"] == names
        assert found["none"] == []
        assert found["border"] == [names[1]]
        assert found["volume"] == names[1:]
        assert found["open"] == [names[0], names[2]]
        assert found["count"] == "1 of 3 ticked, 2 shown"
        table = list(csv.DictReader(found["table"].splitlines()))
        assert [(row["case"], float(row["score"]), row["reviewed"]) for row in table] == [
            *((names[0], 100.0, "0"), (names[1], 3.5, "1"), (names[2], 0.5, "0"))
        ]
        assert re.search(r"<title>2 of 2 pictures, (\d+) wide", shown)


def _pixels(image: MetaTensor, label: MetaTensor) -> np.ndarray:
    return np.asarray(plane_picture(image, label)).astype(int)


def _colored(pixels: np.ndarray, number: int) -> np.ndarray:
    return (pixels == ImageColor.getrgb(COLORS[number - 1])).all(-1)


def _volume(shape, spacing=(1.0, 1.0, 1.0)) -> tuple[MetaTensor, MetaTensor]:
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    image = MetaTensor(torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)), affine=affine)
    return image, MetaTensor(torch.zeros(1, *shape, dtype=torch.uint8), affine=affine)


def test_every_plane_has_the_contour_in_millimetres():
    image, label = _volume((40, 40, 10), spacing=(1.0, 1.0, 4.0))
    label[:, 10:30, 15:25, 3:8] = 2  # 20, 10 and 20 mm
    edges = _colored(_pixels(image, label), 2)
    assert edges.shape == (SIZE, 3 * SIZE)
    for plane, ratio in enumerate((20 / 10, 20 / 20, 10 / 20)):
        rows, columns = np.nonzero(edges[:, plane * SIZE : (plane + 1) * SIZE])
        assert np.ptp(columns) / np.ptp(rows) == pytest.approx(ratio, rel=0.1)


def test_a_volume_looks_the_same_however_it_is_stored():
    image, label = _volume((20, 24, 18))
    label[:, 4:9, 12:20, 5:9], image.affine[:3, 3], label.affine[:3, 3] = 1, 7.0, 7.0
    turned = []
    for array in (image, label):
        affine = torch.zeros(4, 4, dtype=torch.float64)
        affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 1, -1, 1, 1
        affine[0, 3] = 19
        turned.append(MetaTensor(array.as_tensor().permute(0, 3, 1, 2).flip(2).contiguous(), affine=affine))
    np.testing.assert_array_equal(_pixels(image, label), _pixels(*turned))


def _photo(*shape) -> tuple[MetaTensor, MetaTensor]:
    return MetaTensor(torch.zeros(shape)), MetaTensor(torch.zeros(1, *shape[1:], dtype=torch.uint8))


def test_a_photograph_is_shown_whole_upright_and_in_its_colors():
    image, label = _photo(3, 400, 320)
    for channel, value in enumerate((201, 173, 154)):  # of skin, without much contrast
        image[channel] = value
    image[:, :, 240:] -= 20  # darker below
    label[:, 20:60, 20:60] = 1
    pixels = _pixels(image, label)
    assert pixels.shape == (320, 400, 3)
    edges = _colored(pixels, 1)
    np.testing.assert_array_equal(
        pixels[:240][~edges[:240]], np.broadcast_to([201, 173, 154], ((~edges[:240]).sum(), 3))
    )
    np.testing.assert_array_equal(pixels[245:], np.broadcast_to([181, 153, 134], (75, 400, 3)))
    rows, columns = np.nonzero(edges)
    assert {*rows} == {*columns} == {*range(20, 60)}


def test_a_large_photograph_is_made_smaller_with_all_that_is_in_it():
    image, label = _photo(3, 3000, 2000)
    image[0, 2700:] = 255  # red on the right
    label[:, 100:400, 100:400] = 1
    pixels = _pixels(image, label)
    assert pixels.shape == (384, PHOTO, 3)
    assert (pixels[:, 525:] == (255, 0, 0)).all()
    rows, columns = np.nonzero(_colored(pixels, 1))
    assert [np.ptp(rows), np.ptp(columns)] == pytest.approx([300 * PHOTO / 3000] * 2, abs=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_photograph_is_brightened(channels):
    image, label = _photo(channels, 300, 300)
    image[:, 150:] = 0.2  # of 255: 16 bits, most of them unused
    pixels = _pixels(image, label)
    assert (pixels[:, :140].max(), pixels[:, 160:].min()) == (0, 255)


@pytest.mark.parametrize("place", [2, 30, 58])
def test_half_of_a_slice_is_shown_around_a_prediction_of_a_few_voxels(place):
    image, label = _volume((60, 60, 60))
    label[:, place - 2 : place + 2, place - 2 : place + 2, place - 2 : place + 2] = 1
    edges = _colored(_pixels(image, label), 1)
    for plane in range(3):
        rows, columns = np.nonzero(edges[:, plane * SIZE : (plane + 1) * SIZE])
        assert [np.ptp(rows) + 1, np.ptp(columns) + 1] == pytest.approx([SIZE * 4 / 30] * 2, abs=2)


def test_an_empty_prediction_is_shown_in_the_middle_of_the_scan():
    image, label = _volume((20, 24, 18))
    pixels = _pixels(image, label)
    assert pixels.std() > 20
    assert not _colored(pixels, 1).any()
