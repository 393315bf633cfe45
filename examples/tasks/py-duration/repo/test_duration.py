import unittest

from duration import seconds


class SecondsTest(unittest.TestCase):
    def test_simple(self):
        self.assertEqual(seconds("45s"), 45)

    def test_mixed(self):
        self.assertEqual(seconds("1h30m"), 5400)


if __name__ == "__main__":
    unittest.main()
