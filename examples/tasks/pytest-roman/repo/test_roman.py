from roman import roman


def test_adding():
    assert [roman(n) for n in (1, 2, 3, 6, 11, 16)] == ["I", "II", "III", "VI", "XI", "XVI"]
