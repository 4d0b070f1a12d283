//! Decides what a guest's words are worth. Pure: a console in, cells out.
//!
//! The numbers are those that the programs are known to allocate (tracer-user/tests/programs), as the system tests expect them on this machine.

use super::machine::Guest;
use super::results::{Cell, Outcome};
use serde_json::Value;

/// Share of allocations and frees that must have been seen.
const COVERAGE: f64 = 0.999;
/// One block of so many may have an unreadable stack. A read may not fault, and in one recording of some thirty one stack could not be read
/// (docs/decisions/0012-other-kernels.md). It is counted and shown; that it stays rare is what is tested.
const UNREADABLE: u64 = 10_000;
/// What `exact.py` keeps, by function: bytes and blocks. Blocks of pymalloc have the size of their class.
const EXACT: [(&str, u64, u64); 5] = [
    ("bytes_of_95", 128_000, 1000),
    ("bytes_of_479", 512_000, 1000),
    ("bytes_of_480", 513_000, 1000),
    ("bytearrays_of_1000", 1_001_000 + 64_000, 2000),
    ("half_dropped", 500 * 240, 500),
];
/// From 3.15 on a bytearray's buffer is a bytes object (Objects/bytearrayobject.c), with a header of 32 bytes.
const BYTES_HEADERS_FROM_3_15: (&str, u64) = ("bytearrays_of_1000", 32_000);
/// What `steps.py` keeps of what it was told while it was watched. An address is a number of 32 bytes, which is kept as well.
const ATTACHED: [(&str, u64, u64); 2] = [("keep", 700 * 240, 700), ("allocate", 100 * (2000 + 32), 200)];
/// What the four threads of `crowd.py` keep in `fill`: 3000 blocks of 144, 160, 176 and 192 bytes, and a list of them each.
const CROWD_BYTES: u64 = 3000 * (144 + 160 + 176 + 192) + 4 * 24_000;
const CROWD_BLOCKS: u64 = 4 * 3001;
/// List objects, the numbers that count, and what else is in use when a thread ends.
const CROWD_OTHER_BYTES: u64 = 1500;
const CROWD_OTHER_BLOCKS: u64 = 24;

/// The cells of a guest that has come up.
pub fn judge(guest: &Guest, console: &str) -> Vec<Cell> {
    let told: Vec<Value> = console
        .lines()
        .filter_map(|line| serde_json::from_str(line[line.find("VM {")? + 3..].trim()).ok())
        .collect();
    let about = |test: &str| told.iter().find(|value| value["test"] == test);
    let preemption = preemption(about("kernel"));
    let mut cells: Vec<Cell> = told.iter().filter_map(|value| cell(guest, value)).collect();
    for test in missing(guest, &told) {
        cells.push(Cell::of(
            guest,
            &test,
            Outcome::Failed(format!("it said nothing: {}", last_lines(console))),
        ));
    }
    for cell in &mut cells {
        if let Some(release) = about("kernel").and_then(|value| value["release"].as_str()) {
            cell.kernel = release.to_owned();
        }
        if guest.full_preemption && preemption != "full" {
            cell.outcome = Outcome::Skipped("this kernel's preemption cannot be chosen".to_owned());
        }
        cell.preemption.clone_from(&preemption);
    }
    cells
}

/// `none (voluntary) full` says that voluntary is in use.
fn preemption(kernel: Option<&Value>) -> String {
    let text = kernel.and_then(|value| value["preempt"].as_str()).unwrap_or_default();
    let chosen = text.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    chosen.map_or("fixed", |(chosen, _)| chosen).to_owned()
}

/// Tests that were asked for and never told anything.
fn missing(guest: &Guest, told: &[Value]) -> Vec<String> {
    let said = |name: &str| told.iter().any(|value| value["test"] == name);
    let tests = guest.tests();
    let asked = tests.split(',').map(|test| if test == "interpreters" { "interpreter" } else { test });
    asked.chain(["log", "end"]).filter(|test| !said(test)).map(str::to_owned).collect()
}

fn last_lines(console: &str) -> String {
    let lines: Vec<&str> = console.lines().filter(|line| !line.contains("VM {")).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}

/// The cell of one line; `None` for lines that are no test.
fn cell(guest: &Guest, value: &Value) -> Option<Cell> {
    let test = value["test"].as_str()?;
    if matches!(test, "kernel" | "end") {
        return None;
    }
    let mut cell = Cell::of(guest, test, Outcome::Passed);
    if let Some(refused) = value["refused"].as_str() {
        let line = refused.lines().find(|line| line.contains("not supported")).unwrap_or(refused);
        cell.outcome = Outcome::Skipped(line.trim().to_owned());
        return Some(cell);
    }
    cell.interpreter = interpreter(value);
    cell.coverage = coverage(value);
    cell.whole_stacks = whole_stacks(value);
    let verdict = match test {
        "programs" => programs(value),
        "log" => log(value),
        "killed" => killed(value),
        "interpreter" => ran(value),
        "usual" => usual(value),
        "attached" => recording(value, &ATTACHED).and_then(|()| nothing_left(value)),
        "stress" => recording(value, &[]).and_then(|()| crowd(value)),
        _ => recording(value, &exact_amounts(cell.interpreter.as_deref())),
    };
    let failed = value["failed"].as_str().map(str::to_owned).or(verdict.err());
    if let Some(reason) = failed {
        cell.outcome = Outcome::Failed(reason);
    }
    Some(cell)
}

/// What `exact.py` keeps with this interpreter.
fn exact_amounts(interpreter: Option<&str>) -> [(&'static str, u64, u64); 5] {
    let (name, more) = BYTES_HEADERS_FROM_3_15;
    let is_newer = interpreter.is_some_and(|version| version.starts_with("3.15."));
    EXACT.map(|(function, bytes, count)| match function == name && is_newer {
        true => (function, bytes + more, count),
        false => (function, bytes, count),
    })
}

fn interpreter(value: &Value) -> Option<String> {
    let recorded = value["live"]["processes"][0]["interpreter"].as_str();
    let printed = || value["printed"].as_str().filter(|_| value["test"] == "interpreter");
    recorded.or_else(printed).map(str::to_owned)
}

fn coverage(value: &Value) -> Option<(f64, f64)> {
    let coverage = &value["live"]["coverage"];
    Some((coverage["allocations"].as_f64()?, coverage["frees"].as_f64()?))
}

fn whole_stacks(value: &Value) -> Option<f64> {
    let blocks = value["stacks"]["blocks"].as_u64().filter(|blocks| *blocks > 0)?;
    let broken = value["stacks"]["broken_blocks"].as_u64()?;
    Some((blocks.saturating_sub(broken)) as f64 / blocks as f64)
}

type Verdict = Result<(), String>;

fn check(holds: bool, text: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(text()) }
}

fn log(value: &Value) -> Verdict {
    let bad = value["bad"].as_array();
    check(bad.is_some_and(Vec::is_empty), || format!("the kernel complains: {}", value["bad"]))
}

/// All programs were loaded when the command, which is no interpreter, came to its end.
fn programs(value: &Value) -> Verdict {
    let errors = value["errors"].as_str().unwrap_or_default();
    check(value["status"] == 0 && errors.contains("nothing was recorded"), || {
        format!("ended with {}: {errors}", value["status"])
    })
}

fn ran(value: &Value) -> Verdict {
    let version = value["version"].as_str().unwrap_or("?");
    let printed = value["printed"].as_str().unwrap_or_default();
    check(value["status"] == 0 && printed.starts_with(version), || {
        format!("it said `{printed}`: {}", value["errors"])
    })
}

fn nothing_left(value: &Value) -> Verdict {
    check(value["left"] == 0, || format!("{} bytes of code are still changed", value["left"]))
}

fn killed(value: &Value) -> Verdict {
    check(value["armed"].as_u64() > Some(0), || "no code was changed while it was armed".to_owned())?;
    nothing_left(value)?;
    check(value["status"].is_null(), || format!("the target ended with {}", value["status"]))
}

/// Within a budget: how much is seen depends on the machine.
fn usual(value: &Value) -> Verdict {
    let errors = value["errors"].as_str().unwrap_or_default();
    check(value["status"] == 0, || format!("ended with {}: {errors}", value["status"]))?;
    let report = &value["live"];
    check(report["error"].is_null(), || format!("no report: {}", report["error"]))?;
    check(errors.contains("live ") && errors.contains("wrote "), || format!("no summary: {errors}"))?;
    nothing_lost(report, value["stacks"]["blocks"].as_u64().unwrap_or(0) / UNREADABLE)
}

/// What holds for every recording, and amounts by function.
fn recording(value: &Value, amounts: &[(&str, u64, u64)]) -> Verdict {
    let errors = value["errors"].as_str().unwrap_or_default();
    check(value["status"] == 0, || format!("ended with {}: {errors}", value["status"]))?;
    let report = &value["live"];
    check(report["error"].is_null(), || format!("no report: {}", report["error"]))?;
    // A target that runs while its pools are read is counted at no single moment.
    let seen =
        coverage(value).is_some_and(|(allocations, frees)| allocations >= COVERAGE && frees >= COVERAGE);
    check(seen, || format!("coverage {}: {errors}", report["coverage"]))?;
    let blocks = value["stacks"]["blocks"].as_u64().unwrap_or(0);
    let unreadable = blocks / UNREADABLE;
    nothing_lost(report, unreadable)?;
    let broken = value["stacks"]["broken_blocks"].as_u64();
    check(blocks > 0 && broken.is_some_and(|broken| broken <= unreadable), || {
        format!("stacks are not whole: {}", value["stacks"])
    })?;
    for (function, bytes, count) in amounts {
        let found = amount(report, function);
        check(found == (*bytes, *count), || {
            format!("`{function}` keeps {found:?} bytes and blocks, expected {:?}", (bytes, count))
        })?;
    }
    Ok(())
}

/// A record that found the ring buffer full is sent again; everything else that is lost is lost.
fn nothing_lost(report: &Value, unreadable: u64) -> Verdict {
    let losses = report["losses"].as_object().ok_or("no losses in the report")?;
    let lost = losses.iter().find(|(name, number)| match name.as_str() {
        "ring_full" => false,
        "failed_reads" => number.as_u64().is_none_or(|number| number > unreadable),
        _ => number.as_u64() != Some(0),
    });
    check(lost.is_none() && !losses.is_empty(), || format!("lost: {}", report["losses"]))
}

fn crowd(value: &Value) -> Verdict {
    let (bytes, count) = amount(&value["live"], "fill");
    let right = (CROWD_BYTES..=CROWD_BYTES + CROWD_OTHER_BYTES).contains(&bytes)
        && (CROWD_BLOCKS..=CROWD_BLOCKS + CROWD_OTHER_BLOCKS).contains(&count);
    check(right, || {
        format!(
            "four threads keep {bytes} bytes in {count} blocks, expected {CROWD_BYTES} in {CROWD_BLOCKS} and little more"
        )
    })
}

fn amount(report: &Value, function: &str) -> (u64, u64) {
    let rows = report["rows"].as_array().into_iter().flatten();
    let of_it = rows.filter(|row| row["function"] == function);
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    of_it.fold((0, 0), |sum, row| (sum.0 + number(&row["bytes"]), sum.1 + number(&row["count"])))
}

#[cfg(test)]
mod tests {
    use super::super::machine::Architecture;
    use super::*;
    use serde_json::json;

    fn guest(full_preemption: bool) -> Guest {
        Guest { architecture: Architecture::X86_64, kernel: "6.12", full_preemption }
    }

    fn kernel(preempt: &str) -> Value {
        json!({"test": "kernel", "release": "6.12.107", "preempt": preempt})
    }

    fn exact() -> Value {
        let rows = EXACT
            .map(|(function, bytes, count)| json!({"function": function, "bytes": bytes, "count": count}));
        json!({
            "test": "exact", "status": 0, "errors": "",
            "live": {
                "coverage": {"allocations": 1.0, "frees": 0.9995}, "losses": {"ring_full": 3, "thinned": 0},
                "rows": rows, "processes": [{"interpreter": "3.11.2"}],
            },
            "stacks": {"stacks": 9, "blocks": 1000, "broken_blocks": 0},
        })
    }

    fn outcome_of(value: &Value) -> Outcome {
        cell(&guest(false), value).unwrap().outcome
    }

    fn console(values: &[Value]) -> String {
        values.iter().map(|value| format!("VM {value}\r\n")).collect()
    }

    #[test]
    fn a_right_recording_passes_and_keeps_its_figures() {
        let cell = cell(&guest(false), &exact()).unwrap();
        assert_eq!(cell.outcome, Outcome::Passed);
        assert_eq!(cell.coverage, Some((1.0, 0.9995)));
        assert_eq!(cell.whole_stacks, Some(1.0));
        assert_eq!(cell.interpreter.as_deref(), Some("3.11.2"));
    }

    #[test]
    fn bytearrays_have_a_header_from_3_15_on() {
        let mut value = exact();
        value["live"]["processes"][0]["interpreter"] = json!("3.15.2");
        assert!(matches!(outcome_of(&value), Outcome::Failed(_)));
        value["live"]["rows"][3]["bytes"] = json!(1_097_000);
        assert_eq!(outcome_of(&value), Outcome::Passed);
    }

    #[test]
    fn each_fault_of_a_recording_fails_it() {
        type Fault = fn(&mut Value);
        let faults: [(&str, Fault); 7] = [
            ("ended with 2", |value| value["status"] = json!(2)),
            ("coverage", |value| value["live"]["coverage"]["frees"] = json!(0.9989)),
            ("coverage", |value| value["live"]["coverage"] = json!({"unmeasured": "reason"})),
            ("lost", |value| value["live"]["losses"]["thinned"] = json!(1)),
            ("not whole", |value| value["stacks"]["broken_blocks"] = json!(1)),
            ("not whole", |value| value["stacks"] = json!({})),
            ("`bytes_of_480`", |value| value["live"]["rows"][2]["count"] = json!(999)),
        ];
        for (part, fault) in faults {
            let mut value = exact();
            fault(&mut value);
            let Outcome::Failed(reason) = outcome_of(&value) else { panic!("`{part}` passed") };
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn a_stack_in_ten_thousand_may_be_unreadable() {
        let with = |blocks: u64, broken: u64, reads: u64| {
            let mut value = exact();
            value["stacks"] = json!({"stacks": 9, "blocks": blocks, "broken_blocks": broken});
            value["live"]["losses"]["failed_reads"] = json!(reads);
            outcome_of(&value)
        };
        assert_eq!(with(20_000, 2, 2), Outcome::Passed);
        assert!(matches!(with(20_000, 3, 2), Outcome::Failed(_)));
        assert!(matches!(with(20_000, 2, 3), Outcome::Failed(_)));
        assert!(matches!(with(9_000, 1, 1), Outcome::Failed(_)));
    }

    #[test]
    fn programs_that_the_verifier_refuses_fail() {
        let programs = |status: u32, errors: &str| {
            outcome_of(&json!({"test": "programs", "status": status, "errors": errors}))
        };
        assert_eq!(programs(0, "nothing was recorded: no supported Python interpreter ran"), Outcome::Passed);
        assert!(matches!(programs(2, "the kernel refused `define`"), Outcome::Failed(_)));
        assert!(matches!(programs(0, ""), Outcome::Failed(_)));
    }

    #[test]
    fn a_killed_tracer_must_have_changed_code_and_left_none() {
        let killed = |armed: u32, left: u32| {
            outcome_of(&json!({"test": "killed", "armed": armed, "left": left, "status": null}))
        };
        assert_eq!(killed(217, 0), Outcome::Passed);
        assert!(matches!(killed(0, 0), Outcome::Failed(_)));
        assert!(matches!(killed(217, 1), Outcome::Failed(_)));
    }

    #[test]
    fn a_test_that_says_nothing_has_failed() {
        let end = [
            kernel("none (voluntary) full"),
            exact(),
            json!({"test": "log", "bad": []}),
            json!({"test": "end"}),
        ];
        let cells = judge(&guest(false), &console(&end));
        let failed: Vec<_> = cells
            .iter()
            .filter(|cell| matches!(cell.outcome, Outcome::Failed(_)))
            .map(|cell| &*cell.test)
            .collect();
        assert_eq!(failed, ["programs", "usual", "attached", "killed"]);
        assert!(cells.iter().all(|cell| cell.kernel == "6.12.107" && cell.preemption == "voluntary"));
    }

    #[test]
    fn preemption_that_was_not_had_is_no_result() {
        let cells = judge(&guest(true), &console(&[kernel("")]));
        assert!(!cells.is_empty());
        assert!(
            cells
                .iter()
                .all(|cell| matches!(cell.outcome, Outcome::Skipped(_)) && cell.preemption == "fixed")
        );
    }

    #[test]
    fn a_refused_interpreter_is_skipped() {
        let refused = outcome_of(&json!({"test": "exact-3.15", "refused": "not supported"}));
        assert_eq!(refused, Outcome::Skipped("not supported".to_owned()));
    }

    #[test]
    fn a_kernel_that_complains_fails() {
        assert!(matches!(outcome_of(&json!({"test": "log", "bad": ["WARNING: x"]})), Outcome::Failed(_)));
        assert!(matches!(outcome_of(&json!({"test": "log"})), Outcome::Failed(_)));
    }
}
