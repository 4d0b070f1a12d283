"""A bit of everything that programs do: imports, JSON, regular expressions, dicts, classes, exceptions, generators, text."""
import collections, csv, dataclasses, datetime, decimal, email.message, io, itertools, json, random, re, sys, xml.dom.minidom

random.seed(1)


@dataclasses.dataclass
class Point:
    x: float
    y: float
    tags: list = dataclasses.field(default_factory=list)

    def moved(self, by):
        return Point(self.x + by, self.y - by, [*self.tags, str(by)])


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b


def documents():
    rows = [{"id": i, "name": f"n{i}", "values": [i * 1.5, None, True], "deep": {"a": {"b": [i]}}} for i in range(300)]
    return [json.loads(json.dumps(rows)) for _ in range(15)]


def expressions():
    text = " ".join(f"key{i}=value-{i * 7}" for i in range(2000))
    found = dict(re.findall(r"(\w+)=([\w-]+)", text))
    return re.sub(r"\d+", lambda match: str(int(match[0]) + 1), text), found


def containers():
    numbers = [random.randrange(1 << 40) for _ in range(10_000)]
    counted = collections.Counter(number % 97 for number in numbers)
    groups = {key: list(group) for key, group in itertools.groupby(sorted(numbers), key=lambda n: n >> 34)}
    return counted, groups, set(numbers), tuple(numbers), collections.deque(numbers, maxlen=100)


def objects():
    points = [Point(i, -i) for i in range(3000)]
    return [point.moved(2.5) for point in points], [Slotted(i, str(i)) for i in range(3000)]


def failures():
    for number in range(3000):
        try:
            {}[number]
        except KeyError as error:
            str(error)


def numbers():
    decimal.getcontext().prec = 40
    total = sum((decimal.Decimal(i) / 7 for i in range(1000)), decimal.Decimal())
    return total, [2**i for i in range(600)], [datetime.datetime(2020, 1, 1) + datetime.timedelta(i) for i in range(2000)]


def texts():
    table = io.StringIO()
    csv.writer(table).writerows([i, str(i), i / 3] for i in range(3000))
    tree = xml.dom.minidom.parseString("<a>" + "<b c='d'>e</b>" * 500 + "</a>")
    return table.getvalue().split(","), tree.toxml().encode().decode("utf-8").upper()


def generators():
    def chain(depth):
        if depth:
            yield from chain(depth - 1)
            yield [depth] * 3

    return [list(chain(20)) for _ in range(100)]


kept = []
for _ in range(3):
    kept = [documents(), expressions(), containers(), objects(), failures(), numbers(), texts(), generators()]
    compile("x = [f(i) for i in range(10)]\n" * 100, "made", "exec")
