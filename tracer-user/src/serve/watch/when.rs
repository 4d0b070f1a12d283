//! `--snapshot-when`: a figure, a limit, and for how long, such as `live>2GiB for 30s`.
//!
//! It must not know where figures come from, nor what is done when one is over its limit.

use std::{fmt, str::FromStr, time::Duration};

use super::{ProcessFigures, episode::Episode};

/// What is allowed, for errors.
const ALLOWED: &str = "write FIGURE>SIZE or FIGURE>=SIZE, with live, requested, held or resident as the figure, or share>PERCENT% of the control group's limit, and `for TIME` if wanted: `live>2GiB for 30s`";
/// Longer than this nobody waits.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Hundredths of a percent: what shares are kept in, so that they are exact.
const HUNDREDTHS: u64 = 100;
/// Units of sizes; the larger first, and the binary ones, which are what one is written in.
const UNITS: [(&str, u64); 13] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Figure {
    /// Live bytes of a process, by the account.
    Live,
    /// Requested by the program.
    Requested,
    /// Held free by allocators.
    Held,
    /// Resident.
    Resident,
    /// Of a control group: memory in percent of its limit.
    Share,
}

/// See the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// What is compared.
    pub figure: Figure,
    /// With what: bytes, or hundredths of a percent.
    limit: u64,
    /// Whether the limit itself is over.
    or_equal: bool,
    /// For how long on end.
    held_for: Duration,
}

/// Why a condition is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no condition: {why}; {ALLOWED}")]
pub struct ConditionError {
    text: String,
    why: String,
}

impl Figure {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Live, Self::Requested, Self::Held, Self::Resident, Self::Share];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Requested => "requested",
            Self::Held => "held",
            Self::Resident => "resident",
            Self::Share => "share",
        }
    }

    /// That of a process, in bytes; a share is none of a process.
    #[must_use]
    pub fn of(self, figures: &ProcessFigures) -> Option<u64> {
        match self {
            Self::Live => figures.live,
            Self::Requested => figures.requested,
            Self::Held => figures.held,
            Self::Resident => figures.resident,
            Self::Share => None,
        }
    }
}

impl Condition {
    /// Whether a value begins an episode that is to be told: bytes, or percent.
    pub(super) fn begins(&self, episode: &mut Episode, now: Duration, value: f64) -> bool {
        let limit = if self.figure == Figure::Share {
            self.limit as f64 / HUNDREDTHS as f64
        } else {
            self.limit as f64
        };
        let is_over = value > limit || self.or_equal && value >= limit;
        episode.observe(now, value / limit, is_over, self.held_for)
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        parse(text.trim()).map_err(|why| ConditionError { text: text.to_owned(), why })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.or_equal { ">=" } else { ">" };
        write!(formatter, "{}{sign}", self.figure.name())?;
        match self.figure {
            Figure::Share => match (self.limit / HUNDREDTHS, self.limit % HUNDREDTHS) {
                (whole, 0) => write!(formatter, "{whole}%")?,
                (whole, hundredths) => write!(formatter, "{whole}.{hundredths:02}%")?,
            },
            _ => {
                let unit = UNITS.iter().take(4).find(|(_, unit)| self.limit.is_multiple_of(*unit));
                match unit {
                    Some((name, unit)) => write!(formatter, "{}{name}", self.limit / unit)?,
                    None => write!(formatter, "{}", self.limit)?,
                }
            }
        }
        if self.held_for.is_zero() {
            return Ok(());
        }
        write!(formatter, " for {}", humantime::format_duration(self.held_for))
    }
}

fn parse(text: &str) -> Result<Condition, String> {
    let (name, rest) = text.split_once('>').ok_or("there is no `>` in it")?;
    let name = name.trim();
    let figure = Figure::ALL.into_iter().find(|figure| figure.name() == name);
    let figure = figure.ok_or_else(|| format!("`{name}` is no figure"))?;
    let (or_equal, rest) = rest.strip_prefix('=').map_or((false, rest), |rest| (true, rest));
    let (limit, time) = match rest.split_once(" for ") {
        Some((limit, time)) => (limit.trim(), Some(time.trim())),
        None => (rest.trim(), None),
    };
    let limit = if figure == Figure::Share { percent(limit)? } else { bytes(limit)? };
    if limit == 0 {
        return Err("a limit of 0 is always exceeded".to_owned());
    }
    let held_for = time.map_or(Ok(Duration::ZERO), duration)?;
    Ok(Condition { figure, limit, or_equal, held_for })
}

fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|character: char| !(character.is_ascii_digit() || character == '.'));
    let (number, unit) = text.split_at(split.unwrap_or(text.len()));
    let unit = unit.trim();
    let known = UNITS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let factor = match known {
        Some((_, factor)) => factor,
        None if unit.is_empty() => 1,
        None if unit == "%" => return Err("a percentage is for `share` only".to_owned()),
        None => return Err(format!("`{unit}` is no unit of size (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)")),
    };
    scaled(number, factor)
}

/// In hundredths of a percent.
fn percent(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix('%').ok_or_else(|| format!("`{text}` does not end with %"))?;
    let hundredths = scaled(number.trim(), HUNDREDTHS)?;
    if hundredths > 100 * HUNDREDTHS {
        return Err(format!("`{text}` is more than 100 %"));
    }
    Ok(hundredths)
}

fn duration(text: &str) -> Result<Duration, String> {
    let time =
        humantime::parse_duration(text).map_err(|_| format!("`{text}` is no time, such as 30s or 5m"))?;
    if time > LONGEST {
        return Err(format!("`{text}` is more than a day"));
    }
    Ok(time)
}

/// A decimal number times a factor, rounded down, without the errors of floating point.
fn scaled(number: &str, factor: u64) -> Result<u64, String> {
    /// Digits behind the point; more make no difference to any size.
    const MOST_DIGITS: usize = 12;
    let no_number = || format!("`{number}` is no number");
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) || fraction.len() > MOST_DIGITS {
        return Err(no_number());
    }
    let too_large = || format!("`{number}` is too large");
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let scale = 10_u128.pow(fraction.len() as u32);
    let fraction: u64 = fraction.parse().map_err(|_| no_number())?;
    // All of them are below 2^64, and the scale below 2^40: nothing overflows.
    let sum = u128::from(whole) * u128::from(factor) + u128::from(fraction) * u128::from(factor) / scale;
    u64::try_from(sum).map_err(|_| too_large())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn condition(text: &str) -> Condition {
        text.parse().unwrap()
    }

    #[test]
    fn conditions_are_as_written() {
        for (text, figure, limit, or_equal, seconds) in [
            ("live>2GiB", Figure::Live, 2 << 30, false, 0),
            ("resident>=500MB", Figure::Resident, 500_000_000, true, 0),
            ("requested>1GiB for 30s", Figure::Requested, 1 << 30, false, 30),
            (" held > 100 MiB for 1h 5m ", Figure::Held, 100 << 20, false, 3900),
            ("held>1.5k", Figure::Held, 1536, false, 0),
            ("live>123", Figure::Live, 123, false, 0),
            ("share>90%", Figure::Share, 9000, false, 0),
            ("share>=92.5 % for 10s", Figure::Share, 9250, true, 10),
        ] {
            let held_for = Duration::from_secs(seconds);
            assert_eq!(condition(text), Condition { figure, limit, or_equal, held_for }, "{text}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong_and_what_is_allowed() {
        for (text, why) in [
            ("", "there is no `>` in it"),
            ("live<2GiB", "there is no `>` in it"),
            ("rss>2GiB", "`rss` is no figure"),
            ("live>", "`` is no number"),
            ("live>2XiB", "`XiB` is no unit of size (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)"),
            ("live>-2GiB", "`-2GiB` is no unit of size (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)"),
            ("live>90%", "a percentage is for `share` only"),
            ("live>0", "a limit of 0 is always exceeded"),
            ("live>1.2.3", "`1.2.3` is no number"),
            ("live>99999999999999999999", "`99999999999999999999` is too large"),
            ("live>17000000TiB", "`17000000` is too large"),
            ("share>90", "`90` does not end with %"),
            ("share>101%", "`101%` is more than 100 %"),
            ("live>1B for ever", "`ever` is no time, such as 30s or 5m"),
            ("live>1B for 2days", "`2days` is more than a day"),
        ] {
            let error = text.parse::<Condition>().unwrap_err().to_string();
            assert_eq!(error, format!("`{text}` is no condition: {why}; {ALLOWED}"));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            figure in prop::sample::select(Figure::ALL.to_vec()), limit in 1_u64.., or_equal: bool, seconds in 0..=86_400_u64,
        ) {
            let limit = if figure == Figure::Share { limit % 10_000 + 1 } else { limit };
            let written = Condition { figure, limit, or_equal, held_for: Duration::from_secs(seconds) };
            prop_assert_eq!(written.to_string().parse::<Condition>().unwrap(), written);
        }

        #[test]
        fn sizes_are_numbers_times_units(number in 1_u64..9000, thousandths in 0..1000_u64, spaces in " {0,3}") {
            // A table of its own: powers by the letter.
            for (letter, power) in [("", 0), ("k", 1), ("m", 2), ("g", 3), ("t", 4)] {
                for (ending, base) in [("iB", 1024_u128), ("B", 1000)] {
                    if letter.is_empty() && ending == "iB" {
                        continue;
                    }
                    let text = format!("live>{number}.{thousandths:03}{spaces}{}{ending}", letter.to_uppercase());
                    let exact = (u128::from(number) * 1000 + u128::from(thousandths)) * base.pow(power) / 1000;
                    prop_assert_eq!(u128::from(condition(&text).limit), exact, "{}", text);
                }
            }
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,40}", tail in "(live|share|held)>=?[0-9.]{0,30}[A-Za-z%]{0,3}( for .{0,10})?") {
            let _ = text.parse::<Condition>();
            let _ = tail.parse::<Condition>();
        }
    }
}
