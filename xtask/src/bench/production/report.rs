//! What the pairs of each tool say: the table, and what must hold and does not.

use super::Run;
use super::pairs::{Estimate, median};
use super::tool::Tool;

/// Two runs that followed each other.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    pub without: Run,
    pub with: Run,
}

/// One tool's pairs, or why there are none.
pub struct Row {
    pub tool: Tool,
    pub missing: Option<String>,
    pub pairs: Vec<Pair>,
}

impl Row {
    pub fn new(tool: Tool, missing: Option<String>) -> Self {
        Self { tool, missing, pairs: Vec::new() }
    }

    fn estimate(&self, difference: impl Fn(&Pair) -> f64) -> Estimate {
        Estimate::of(&self.pairs.iter().map(difference).collect::<Vec<_>>())
    }

    /// Throughput lost, in percent of what the service does without the tool.
    fn lost_percent(&self) -> Estimate {
        self.estimate(|pair| {
            100.0 * (1.0 - pair.with.figures.requests_per_second / pair.without.figures.requests_per_second)
        })
    }

    /// What the 99th percentile of latency is longer by, in percent.
    fn p99_percent(&self) -> Estimate {
        self.estimate(|pair| 100.0 * (pair.with.figures.p99_ms / pair.without.figures.p99_ms - 1.0))
    }

    /// What the longest stall of a run is longer by.
    fn stall_ms(&self) -> Estimate {
        self.estimate(|pair| pair.with.stall_ms - pair.without.stall_ms)
    }

    /// The same of switching on and off, beside two times of nothing being switched.
    fn switching_ms(&self) -> Estimate {
        self.estimate(|pair| pair.with.switching_ms - pair.without.switching_ms)
    }
}

/// What a tool must keep.
struct Bound {
    tool: Tool,
    lost_percent: f64,
    p99_percent: f64,
    stall_ms: f64,
}

/// The aims of budget and growth mode; growth mode has the same latency to keep.
const BOUNDS: [Bound; 2] = [
    Bound { tool: Tool::Budget, lost_percent: 1.0, p99_percent: 5.0, stall_ms: 10.0 },
    Bound { tool: Tool::Growth, lost_percent: 0.5, p99_percent: 5.0, stall_ms: 10.0 },
];

/// What should hold and does not, of the tools that were asked for.
pub fn faults(rows: &[Row]) -> Vec<String> {
    let bounded =
        BOUNDS.iter().filter_map(|bound| Some((bound, rows.iter().find(|row| row.tool == bound.tool)?)));
    bounded.flat_map(|(bound, row)| faults_of(bound, row)).collect()
}

fn faults_of(bound: &Bound, row: &Row) -> Vec<String> {
    let name = row.tool.label();
    if let Some(reason) = &row.missing {
        return vec![format!("{name} was not measured: {reason}")];
    }
    let stall = row.stall_ms().median.max(row.switching_ms().median);
    let figures = [
        ("of throughput lost", row.lost_percent().median, bound.lost_percent, "%"),
        ("more at the 99th percentile", row.p99_percent().median, bound.p99_percent, "%"),
        ("of stall", stall, bound.stall_ms, "ms"),
    ];
    // What is no number does not hold either.
    let broken = figures.into_iter().filter(|(_, figure, bound, _)| figure.is_nan() || figure > bound);
    broken
        .map(|(what, figure, bound, unit)| {
            format!("{name}: {figure:.2} {unit} {what}; at most {bound} {unit} is allowed")
        })
        .collect()
}

/// The table.
pub fn text(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.tool.label().len()).max().unwrap_or(0);
    let titles = [
        "requests/s",
        "p50 ms",
        "throughput lost, %",
        "p99 longer by, %",
        "stall longer by, ms",
        "switching, ms",
    ];
    let mut lines = vec![line("", width, &titles.map(str::to_owned))];
    if let Some(cells) = untraced(rows) {
        lines.push(line("untraced", width, &cells));
    }
    lines.extend(rows.iter().map(|row| match &row.missing {
        Some(reason) => format!("{:width$}  {reason}", row.tool.label()),
        None => line(row.tool.label(), width, &cells(row)),
    }));
    lines.join("\n")
}

/// Widths of the columns behind the name.
const WIDTHS: [usize; 6] = [10, 8, 22, 24, 22, 22];

fn line(name: &str, width: usize, cells: &[String; 6]) -> String {
    let cells = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("  {cell:>width$}"));
    format!("{name:width$}{}", cells.collect::<String>())
}

/// The absolute figures that the differences are from: medians of all runs without a tool.
fn untraced(rows: &[Row]) -> Option<[String; 6]> {
    let runs: Vec<Run> = rows.iter().flat_map(|row| &row.pairs).map(|pair| pair.without).collect();
    let of = |figure: fn(&Run) -> f64| median(&runs.iter().map(figure).collect::<Vec<_>>());
    (!runs.is_empty()).then(|| {
        [
            format!("{:.0}", of(|run| run.figures.requests_per_second)),
            format!("{:.1}", of(|run| run.figures.p50_ms)),
            "-".to_owned(),
            format!("p99 {:.1} ms", of(|run| run.figures.p99_ms)),
            format!("{:.1} ms", of(|run| run.stall_ms)),
            format!("{:.1} ms", of(|run| run.switching_ms)),
        ]
    })
}

fn cells(row: &Row) -> [String; 6] {
    let of = |figure: fn(&Run) -> f64| {
        median(&row.pairs.iter().map(|pair| figure(&pair.with)).collect::<Vec<_>>())
    };
    [
        format!("{:.0}", of(|run| run.figures.requests_per_second)),
        format!("{:.1}", of(|run| run.figures.p50_ms)),
        cell(row.lost_percent(), 2),
        cell(row.p99_percent(), 1),
        cell(row.stall_ms(), 1),
        cell(row.switching_ms(), 1),
    ]
}

fn cell(Estimate { median, interval }: Estimate, digits: usize) -> String {
    interval.map_or_else(
        || format!("{median:.digits$} [too few]"),
        |(low, high)| format!("{median:.digits$} [{low:.digits$}, {high:.digits$}]"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::wrk::Figures;
    use super::*;

    fn run(requests_per_second: f64, p99_ms: f64, stall_ms: f64) -> Run {
        let figures = Figures { requests_per_second, p50_ms: 1.0, p99_ms };
        Run { figures, stall_ms, switching_ms: stall_ms }
    }

    fn row(tool: Tool, with: Run) -> Row {
        let pairs = vec![Pair { without: run(1000.0, 10.0, 3.0), with }; 11];
        Row { tool, missing: None, pairs }
    }

    #[test]
    fn each_bound_is_judged() {
        assert!(faults(&[row(Tool::Budget, run(991.0, 10.4, 12.0))]).is_empty());
        assert!(faults(&[row(Tool::Growth, run(996.0, 10.4, 12.0))]).is_empty());
        assert_eq!(faults(&[row(Tool::Growth, run(991.0, 10.4, 12.0))]).len(), 1);
        let all = faults(&[row(Tool::Budget, run(980.0, 10.6, 14.0))]);
        assert_eq!(
            all,
            [
                "alloctrace, budget: 2.00 % of throughput lost; at most 1 % is allowed",
                "alloctrace, budget: 6.00 % more at the 99th percentile; at most 5 % is allowed",
                "alloctrace, budget: 11.00 ms of stall; at most 10 ms is allowed",
            ]
        );
        assert!(faults(&[row(Tool::Exact, run(10.0, 99.0, 99.0))]).is_empty());
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        let missing = Row::new(Tool::Budget, Some("not built yet".to_owned()));
        assert_eq!(faults(&[missing]), ["alloctrace, budget was not measured: not built yet"]);
        assert_eq!(faults(&[Row::new(Tool::Budget, None)]).len(), 3);
    }

    #[test]
    fn the_table_has_absolute_figures_differences_and_reasons() {
        let missing = Row::new(Tool::Budget, Some("not built yet".to_owned()));
        let text = text(&[row(Tool::Exact, run(500.0, 20.0, 4.0)), missing]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], "untraced 1000 1.0 - p99 10.0 ms 3.0 ms 3.0 ms".split(' ').collect::<Vec<_>>());
        let exact = "alloctrace, exact 500 1.0 50.00 [50.00, 50.00] 100.0 [100.0, 100.0] 1.0 [1.0, 1.0] 1.0 [1.0, 1.0]";
        assert_eq!(words[2], exact.split(' ').collect::<Vec<_>>());
        assert_eq!(words[3], "alloctrace, budget not built yet".split(' ').collect::<Vec<_>>());
    }

    #[test]
    fn few_pairs_say_so() {
        assert_eq!(cell(Estimate { median: 1.0, interval: None }, 1), "1.0 [too few]");
    }
}
