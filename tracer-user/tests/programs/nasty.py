"""A hundred thousand distinct stacks over ten thousand code objects with long names, and three million live blocks."""
import os

print("started", flush=True)
kept = []


def many_stacks():
    functions = []
    for number in range(10_000):
        text = f"def a_function_with_quite_a_long_name_as_they_are_generated_by_some_frameworks_{number}(*rest):\n" + "    x = 1\n" * (number % 50) + "    return rest[0](*rest[1:])\n"
        space = {}
        exec(compile(text, f"/srv/application/some/deep/folder/of/a/package/module_{number % 700}.py", "exec"), space)
        functions.append(space.popitem()[1])

    def leaf(*_):
        kept.append(bytes(600))

    for first in range(10_000):
        for second in range(10):
            functions[first](functions[(first * 7 + second * 1013) % 10_000], leaf)


def many_blocks():
    blocks = [None] * 3_000_000
    for place in range(3_000_000):
        blocks[place] = b"%d" % 7 + b"0123456"
    kept.append(blocks)


many_stacks()
many_blocks()
os._exit(0)
