"""What an attribute costs: the same points with a dictionary each, plain, and with slots."""

NUMBER = 120_000


class Loose:
    def __init__(self, x, y):
        self.__dict__.update(x=x, y=y)


class Plain:
    def __init__(self, x, y):
        self.x = x
        self.y = y


class Slotted:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x = x
        self.y = y


def loose():
    return [Loose(n, n) for n in range(NUMBER)]


def plain():
    return [Plain(n, n) for n in range(NUMBER)]


def slotted():
    return [Slotted(n, n) for n in range(NUMBER)]


def main():
    kept = [loose(), plain(), slotted()]
    print(sum(map(len, kept)), "points")


main()
