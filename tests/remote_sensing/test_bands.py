import pytest

from maskwright.remote_sensing.bands import S1, S2_L1C, S2_L2A, canonical, names_for


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("B02", "B2"), ("b8a", "B8A"), ("B08A", "B8A"), ("band 11", "B11"), ("Band_4", "B4"), ("T32UNB_20200101_B12", "B12"),
        ("S1A_IW_GRDH_VV", "VV"), ("vh", "VH"), ("Gamma0_VV", "VV"),
        ("B13", None), ("B0", None), ("AB2", None), ("elevation", None), ("", None), ("NAVVY", None), ("XVV", None),
    ],
)  # fmt: skip
def test_spellings(text, name):
    assert canonical(text) == name


def test_names_of_files():
    assert names_for([None] * 13, 13) == S2_L1C
    assert names_for([None] * 12, 12) == S2_L2A
    assert names_for(("bands", "bands"), 2) == S1
    assert names_for(("VH", "VV"), 2) == ("VH", "VV"), "what a file says comes first"
    assert names_for(("Sigma0_VV", "Sigma0_VH", "angle"), 3) == ("VV", "VH", "angle")
    assert names_for((None, "red", None), 3) == ("band 1", "band 2", "band 3")
    assert "B10" not in S2_L2A
    assert len(S2_L2A) == 12
