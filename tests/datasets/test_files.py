from m3po_dagster.datasets.files import files_of, one_file


def test_a_folder_s_files_are_those_of_the_suffix_in_order_of_their_names(tmp_path):
    for name in ("10.tar", "2.TAR", "1.tar", ".hidden.tar", "1.tar.part", "tar", "readme.md"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "link.tar").symlink_to(tmp_path / "readme.md")
    assert [path.name for path in files_of(tmp_path, (".tar",))] == ["1.tar", "10.tar", "2.TAR", "link.tar"]


def test_a_file_is_taken_whatever_its_name(tmp_path):
    (tmp_path / "records").write_bytes(b"")
    assert files_of(tmp_path / "records", (".tar",)) == one_file(tmp_path / "records") == [tmp_path / "records"]
