//! Where an allocation was: stacks of every shape, very deep ones, and those of many functions that are all new.

use std::process::Command;

use alloctrace::profile::{Domain, FrameKind, Metric};
use anyhow::{Result, ensure};

use crate::asked::{Asked, amount};
use crate::machine::Interpreter;
use crate::support::{Running, folder, interrupt, load, record_program, tracer};
use crate::{Test, each, one};

pub const TESTS: &[Test] = &[
    each("stacks::shapes", shapes),
    each("stacks::deep", deep),
    each("stacks::code_at_one_address", code_at_one_address),
    each("stacks::sixty_new_functions_in_one_stack", sixty_new_functions_in_one_stack),
    one("stacks::a_deep_recursion", a_deep_recursion),
];

const NONE: [&str; 0] = [];

/// Stacks end, outermost first, in these names.
const STACKS: &[(u64, &[&str])] = &[
    (2100, &["<module>", "outer_generator", "a_generator", "keep"]),
    (2200, &["drives", "outer_coroutine", "a_coroutine", "keep"]),
    (2250, &["drives", "an_async_generator", "keep"]),
    (2300, &["<module>", "a_key", "keep"]),
    (2400, &["sub", "a_callback", "keep"]),
    (2500, &["<module>", "<lambda>", "keep"]),
    (2600, &["<module>", "naïve_日本語_𐐷", "keep"]),
    (2700, &["<module>", "Klasse.method", "keep"]),
    (2800, &["<module>", "Klasse.a_property", "keep"]),
    (2900, &["<module>", "Klasse.__eq__", "keep"]),
    (3000, &["<module>", "Klasse.__del__", "keep"]),
    (3100, &["a_comprehension", "keep"]),
    (3200, &["<module>", "decorated.<locals>.wrapper", "a_decorated", "keep"]),
    (3300, &["<module>", "<module>", "made", "keep"]),
    (3400, &["<module>", "<lambda>", "keep"]),
    (3500, &["<module>", "<lambda>", "keep"]),
];

fn shapes(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "shapes.py", &NONE, &[])?;
    let asked = Asked(&profile);
    let plain = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    for (size, expected) in STACKS {
        let mut found = Vec::new();
        for sample in profile.samples.iter().filter(|sample| sample.domain == Domain::Malloc) {
            let live = sample.values.live;
            if asked.innermost(sample) == "keep" && live == amount(size + 33, 1) {
                let mut names: Vec<String> =
                    asked.frames(sample).map(|frame| frame.function.clone()).collect();
                names.reverse();
                names.retain(|name| !name.contains("<listcomp>"));
                found.push(names);
            }
        }
        let [stack] = found.as_slice() else {
            anyhow::bail!("{} stacks keep {size} bytes: {found:?}", found.len())
        };
        // Before 3.11 code objects know no qualified name.
        let expected: Vec<String> = if interpreter.minor >= 11 {
            expected.iter().map(ToString::to_string).collect()
        } else {
            expected.iter().map(|name| plain(name)).collect()
        };
        ensure!(stack.ends_with(&expected), "{size} bytes: {stack:?} does not end in {expected:?}");
    }
    let (allocations, frees) = asked.coverage()?;
    ensure!(allocations >= 0.999 && frees >= 0.999, "coverage {allocations}, {frees}");
    let nameless = asked.frames_without_a_line();
    let all_resolved = profile.recording.losses.unresolved_frames == 0;
    ensure!(all_resolved || nameless.is_empty(), "frames without a line: {nameless:?}");
    Ok(())
}

/// A stack that is too deep says so, and its innermost frames are right; one that is not is whole.
fn deep(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "shapes.py", &NONE, &[])?;
    let asked = Asked(&profile);
    let mut depths = Vec::new();
    for sample in &profile.samples {
        let frames: Vec<_> = asked.frames(sample).collect();
        let is_ours = sample.values.live == amount(2033, 1) && asked.innermost(sample) == "keep";
        if !is_ours || sample.domain != Domain::Malloc {
            continue;
        }
        let recursive = frames.iter().filter(|frame| frame.function == "recursive").count();
        let marker =
            frames.last().filter(|frame| frame.kind == FrameKind::Marker).map(|frame| frame.function.clone());
        depths.push((recursive, marker));
    }
    depths.sort();
    let [(21, None), (cut, Some(marker))] = depths.as_slice() else { anyhow::bail!("{depths:?}") };
    ensure!(*cut >= 127 && marker.contains("truncated"), "{cut}: {marker}");
    ensure!(profile.recording.losses.truncated_stacks > 0, "truncation is not counted");
    Ok(())
}

/// Functions that are made and dropped one after the other, all at the same few addresses: each has its own name.
fn code_at_one_address(interpreter: &Interpreter) -> Result<()> {
    let (profile, _) = record_program(interpreter, "one_address.py", &NONE, &[])?;
    let asked = Asked(&profile);
    for number in 0..200 {
        let name = format!("made_{number}");
        let kept = asked.function(Metric::Live, Domain::Malloc, &name);
        ensure!(kept == amount(633 + number, 1), "{name}: {kept:?}");
    }
    Ok(())
}

/// Waits, then allocates once below functions of which none was seen before.
const SIXTY: &str = "
import sys
source = ['def f0():\\n    return bytes(95)']
source += [f'def f{n}():\\n    return f{n - 1}()' for n in range(1, 60)]
exec('\\n'.join(source))
print('ready', flush=True)
sys.stdin.readline()
kept = f59()
print('well', flush=True)
sys.stdin.readline()
";

/// More than one event can send up: the kernel allows 33 tail calls in a row. Their event comes once.
fn sixty_new_functions_in_one_stack(interpreter: &Interpreter) -> Result<()> {
    let mut command = Command::new(&interpreter.python);
    command.args(["-c", SIXTY]);
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "ready");
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    running.write("go\n")?;
    ensure!(running.line()? == "well");
    interrupt(tracing)?.succeeded()?;
    let profile = load(&output)?;
    let asked = Asked(&profile);
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "f0");
    ensure!(kept == amount(128, 1), "{kept:?}, {:?}", asked.markers());
    let names: Vec<String> = (0..60).rev().map(|number| format!("f{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    ensure!(asked.has_stack(&names), "not the whole stack");
    asked.has_lost_nothing()
}

/// Waits, then allocates below more frames than are ever sent; each allocation's stack is new.
const DEEP: &str = "
import sys
sys.setrecursionlimit(20_000)
source = ['def leaf(kept):'] + ['    kept.append(bytes(95))'] * 1000
exec('\\n'.join(source))
def descend(levels, kept):
    return descend(levels - 1, kept) if levels else leaf(kept)
print('ready', flush=True)
sys.stdin.readline()
kept = []
descend(9_000, kept)
print('well', flush=True)
sys.stdin.readline()
";

/// Who looks at every frame of such a stack, each time that one is new, takes the target's time: 10 s here, where it takes 0.1 s to look at those that are
/// sent. No time is asserted; a tracer that does it hangs.
fn a_deep_recursion(interpreter: &Interpreter) -> Result<()> {
    let mut command = Command::new(&interpreter.python);
    command.args(["-c", DEEP]);
    let mut running = Running::start(command)?;
    ensure!(running.line()? == "ready");
    let folder = folder()?;
    let output = folder.path().join("x.pb.gz");
    let tracing = tracer(&output, &[running.id()], &[])?;
    running.write("go\n")?;
    ensure!(running.line()? == "well");
    interrupt(tracing)?.succeeded()?;
    let profile = load(&output)?;
    let asked = Asked(&profile);
    let kept = asked.function(Metric::Live, Domain::Pymalloc, "leaf");
    ensure!(kept == amount(1000 * 128, 1000), "{kept:?}, {:?}", asked.markers());
    let losses = &profile.recording.losses;
    ensure!(losses.truncated_stacks >= 1000 && losses.ring_full == 0, "{losses:?}");
    Ok(())
}
