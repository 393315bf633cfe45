from slugs import slug


def test_plain():
    assert slug("Hello World") == "hello-world"


def test_empty():
    assert slug("") == ""
