//! How long to wait before trying again: twice as long each time, up to a limit, and by chance a little less, so that many senders do not come back together.
//!
//! A receiver that says how long is obeyed, within reason. Pure but for chance, which has a seed. It must not know requests.

use std::time::{Duration, SystemTime};

/// The limits of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// The first wait, at the most.
    pub first: Duration,
    /// The longest, unless a receiver asks for more.
    pub longest: Duration,
    /// Whatever a receiver asks for.
    pub longest_asked: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(5 * 60),
            longest_asked: Duration::from_secs(60 * 60),
        }
    }
}

/// The waits of one receiver.
#[derive(Debug)]
pub struct Backoff {
    waits: Waits,
    failures: u32,
    random: fastrand::Rng,
}

impl Backoff {
    /// Nothing has failed yet.
    pub fn new(waits: Waits, seed: u64) -> Self {
        Self { waits, failures: 0, random: fastrand::Rng::with_seed(seed) }
    }

    /// It works (again).
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// It has failed once more: how long to wait. `asked`: what the receiver asked for, if it did.
    pub fn after_failure(&mut self, asked: Option<Duration>) -> Duration {
        let doubled = self.waits.first.saturating_mul(1 << self.failures.min(30));
        self.failures = self.failures.saturating_add(1);
        let most = doubled.min(self.waits.longest);
        let wait = most.mul_f64(self.random.f64().mul_add(0.5, 0.5));
        asked.map_or(wait, |asked| wait.max(asked.min(self.waits.longest_asked)))
    }
}

/// What `Retry-After` says: seconds, or a date such as `Sun, 06 Nov 1994 08:49:37 GMT`. `None`: nothing that is understood.
pub fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(date(header)?))?;
    Some(then.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of a date in the form that HTTP prefers; of the older forms none is understood.
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let clock: Vec<u64> = time.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [hours, minutes, seconds] = clock[..] else { return None };
    let is_possible = (1..=31).contains(&day) && (1970..=9999).contains(&year);
    if !is_possible || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    Some(((days(year, month, day) * 24 + hours) * 60 + minutes) * 60 + seconds)
}

/// Days since the first of January 1970, for years from that on. Years begin in March here, so that the odd day of February is their last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    const BEFORE_1970: u64 = 719_468;
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    (year * 365 + year / 4 - year / 100 + year / 400 + of_year).saturating_sub(BEFORE_1970)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_limit() {
        let waits = Waits::default();
        let mut backoff = Backoff::new(waits, 7);
        let mut most = waits.first;
        for _ in 0..100 {
            let wait = backoff.after_failure(None);
            assert!(wait <= most && wait >= most / 2, "{wait:?} of {most:?}");
            most = (most * 2).min(waits.longest);
        }
        backoff.reset();
        assert!(backoff.after_failure(None) <= waits.first);
    }

    #[test]
    fn senders_do_not_come_back_together() {
        let waits: std::collections::HashSet<Duration> =
            (0..20).map(|seed| Backoff::new(Waits::default(), seed).after_failure(None)).collect();
        assert!(waits.len() > 15, "{waits:?}");
    }

    #[test]
    fn a_receiver_is_obeyed_within_reason() {
        let mut backoff = Backoff::new(Waits::default(), 7);
        assert_eq!(backoff.after_failure(Some(Duration::from_secs(42))), Duration::from_secs(42));
        assert_eq!(backoff.after_failure(Some(Duration::MAX)), Duration::from_secs(3600));
        assert!(backoff.after_failure(Some(Duration::ZERO)) >= Duration::from_secs(2));
    }

    #[test]
    fn both_forms_of_retry_after_are_understood() {
        // The date and its seconds are those of RFC 9110's example and of `date -u -d`.
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let before = then - Duration::from_secs(90);
        assert_eq!(retry_after("120", before), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(" Sun, 06 Nov 1994 08:49:37 GMT", before), Some(Duration::from_secs(90)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", then), Some(Duration::ZERO));
        for text in [
            "",
            "soon",
            "-1",
            "Sun, 06 Nov 1994",
            "Sun, 99 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
        ] {
            assert_eq!(retry_after(text, before), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn days_go_up_by_one(year in 1970_u64..9999, month in 1_u64..=12) {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let length = lengths[month as usize - 1];
            let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            prop_assert_eq!(days(next_year, next_month, 1) - days(year, month, 1), length);
            prop_assert_eq!(days(year, month, length) - days(year, month, 1), length - 1);
            prop_assert_eq!(days(1970, 1, 1), 0);
        }

        #[test]
        fn no_header_is_too_odd(text in ".{0,40}") {
            let _ = retry_after(&text, SystemTime::UNIX_EPOCH);
        }
    }
}
