"""Readers of a person's own files, against files that are written here."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from nedm_ppl import data


def write(folder, name, text):
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_table_has_its_columns_and_what_is_missing(tmp_path, name, comma):
    table = data.read_table(
        write(tmp_path, name, comma.join(["a", "b"]) + "\n" + comma.join(["1", ""]) + "\n2,\n".replace(",", comma))
    )
    assert table.columns == ("a", "b")
    np.testing.assert_array_equal(table.values, [[1.0, np.nan], [2.0, np.nan]])
    assert table.labels is None


def test_a_label_column_is_taken_out(tmp_path):
    table = data.read_table(write(tmp_path, "a.csv", "x,kind,y\n1,cat,2\n3,dog,4\n"), label="kind")
    assert table.columns == ("x", "y") and list(table.labels) == ["cat", "dog"]
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a,b\n", "must have rows below its header"),
        ("1.0,2.0\n3,4\n", "must begin with a header"),
        ("a,b\n1,2\n3,4,5\n", "rows that are equally long; Expected 2 fields in line 3, saw 3"),
        ("a,b\n1,2,3\n3,4,5\n", "longer than its header"),
        ("a,b\n1,2\n3,four\n", "column 'b' of .* must hold numbers; line 3 has 'four'"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_sentence(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as error:
        data.read_table(write(tmp_path, "a.csv", text))
    assert "\n" not in str(error.value)


def test_what_is_no_file_or_no_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is none at"):
        data.read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="a kind that can be read"):
        data.read_table(write(tmp_path, "a.xlsx", ""))
    table = write(tmp_path, "a.csv", "a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"label must be one of the columns a, b; got 'c'"):
        data.read_table(table, label="c")
    with pytest.raises(ValueError, match="line 3 has nothing"):
        data.read_table(write(tmp_path, "b.csv", "a,b\n1,x\n2,\n"), label="b")
    with pytest.raises(ValueError, match="none beside the label"):
        data.read_table(write(tmp_path, "c.csv", "a\n1\n"), label="a")
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(ImportError, match=r"nedm-ppl\[parquet\]"):
            data.read_table(write(tmp_path, "a.parquet", ""))


def test_arrays_of_numpy_are_read_and_nothing_is_unpickled(tmp_path):
    values = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", values)
    for name in ("a.npy", "a.npz"):
        np.testing.assert_array_equal(data.read_table(tmp_path / name).values, values)
    np.save(tmp_path / "b.npy", np.array([object()]), allow_pickle=True)
    np.savez(tmp_path / "b.npz", a=values, b=values)
    for name, said in (
        ("b.npy", "holds an array of numbers; it is none"),
        ("b.npz", "must hold one array, .* it holds 2"),
    ):
        with pytest.raises(ValueError, match=said):
            data.read_table(tmp_path / name)
    with pytest.raises(ValueError, match="must be names of columns"):
        data.read_table(tmp_path / "a.npy", label="x")


def pictures(folder, **modes):
    rng = np.random.default_rng(0)
    for name, mode in modes.items():
        gray = rng.integers(0, 256, (3, 4), np.uint8)
        Image.fromarray(gray).convert(mode).save(folder / f"{name}.png")
    return folder


def test_gray_images_stay_gray_in_the_order_of_their_names(tmp_path):
    pictures(tmp_path, b="L", a="LA", c="1")
    images = data.read_images(tmp_path)
    assert images.shape == (3, 3, 4)
    np.testing.assert_array_equal(images[1], np.asarray(Image.open(tmp_path / "b.png")))


def test_one_image_in_color_makes_all_be_read_in_color(tmp_path):
    images = data.read_images(pictures(tmp_path, a="L", b="RGB", c="P", d="RGBA"))
    assert images.shape == (4, 3, 4, 3)
    np.testing.assert_array_equal(images[0][..., 0], images[0][..., 2])


def test_sixteen_bits_are_kept(tmp_path):
    deep = np.array([[0, 65_535], [300, 4]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_array_equal(data.read_images(tmp_path)[0], deep)


def test_files_that_are_no_images_are_left_out_with_their_count_or_refused(tmp_path):
    write(pictures(tmp_path, a="L"), "notes.txt", "no image")
    with pytest.warns(data.SkippedFilesWarning, match=r"1 of 2 files .*notes.txt"):
        assert len(data.read_images(tmp_path)) == 1
    with pytest.raises(ValueError, match=r"notes.txt must be an image"):
        data.read_images(tmp_path, strict=True)


def test_folders_of_other_things_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold images; it holds 0 other files"):
        data.read_images(tmp_path)
    with pytest.raises(ValueError, match="there is none at"):
        data.read_images(tmp_path / "none")
    pictures(tmp_path, a="L", b="L")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"2 are 3 x 4, and c.png is 5 x 5"):
        data.read_images(tmp_path)
