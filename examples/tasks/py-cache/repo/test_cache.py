import unittest

from cache import Cache


class CacheTest(unittest.TestCase):
    def setUp(self):
        self.cache = Cache(2)
        self.cache.put("a", 1)
        self.cache.put("b", 2)

    def test_kept(self):
        self.assertEqual(self.cache.get("b"), 2)

    def test_size(self):
        self.cache.put("c", 3)
        self.assertEqual(len(self.cache.items), 2)


if __name__ == "__main__":
    unittest.main()
