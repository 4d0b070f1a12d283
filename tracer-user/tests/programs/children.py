"""Children of every kind: `children.py KIND NUMBER FOLDER`.

Each child says its number on standard output, waits until FOLDER has a file `go`, holds 50 blocks of its own, and then waits for a
file `end`.
"""
import multiprocessing, os, subprocess, sys, time


def wait_for(folder, name):
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.01)


def hold(number):
    return [bytes(100_000) for _ in range(number)]


def child(folder):
    os.write(1, b"%d\n" % os.getpid())
    wait_for(folder, "go")
    kept = hold(50)
    with open(os.path.join(folder, "held-%d" % os.getpid()), "w"):
        pass
    wait_for(folder, "end")
    return len(kept)


def forked(work, *arguments):
    pid = os.fork()
    if pid == 0:
        work(*arguments)
        os._exit(0)
    return pid


def grandchildren(number, folder):
    for pid in [forked(child, folder) for _ in range(number)]:
        os.waitpid(pid, 0)


def main(kind, number, folder):
    if kind == "fork":
        grandchildren(number, folder)
    elif kind == "grandchild":
        os.waitpid(forked(grandchildren, number, folder), 0)
    elif kind == "subprocess":
        command = [sys.executable, "-I", __file__, "child", "1", folder]
        for process in [subprocess.Popen(command) for _ in range(number)]:
            process.wait()
    elif kind == "child":
        child(folder)
    else:
        context = multiprocessing.get_context(kind)
        processes = [context.Process(target=child, args=(folder,)) for _ in range(number)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
