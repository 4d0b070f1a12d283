//! The result of a bench as a table: seconds, and how many times slower than the first row.

/// One contender's figure.
pub struct Row {
    pub name: &'static str,
    pub median: f64,
    fastest: f64,
    slowest: f64,
}

impl Row {
    pub fn new(name: &'static str, seconds: &[f64]) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self {
            name,
            median: at(sorted.len() / 2),
            fastest: at(0),
            slowest: at(sorted.len().saturating_sub(1)),
        }
    }
}

/// Print the rows, each against the first.
pub fn print(title: &str, rows: &[Row]) {
    println!("\n{title}\n{}", text(rows));
}

fn text(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let base = rows.first().map_or(f64::NAN, |row| row.median);
    let mut lines =
        vec![format!("{:width$}  {:>9}  {:>17}  {:>7}", "", "median", "fastest, slowest", "times")];
    for Row { name, median, fastest, slowest } in rows {
        let range = format!("{:.1}, {:.1}", fastest * 1e3, slowest * 1e3);
        lines.push(format!("{name:width$}  {:>6.1} ms  {range:>17}  {:>7.1}", median * 1e3, median / base));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        let row = Row::new("a", &[5.0, 1.0, 3.0]);
        assert_eq!((row.median, row.fastest, row.slowest), (3.0, 1.0, 5.0));
    }

    #[test]
    fn rows_are_compared_with_the_first() {
        let rows = [Row::new("untraced", &[0.010]), Row::new("traced", &[0.155])];
        assert!(text(&rows).ends_with("traced     155.0 ms       155.0, 155.0     15.5"), "{}", text(&rows));
    }
}
