//! Moments in requests and answers: RFC 3339, Unix seconds, or a time before now.
//!
//! Years past 9999 and before 1970 are refused: there is no text for them. It must not know requests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::output::text::{shorten, visible};

/// The last second of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// A text that is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no time: use RFC 3339 (`2026-11-30T16:45:00Z`), Unix seconds, a time before now (`-15m`), or `now`"
)]
pub struct NoMoment {
    text: String,
}

/// The moment that a text means.
///
/// # Errors
/// If it means none, or one that no text can be made of.
pub fn parse(text: &str, now: SystemTime) -> Result<SystemTime, NoMoment> {
    let found = match text.strip_prefix('-') {
        _ if text == "now" => Some(now),
        Some(ago) => humantime::parse_duration(ago).ok().and_then(|ago| now.checked_sub(ago)),
        None => unix_seconds(text).or_else(|| rfc3339(text)),
    };
    found
        .filter(|moment| is_sayable(*moment))
        .ok_or_else(|| NoMoment { text: shorten(&visible(text), 60).into_owned() })
}

/// A moment as RFC 3339 in UTC, by the second.
#[must_use]
pub fn utc(moment: SystemTime) -> String {
    // What cannot be said is not asked of the formatter, which would panic.
    let sayable = if is_sayable(moment) { moment } else { UNIX_EPOCH };
    humantime::format_rfc3339_seconds(sayable).to_string()
}

/// A moment for people who know that all times are UTC: `2026-11-30 16:45:00`.
#[must_use]
pub fn said(moment: SystemTime) -> String {
    utc(moment).replace('T', " ").replace('Z', "")
}

/// Nanoseconds since the epoch as a moment.
#[must_use]
pub fn of_nanoseconds(nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}

/// Whole seconds since the epoch; 0 before it.
#[must_use]
pub fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Nanoseconds since the epoch; 0 before it.
#[must_use]
pub fn nanoseconds(moment: SystemTime) -> u64 {
    u64::try_from(moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

fn is_sayable(moment: SystemTime) -> bool {
    moment.duration_since(UNIX_EPOCH).is_ok_and(|since| since.as_secs() < LAST_SECOND)
}

fn unix_seconds(text: &str) -> Option<SystemTime> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds: f64 = text.parse().ok().filter(|_| is_number)?;
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

fn rfc3339(text: &str) -> Option<SystemTime> {
    let (local, offset_minutes) = split_offset(text)?;
    let moment = humantime::parse_rfc3339_weak(local).ok()?;
    let offset = Duration::from_secs(60 * offset_minutes.unsigned_abs());
    if offset_minutes < 0 { moment.checked_add(offset) } else { moment.checked_sub(offset) }
}

/// The time without its offset, and that in minutes. The `+` of an offset may have become a blank on its way.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(local) = text.strip_suffix(['Z', 'z']) {
        return Some((local, 0));
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let sign = match offset.as_bytes()[0] {
        b'+' | b' ' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = offset[1..].split_once(':')?;
    let number = |digits: &str, most: i64| {
        let is_number = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<i64>().ok().filter(|number| is_number && *number <= most)
    };
    Some((local, sign * (60 * number(hours, 23)? + number(minutes, 59)?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// By GNU date: `date -d 2026-11-30T16:45:00Z +%s`.
    #[test]
    fn all_forms_mean_what_date_says() {
        let now = at(1_796_057_100);
        for (text, expected) in [
            ("2026-11-30T16:45:00Z", 1_796_057_100),
            ("2026-11-30 16:45:00Z", 1_796_057_100),
            ("2026-11-30T18:45:00+02:00", 1_796_057_100),
            ("2026-11-30T18:45:00 02:00", 1_796_057_100),
            ("2026-11-30T11:15:00-05:30", 1_796_057_100),
            ("1796057100", 1_796_057_100),
            ("-15m", 1_796_056_200),
            ("-1h 30m", 1_796_051_700),
            ("now", 1_796_057_100),
            ("0", 0),
        ] {
            assert_eq!(parse(text, now), Ok(at(expected)), "{text}");
        }
        assert_eq!(parse("1.5", now), Ok(UNIX_EPOCH + Duration::from_millis(1500)));
        assert_eq!(utc(now), "2026-11-30T16:45:00Z");
    }

    #[test]
    fn what_is_no_time_says_what_is_one() {
        for text in [
            "",
            "-",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "2026-11-30",
            "1e9",
            "inf",
            "NaN",
            "-99999y",
            "--1m",
            "9".repeat(40).as_str(),
            "2026-11-30T16:45:00+2:00",
            "2026-11-30T16:45:00+99:00",
            "é:ééé",
        ] {
            let error = parse(text, at(1_000_000_000)).unwrap_err().to_string();
            assert!(error.contains("use RFC 3339"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_a_moment_can_be_said(text in "(-?[0-9:TZ. +a-z-]{0,30}|.{0,20})") {
            if let Ok(moment) = parse(&text, at(1_796_057_100)) {
                prop_assert_eq!(utc(moment).len(), "2026-11-30T16:45:00Z".len());
            }
        }

        #[test]
        fn what_was_said_is_understood(seconds in 0..LAST_SECOND) {
            prop_assert_eq!(parse(&utc(at(seconds)), at(0)), Ok(at(seconds)));
        }
    }
}
