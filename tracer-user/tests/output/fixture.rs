//! Profiles that tests are made of: a small realistic one, and one full of hostile names.

use alloctrace::profile::{
    Amount, Cost, Coverage, Domain, Estimated, Frame, FrameId, FrameKind, Growth, LiveBy, Losses, Process,
    ProcessIndex, Profile, Recording, Sample, Values, WindowSummary,
};

/// Builds a profile from frames and stacks.
pub struct Builder {
    profile: Profile,
}

impl Builder {
    pub fn new() -> Self {
        let recording = Recording {
            mode: "exact".to_owned(),
            seen_fraction: 1.0,
            start_nanoseconds: 1_700_000_000_123_456_789,
            duration_nanoseconds: 2_500_000_000,
            default_metric: "peak".to_owned(),
            coverage: Coverage::Measured {
                allocations: 0.9998,
                frees: 0.9997,
                uncertainty: 0.0,
                unmeasured_processes: 0,
            },
            live_bytes_error: 0,
            windows: None,
            losses: Losses { unresolved_frames: 2, ..Losses::default() },
            cost: Cost { target_percent: Some(31.0), tracer_cpu_percent: 0.4 },
            events: 123_456,
        };
        let frames = Default::default();
        Self { profile: Profile { recording, processes: Vec::new(), frames, samples: Vec::new() } }
    }

    pub fn process(&mut self, pid: u32, command: &str) -> ProcessIndex {
        let interpreter = "3.12.1".to_owned();
        let command = command.to_owned();
        self.profile.processes.push(Process { pid, command, interpreter, ..Process::default() });
        ProcessIndex(self.profile.processes.len() as u32 - 1)
    }

    pub fn frame(&mut self, kind: FrameKind, function: &str, file: Option<&str>, line: u32) -> FrameId {
        let (function, file) = (function.to_owned(), file.map(str::to_owned));
        let frame = Frame { kind, function, file, line, first_line: line.saturating_sub(3) };
        FrameId(self.profile.frames.insert_full(frame).0 as u32)
    }

    pub fn python(&mut self, function: &str, file: &str, line: u32) -> FrameId {
        self.frame(FrameKind::Python, function, Some(file), line)
    }

    pub fn native(&mut self, symbol: &str, object: &str) -> FrameId {
        self.frame(FrameKind::Native, symbol, Some(object), 0)
    }

    pub fn marker(&mut self, reason: &str) -> FrameId {
        self.frame(FrameKind::Marker, reason, None, 0)
    }

    /// `stack` is outermost first, as one writes it down. Of the bytes, half are live and a quarter temporary.
    pub fn sample(&mut self, process: ProcessIndex, thread: u32, stack: &[FrameId], bytes: u64, count: u64) {
        let part = |divisor| Amount { bytes: bytes / divisor, count: count / divisor };
        let values = Values { allocated: part(1), peak: part(1), live: part(2), temporary: part(4) };
        let domain = if count.is_multiple_of(2) { Domain::Pymalloc } else { Domain::Malloc };
        let stack = stack.iter().rev().copied().collect();
        self.profile.samples.push(Sample { process, thread, domain, stack, values, estimated: None });
    }

    pub fn build(self) -> Profile {
        self.profile
    }
}

/// A web application with a worker process, native frames, and memory that no Python frame asked for.
pub fn example() -> Profile {
    let mut build = Builder::new();
    let main = build.process(4711, "python main.py --workers 1");
    let worker = build.process(4712, "python main.py --workers 1");
    let module = build.python("<module>", "/srv/app/main.py", 12);
    let serve = build.python("serve", "/srv/app/main.py", 48);
    let dispatch = build.python("Application.dispatch", "/srv/app/views.py", 20);
    let lessons = build.python("get_lessons", "/srv/app/views.py", 31);
    let comprehension = build.python("get_lessons.<locals>.<listcomp>", "/srv/app/views.py", 31);
    let query = build.python(
        "QuerySet.iterator",
        "/opt/venv/lib/python3.12/site-packages/django/db/models/query.py",
        516,
    );
    let decode = build.python("JSONDecoder.raw_decode", "/usr/lib/python3.12/json/decoder.py", 353);
    let loads = build.python("loads", "/usr/lib/python3.12/json/__init__.py", 346);
    let import = build.python("_call_with_frames_removed", "<frozen importlib._bootstrap>", 488);
    let scan = build.native("scan_once_unicode", "/usr/lib/python3.12/lib-dynload/_json.so");
    let start_up = build.marker("interpreter start-up");
    build.sample(main, 4711, &[module, serve, dispatch, lessons, comprehension], 6_900_000, 10_050);
    build.sample(main, 4711, &[module, serve, dispatch, lessons, query], 4_200_000, 3_200);
    build.sample(main, 4720, &[module, serve, dispatch, loads, decode, scan], 2_750_000, 41_001);
    build.sample(main, 4720, &[module, serve, dispatch, loads], 120_000, 3);
    build.sample(main, 4711, &[module, import], 800_000, 9_001);
    build.sample(main, 4711, &[start_up], 350_000, 2_500);
    build.sample(worker, 4712, &[module, serve, dispatch, loads, decode, scan], 1_750_000, 21_001);
    build.sample(worker, 4712, &[start_up], 340_000, 2_400);
    build.build()
}

/// The example as budget mode sees a process that runs for two minutes: `get_lessons` leaks, `loads` swings, one stack was seen
/// by too few windows.
pub fn budget() -> Profile {
    let mut profile = example();
    let recording = &mut profile.recording;
    (recording.mode, recording.default_metric) = ("budget".to_owned(), "live".to_owned());
    (recording.seen_fraction, recording.duration_nanoseconds) = (0.0123, 121_000_000_000);
    recording.coverage = Coverage::Unmeasured { unmeasured: "blocks are counted in windows only".to_owned() };
    recording.losses = Losses::default();
    recording.cost = Cost { target_percent: Some(0.8), tracer_cpu_percent: 0.4 };
    recording.windows = Some(WindowSummary {
        opened: 80,
        full: 43,
        tails: 41,
        knows_live: true,
        live_by: LiveBy::Survivors,
        survivors: 5210,
        looks: 118,
        allocated_bytes_error: Some(1_100_000),
        ..WindowSummary::default()
    });
    let grows =
        |bytes_per_second, at_least, likelihood_ppm| Growth { bytes_per_second, at_least, likelihood_ppm };
    let growth = [
        Some(grows(12_595, 9_318, 999_912)),
        Some(grows(210, -95, 871_000)),
        Some(grows(-512, -2_048, 420_000)),
        None,
        Some(grows(40, 3, 991_200)),
    ];
    for (number, sample) in profile.samples.iter_mut().enumerate() {
        let Values { allocated, live, .. } = sample.values;
        // Windows saw too little of one stack of each size.
        let few = matches!(number, 3 | 5);
        let error = |bytes: u64, part| (!few).then_some(bytes / part);
        (sample.values.peak, sample.values.temporary) = Default::default();
        sample.estimated = Some(Box::new(Estimated {
            allocated_bytes_error: error(allocated.bytes, 8),
            live_bytes_error: error(live.bytes, 5),
            retained_bytes_per_second: Some(live.bytes / 121),
            retained_error: error(live.bytes / 121, 6),
            age_milliseconds: Some(30_000 + 1_000 * number as u64),
            growth: growth.get(number).copied().flatten(),
        }));
    }
    profile
}

/// Every name is made to break some format.
pub fn hostile() -> Profile {
    let mut build = Builder::new();
    let command = "python -c 'import x;\nprint(1)' \x1b[31m# </title><script>alert(1)</script>";
    let process = build.process(99, command);
    let comment = build.process(100, "# comment");
    let names = hostile_names();
    for (index, name) in (1..).zip(&names) {
        let python = build.python(name, &format!("/srv/{name}.py"), index);
        let native = build.native(name, &format!("/lib/{name}.so"));
        let marker = build.marker(name);
        let bytes = u64::from(index) * 1000;
        build.sample(process, 99, &[python, native], bytes, 10);
        build.sample(comment, 100, &[python], bytes, 7);
        build.sample(process, 99, &[marker], bytes, 3);
    }
    build.build()
}

pub fn hostile_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "",
        " ",
        "semi;colon",
        "new\nline",
        "carriage\rreturn",
        "tab\there",
        "trailing 12",
        "trailing 12 34",
        "\x1b]0;title\x07\x1b[2J",
        "\u{9b}31m",
        "right\u{202e}left",
        "</title></text><script>alert(1)</script>",
        "a\"b'c&d<e>f",
        "quote\"comma,",
        "=HYPERLINK(\"http://example.com\")",
        "# comment",
        "null\0byte",
        "\u{fffe}\u{ffff}",
        "数据.加载",
        "😀",
        "_[k]",
        "-",
        "--",
        "(paren (1,234 bytes, 5%)",
        "back\\slash",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push("long ".repeat(2000));
    names
}
