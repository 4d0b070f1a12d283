"""Runs inside a guest: records programs and says what came out, one JSON value a line. It judges nothing: the host does.

Every line begins with `VM ` so that the host finds it among what the kernel prints.
"""
import json, os, re, signal, subprocess, sys, time

TRACER = "/tests/alloctrace"
PYTHON = "/usr/bin/python3.11"
# Emulated processors are twenty times slower than real ones; whatever takes longer than this hangs.
HANGS = 400


def say(**values):
    values["uptime"] = float(open("/proc/uptime").read().split()[0])
    sys.stdout.write("VM " + json.dumps(values) + "\n")
    sys.stdout.flush()


def text(path):
    try:
        return open(path).read().strip()
    except OSError:
        return ""


def compile_imports(python):
    """Once and unwatched: compiling what `exact.py` imports is a third of the events of its first run on 3.11."""
    program = "import array, ctypes, sys, threading; print(sys.version.split()[0])"
    return subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, timeout=HANGS)


def report(profile, by, metric, top):
    command = [TRACER, "report", "--format", "json", "--by", by, "--metric", metric, "--top", str(top), profile]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr}


# What stands in a stack that is not whole; what else stands in place of a frame says that no Python function ran.
BROKEN = ("truncated", "unreadable", "not received", "not read", "other stacks", "not known", "unknown kind")


def stacks(profile):
    """How many stacks and blocks there are, and how many of them are not whole."""
    told = report(profile, "stack", "allocated", 1_000_000)
    rows = told.get("rows", [])
    broken = [row for row in rows if any(word in frame for frame in row["stack"] for word in BROKEN if " (" not in frame or "(the" in frame)]
    return {"stacks": len(rows), "blocks": sum(row["count"] for row in rows),
            "broken_blocks": sum(row["count"] for row in broken), "broken": [row["stack"] for row in broken[:5]]}


def outcome(name, profile, done, **more):
    say(test=name, status=done.returncode, errors=done.stderr[-3000:], printed=done.stdout[-2000:],
        live=report(profile, "function", "live", 60), stacks=stacks(profile), **more)


def record(name, *command, mode=("--mode", "exact")):
    profile = f"/tmp/{name}.pb.gz"
    done = subprocess.run([TRACER, "record", "-o", profile, *mode, "--", *command], capture_output=True, text=True, timeout=HANGS)
    return profile, done


def exact():
    profile, done = record("exact", PYTHON, "-I", "/tests/exact.py")
    outcome("exact", profile, done)


def usual():
    """As users record a command: within a budget, or exactly where the kernel has no windows."""
    profile, done = record("usual", PYTHON, "-I", "/tests/exact.py", mode=())
    outcome("usual", profile, done)


def programs():
    """Whether the kernel takes every program: with perf events all are loaded, also those that few interpreters need.

    The command is no interpreter: there is nothing to arm but its entry and its exit.
    """
    command = [TRACER, "record", "--perf-events", "-o", "/tmp/programs.pb.gz", "--", "/bin/busybox", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    say(test="programs", status=done.returncode, errors=done.stderr[-3000:])


class Steps:
    """A target that does what it is told."""

    def __init__(self):
        self.process = subprocess.Popen([PYTHON, "-I", "/tests/steps.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def do(self, statement):
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", statement


def attach(profile, pid):
    """A tracer of a running process, armed."""
    tracer = subprocess.Popen([TRACER, "record", "--mode", "exact", "-o", profile, "-p", str(pid)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said = ""
    for line in tracer.stderr:
        said += line
        if "Ctrl-C ends it" in line:
            return tracer, said
    raise RuntimeError(f"the tracer did not arm: {said}")


def changed_bytes(pid):
    """Bytes of mapped code that are not those of their files: breakpoints."""
    changed = 0
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in open(f"/proc/{pid}/maps"):
            found = re.match(r"(\w+)-(\w+) r-xp (\w+) \S+ \d+ +(/.*)", line)
            if found is None:
                continue
            start, end, offset = (int(part, 16) for part in found.groups()[:3])
            memory.seek(start)
            mapped = memory.read(end - start)
            with open(found[4], "rb") as file:
                file.seek(offset)
                original = file.read(end - start)
            # Most pages are equal; byte by byte all of them would take an emulated processor seconds.
            for page in range(0, len(original), 4096):
                one, other = mapped[page:page + 4096], original[page:page + 4096]
                if one[:len(other)] != other:
                    changed += sum(byte != was for byte, was in zip(one, other))
    return changed


def attached():
    target = Steps()
    target.do("keep(2000, 200)")
    target.do("before = [allocate(3000) for _ in range(100)]")
    tracer, said = attach("/tmp/attached.pb.gz", target.process.pid)
    target.do("drop(2000)")
    target.do("[release(address) for address in before]")
    target.do("more = [allocate(2000) for _ in range(100)]")
    target.do("keep(700, 200)")
    tracer.send_signal(signal.SIGINT)
    said += tracer.stderr.read()
    tracer.wait(HANGS)
    target.do("keep(1000, 200)")
    done = subprocess.CompletedProcess([], tracer.returncode, "", said)
    outcome("attached", "/tmp/attached.pb.gz", done, left=changed_bytes(target.process.pid))
    target.process.kill()


def killed():
    target = Steps()
    tracer, _ = attach("/tmp/killed.pb.gz", target.process.pid)
    armed = changed_bytes(target.process.pid)
    tracer.kill()
    tracer.wait(HANGS)
    # The kernel takes breakpoints away after the process is gone; perf events one after the other.
    left = changed_bytes(target.process.pid)
    for _ in range(HANGS):
        if left == 0:
            break
        time.sleep(0.5)
        left = changed_bytes(target.process.pid)
    target.do("keep(1000, 200)")
    say(test="killed", armed=armed, left=left, status=target.process.poll())
    target.process.kill()


def stress():
    """Four threads, their tracer and somebody else, on two processors."""
    hog = subprocess.Popen(["/bin/busybox", "sh", "-c", "while :; do :; done"])
    profile, done = record("stress", PYTHON, "-I", "/tests/crowd.py", "2")
    outcome("stress", profile, done, processors=os.cpu_count())
    hog.kill()


def interpreters():
    """Which interpreters run here, and what the tracer makes of each."""
    for version in ("3.11", "3.14", "3.15"):
        python = f"/usr/bin/python{version}"
        done = compile_imports(python)
        say(test="interpreter", version=version, status=done.returncode, printed=done.stdout.strip(), errors=done.stderr[-500:])
        if version != "3.11" and os.path.exists(TRACER):
            profile, done = record(version, python, "-I", "/tests/exact.py")
            if "not supported" in done.stderr:
                say(test=f"exact-{version}", refused=done.stderr[-500:])
            else:
                outcome(f"exact-{version}", profile, done)


def main():
    say(test="kernel", release=os.uname().release, version=os.uname().version, processors=os.cpu_count(),
        preempt=text("/sys/kernel/debug/sched/preempt"))
    compile_imports(PYTHON)
    # What has been asked for cannot be had on some kernels: then there is nothing to test.
    is_as_asked = "preempt=full" not in text("/proc/cmdline") or "(full)" in text("/sys/kernel/debug/sched/preempt")
    for name in sys.argv[1:] if is_as_asked else []:
        try:
            {"programs": programs, "exact": exact, "usual": usual, "attached": attached, "killed": killed, "stress": stress, "interpreters": interpreters}[name]()
        except Exception as error:
            say(test=name, failed=f"{type(error).__name__}: {error}")
    log = subprocess.run(["/bin/busybox", "dmesg"], capture_output=True, text=True).stdout
    bad = ("WARNING:", "BUG:", "Oops", "general protection", "detected stalls", "soft lockup", "stack guard", "Call Trace")
    say(test="log", bad=[line for line in log.splitlines() if any(word in line for word in bad)][:20])
    say(test="end")


main()
