import unittest

from money import split


class SplitTest(unittest.TestCase):
    def test_even(self):
        self.assertEqual(split(9, 3), [3, 3, 3])

    def test_one_part(self):
        self.assertEqual(split(7, 1), [7])


if __name__ == "__main__":
    unittest.main()
