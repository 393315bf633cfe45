"""A cache that forgets what was not used for longest."""


class Cache:
    def __init__(self, size):
        self.size = size
        self.items = {}

    def get(self, key, default=None):
        return self.items.get(key, default)

    def put(self, key, value):
        self.items[key] = value
        if len(self.items) > self.size:
            del self.items[next(iter(self.items))]
