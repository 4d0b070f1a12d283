//! Go's own pprof reads our files and finds the same totals: the oracle for the encoding.
//!
//! Without `go` the tests are reported as ignored; where `CI` is set they fail instead.

#[path = "output/fixture.rs"]
mod fixture;

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, ExitCode},
};

use alloctrace::profile::{Amount, FrameId, Metric, Profile, Sample, Unit, Values, combine, pprof};
use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

/// Our sample types, in the order that the file must have.
const SAMPLE_TYPES: [(&str, Metric, Unit); 8] = [
    ("alloc_objects", Metric::Allocated, Unit::Count),
    ("alloc_space", Metric::Allocated, Unit::Bytes),
    ("inuse_objects", Metric::Live, Unit::Count),
    ("inuse_space", Metric::Live, Unit::Bytes),
    ("peak_objects", Metric::Peak, Unit::Count),
    ("peak_space", Metric::Peak, Unit::Bytes),
    ("temporary_objects", Metric::Temporary, Unit::Count),
    ("temporary_space", Metric::Temporary, Unit::Bytes),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let has_go = Command::new("go").arg("version").output().is_ok_and(|output| output.status.success());
    let ignored = !has_go && std::env::var_os("CI").is_none();
    let trial = |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(ignored);
    let trials = vec![
        trial("raw_dump_has_every_type_label_and_total", raw),
        trial("estimates_are_labels_with_units", estimates),
        trial("top_agrees_for_every_sample_type", top),
        trial("default_sample_type_is_the_default_metric", default_sample_type),
        trial("hostile_names_are_read", hostile),
        trial("merged_profiles_open_again", merged),
        trial("sums_of_stretches_are_those_of_pprof", sums),
        trial("differences_of_snapshots_are_those_of_pprof", differences),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Output of `go tool pprof` on a profile; complaints are failures.
fn go_pprof(profile: &Profile, arguments: &[&str]) -> Result<String, Failed> {
    let folder = TempDir::new()?;
    let path = folder.path().join("profile.pb.gz");
    fs::write(&path, pprof::encode(profile)?)?;
    let mut command = Command::new("go");
    // No symbol server, no temporary files outside the folder.
    command.args(["tool", "pprof"]).args(arguments).arg(&path).env("PPROF_TMPDIR", folder.path());
    let output = command.output()?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !complaints.trim().is_empty() {
        return Err(format!("{}: {complaints}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn raw() -> Result<(), Failed> {
    let profile = fixture::example();
    let text = go_pprof(&profile, &["-raw"])?;
    let (types, rest) = text.split_once("Samples:\n").ok_or("no samples")?;
    if !types.contains("PeriodType: space bytes") || !types.contains("Duration: 2.5") {
        return Err(format!("period or duration: {types}").into());
    }
    let (names, samples) = rest.split_once('\n').ok_or("no sample types")?;
    let names: Vec<&str> = names.split_whitespace().map(|name| name.trim_end_matches("[dflt]")).collect();
    let expected = SAMPLE_TYPES.map(|(name, _, unit)| format!("{name}/{unit}"));
    if names != expected {
        return Err(format!("sample types: {names:?}").into());
    }
    let (samples, locations) = samples.split_once("Locations\n").ok_or("no locations")?;
    // A sample's first line is its values, a colon, and its locations; labels follow.
    let values = samples.lines().filter_map(|line| line.split_once(": ")).filter_map(|(values, _)| {
        values.split_whitespace().map(|value| value.parse::<u64>().ok()).collect::<Option<Vec<_>>>()
    });
    let sums = values.filter(|values| values.len() == 8).fold([0; 8], |mut sums, values| {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        sums
    });
    let totals = SAMPLE_TYPES.map(|(_, metric, unit)| unit.of(profile.total(metric)));
    if sums != totals {
        return Err(format!("{sums:?} instead of {totals:?}").into());
    }
    for expected in ["pid:[4711]", "thread:[4720]", "process:[1]", "domain:[pymalloc]"] {
        if !samples.contains(expected) {
            return Err(format!("no label {expected}: {samples}").into());
        }
    }
    let line = "get_lessons /srv/app/views.py:31 s=28";
    if locations.contains(line) { Ok(()) } else { Err(format!("no {line} in {locations}").into()) }
}

fn estimates() -> Result<(), Failed> {
    let profile = fixture::budget();
    let text = go_pprof(&profile, &["-raw"])?;
    for expected in [
        "growth_bytes_per_second:[12595 bytes]",
        "growth_at_least:[-95 bytes]",
        "live_age:[30000 milliseconds]",
    ] {
        if !text.contains(expected) {
            return Err(format!("no label {expected}: {text}").into());
        }
    }
    let text = go_pprof(&profile, &["-top", "-unit=B", "-sample_index=inuse_space"])?;
    let expected = format!("of {}B total", profile.total(Metric::Live).bytes);
    if !text.contains(&expected) {
        return Err(format!("no `{expected}` in {text}").into());
    }
    // What pprof itself writes again has lost nothing.
    let folder = TempDir::new()?;
    let (path, output) = (folder.path().join("profile.pb.gz"), folder.path().join("again.pb.gz"));
    fs::write(&path, pprof::encode(&profile)?)?;
    let mut command = Command::new("go");
    command.args(["tool", "pprof", "-proto", "-output"]).arg(&output).arg(&path);
    let run = command.env("PPROF_TMPDIR", folder.path()).output()?;
    if !run.status.success() {
        return Err(String::from_utf8_lossy(&run.stderr).into_owned().into());
    }
    let again = pprof::decode(&fs::read(&output)?)?;
    let of = |profile: &Profile| {
        let mut all: Vec<_> =
            profile.samples.iter().map(|sample| format!("{:?}", sample.estimated)).collect();
        all.sort_unstable();
        all
    };
    if of(&again) == of(&profile) { Ok(()) } else { Err(format!("{:?}", of(&again)).into()) }
}

fn top() -> Result<(), Failed> {
    let profile = fixture::example();
    for (name, metric, unit) in SAMPLE_TYPES {
        let total = unit.of(profile.total(metric));
        let (index, in_bytes) = (format!("-sample_index={name}"), unit == Unit::Bytes);
        let unit = if in_bytes { "-unit=B" } else { "-unit=minimum" };
        let text = go_pprof(&profile, &["-top", unit, &index])?;
        let expected = if in_bytes { format!("of {total}B total") } else { format!("of {total} total") };
        if !text.contains(&expected) {
            return Err(format!("{name}: no `{expected}` in {text}").into());
        }
        // Names must be as Python has them: pprof takes angle brackets for C++ templates if it may.
        if !text.contains("<module>") {
            return Err(format!("{name}: no `<module>` in {text}").into());
        }
    }
    Ok(())
}

fn default_sample_type() -> Result<(), Failed> {
    for (metric, expected) in
        [("live", "inuse_space"), ("peak", "peak_space"), ("temporary", "temporary_space")]
    {
        let mut profile = fixture::example();
        profile.recording.default_metric = metric.to_owned();
        let text = go_pprof(&profile, &["-top"])?;
        if !text.contains(&format!("Type: {expected}")) {
            return Err(format!("no {expected} in {text}").into());
        }
    }
    Ok(())
}

fn hostile() -> Result<(), Failed> {
    let profile = fixture::hostile();
    let text = go_pprof(&profile, &["-top", "-unit=B", "-sample_index=alloc_space"])?;
    let expected = format!("of {}B total", profile.total(Metric::Allocated).bytes);
    if text.contains(&expected) { Ok(()) } else { Err(format!("no {expected} in {text}").into()) }
}

/// pprof's own output is a profile that we open; merging keeps the sums.
fn merged() -> Result<(), Failed> {
    let profile = fixture::example();
    let folder = TempDir::new()?;
    let (path, output) = (folder.path().join("profile.pb.gz"), folder.path().join("merged.pb.gz"));
    fs::write(&path, pprof::encode(&profile)?)?;
    let mut command = Command::new("go");
    command.args(["tool", "pprof", "-proto", "-output"]).arg(&output).args([&path, &path]);
    let run = command.env("PPROF_TMPDIR", folder.path()).output()?;
    if !run.status.success() {
        return Err(String::from_utf8_lossy(&run.stderr).into_owned().into());
    }
    let merged = pprof::decode(&fs::read(&output)?)?;
    let (found, expected) = (merged.total(Metric::Peak).bytes, 2 * profile.total(Metric::Peak).bytes);
    if found == expected { Ok(()) } else { Err(format!("{found} instead of {expected}").into()) }
}

/// The example some time later: other frames first, more of everything, and a stack that is new.
fn later() -> Profile {
    let mut build = fixture::Builder::new();
    let main = build.process(4711, "python main.py --workers 1");
    let worker = build.process(4712, "python main.py --workers 1");
    let new = build.python("new_since", "/srv/app/new.py", 7);
    let module = build.python("<module>", "/srv/app/main.py", 12);
    build.sample(main, 4711, &[module, new], 64_000, 1_000);
    build.sample(worker, 4712, &[module, new], 32_000, 999);
    let (mut profile, example) = (build.build(), fixture::example());
    for sample in &example.samples {
        let frames = sample.stack.iter().map(|frame| {
            let frame = example.frames.get_index(frame.0 as usize).cloned();
            FrameId(frame.map_or(0, |frame| profile.frames.insert_full(frame).0 as u32))
        });
        let stack = frames.collect();
        // Twice and thrice as much, but for one stack that has done nothing.
        let times = profile.samples.len() as u64 % 3 + 1;
        let amount = |amount: Amount| Amount { bytes: amount.bytes * times, count: amount.count * times };
        let Values { allocated, live, peak, temporary } = sample.values;
        let values = Values {
            allocated: amount(allocated),
            live: amount(live),
            peak: amount(peak),
            temporary: amount(temporary),
        };
        profile.samples.push(Sample { stack, values, ..sample.clone() });
    }
    profile
}

/// What was allocated, by process, thread and stack, in words.
fn allocated(profile: &Profile) -> BTreeMap<String, Amount> {
    let mut sums: BTreeMap<String, Amount> = BTreeMap::new();
    for sample in &profile.samples {
        let frames = sample.stack.iter().filter_map(|frame| profile.frames.get_index(frame.0 as usize));
        let stack: Vec<String> = frames.map(|frame| format!("{}:{}", frame.function, frame.line)).collect();
        let pid = profile.processes.get(sample.process.0 as usize).map_or(0, |process| process.pid);
        let key = format!("{pid} {} {:?} {}", sample.thread, sample.domain, stack.join(";"));
        let sum = sums.entry(key).or_default();
        *sum = sum.plus(sample.values.allocated);
    }
    sums.retain(|_, sum| *sum != Amount::default());
    sums
}

/// What `go tool pprof` makes of two profiles.
fn of_two(one: &Profile, other: &Profile, flag: Option<&str>) -> Result<Profile, Failed> {
    let folder = TempDir::new()?;
    let [first, second, output] =
        ["one", "other", "output"].map(|name| folder.path().join(format!("{name}.pb.gz")));
    fs::write(&first, pprof::encode(one)?)?;
    fs::write(&second, pprof::encode(other)?)?;
    let mut command = Command::new("go");
    command.args(["tool", "pprof", "-proto", "-output"]).arg(&output).args(flag).args([&first, &second]);
    let run = command.env("PPROF_TMPDIR", folder.path()).output()?;
    if !run.status.success() {
        return Err(String::from_utf8_lossy(&run.stderr).into_owned().into());
    }
    Ok(pprof::decode(&fs::read(&output)?)?)
}

fn agree(ours: &Profile, theirs: &Profile) -> Result<(), Failed> {
    let (ours, theirs) = (allocated(ours), allocated(theirs));
    if ours == theirs && ours.len() >= 7 {
        Ok(())
    } else {
        Err(format!("{ours:#?} instead of {theirs:#?}").into())
    }
}

fn sums() -> Result<(), Failed> {
    let (one, other) = (fixture::example(), later());
    let ours = combine::merge([one.clone(), other.clone()]).ok_or("nothing")?;
    agree(&ours, &of_two(&one, &other, None)?)
}

fn differences() -> Result<(), Failed> {
    let (earlier, later) = (fixture::example(), later());
    agree(&later.since(&earlier), &of_two(&earlier, &later, Some("-base"))?)
}
