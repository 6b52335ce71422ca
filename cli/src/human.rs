//! Numbers as people read and write them: ages, sizes, durations, times. The words are crictl's.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How long ago a time was, roughly: "About a minute ago". `created` in nanoseconds since the epoch.
pub(crate) fn ago(now: Timestamp, created: i64) -> String {
    let seconds = (now.as_nanosecond() - i128::from(created)).max(0) / 1_000_000_000;
    format!("{} ago", roughly(u64::try_from(seconds).unwrap_or(u64::MAX)))
}

fn roughly(seconds: u64) -> String {
    let minutes = seconds / 60;
    // Hours are rounded, minutes and days are not.
    let hours = (seconds + 1800) / 3600;
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".into(),
        (1, ..) => "1 second".into(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".into(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".into(),
        (_, _, ..48) => format!("{hours} hours"),
        (_, _, ..336) => format!("{} days", hours / 24),
        (_, _, ..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, ..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// A size in decimal units with three digits: "4.26MB".
pub(crate) fn size(bytes: u64) -> String {
    size_in(bytes, 3)
}

/// A size in decimal units with four digits: "4.262MB".
pub(crate) fn fine_size(bytes: u64) -> String {
    size_in(bytes, 4)
}

fn size_in(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let whole = if value >= 100.0 {
        3
    } else if value >= 10.0 {
        2
    } else {
        1
    };
    let text = format!("{value:.decimals$}", decimals = digits - whole);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// A time in the local zone, RFC 3339 with as many decimals as it has. Zero is "never" and printed as the year 1.
pub(crate) fn local_time(nanoseconds: i64, zone: &TimeZone) -> String {
    match Timestamp::from_nanosecond(i128::from(nanoseconds)) {
        Ok(time) if time.to_zoned(zone.clone()).offset().is_zero() => time.to_string(),
        Ok(time) => time.display_with_offset(time.to_zoned(zone.clone()).offset()).to_string(),
        Err(_) => nanoseconds.to_string(),
    }
}

/// `time` in words for a message, such as "2s".
pub(crate) fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}

/// A duration as Go writes them, such as "2s", "1m30s" or "1.5h"; a bare number is seconds.
///
/// # Errors
/// Says what was not understood.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 2s, 1m30s or 500ms");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    if let Ok(seconds) = rest.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let value: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

/// A moment: RFC 3339 (the zone may be left out: local), a duration before now, or seconds since the epoch.
///
/// # Errors
/// Says what was not understood.
pub(crate) fn parse_moment(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    let wrong = || format!("{text:?} is neither a time (2024-05-01T12:00:00Z) nor a duration (42m)");
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(time) = text.parse::<jiff::civil::DateTime>() {
        return time.to_zoned(zone.clone()).map(|time| time.timestamp()).map_err(|_| wrong());
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return Timestamp::from_nanosecond((seconds * 1e9) as i128).map_err(|_| wrong());
    }
    now.checked_sub(parse_duration(text).map_err(|_| wrong())?).map_err(|_| wrong())
}

/// A number of bytes with an optional binary unit: "64m", "1g", "1073741824".
///
/// # Errors
/// Says what was not understood.
pub(crate) fn parse_bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a size such as 64m or 1g");
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let shift = match number.chars().last() {
        Some('k') => 10,
        Some('m') => 20,
        Some('g') => 30,
        Some('t') => 40,
        _ => 0,
    };
    let digits = if shift == 0 { number } else { &number[..number.len() - 1] };
    let value: i64 = digits.parse().map_err(|_| wrong())?;
    value.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_rounded_as_people_do() {
        for (seconds, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (13 * 86400, "13 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(roughly(seconds), words, "{seconds}");
        }
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(ago(now, 90_000_000_000), "10 seconds ago");
        // A clock that was set back is no reason for negative ages.
        assert_eq!(ago(now, 190_000_000_000), "Less than a second ago");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (4_261_574, "4.26MB"),
            (72_600_000, "72.6MB"),
            (738_000_000, "738MB"),
            (1_200_000_000, "1.2GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (bytes, text) in [(0, "0B"), (999, "999B"), (4_261_574, "4.262MB"), (738_400_000, "738.4MB")] {
            assert_eq!(fine_size(bytes), text);
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let check =
            |text: &str, ms: u64| assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        check("2s", 2000);
        check("1m30s", 90_000);
        check("1.5h", 5_400_000);
        check("500ms", 500);
        check("20", 20_000);
        for wrong in ["", "s", "2x", "-2s", "2s3"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn moments_are_times_or_ages() {
        let now = "2024-05-01T12:00:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let check = |text: &str, want: &str| {
            assert_eq!(parse_moment(text, now, &zone).unwrap(), want.parse::<Timestamp>().unwrap(), "{text}");
        };
        check("2024-05-01T10:00:00.5Z", "2024-05-01T10:00:00.5Z");
        check("2024-05-01T10:00:00", "2024-05-01T08:00:00Z");
        check("42m", "2024-05-01T11:18:00Z");
        check("1714557600", "2024-05-01T10:00:00Z");
        assert!(parse_moment("yesterday", now, &zone).is_err());
    }

    #[test]
    fn times_are_local_with_their_offset() {
        assert_eq!(local_time(1_500_000_000, &TimeZone::UTC), "1970-01-01T00:00:01.5Z");
        assert_eq!(local_time(0, &TimeZone::fixed(jiff::tz::offset(2))), "1970-01-01T02:00:00+02:00");
    }

    #[test]
    fn memory_sizes_have_binary_units() {
        assert_eq!(parse_bytes("64m").unwrap(), 64 << 20);
        assert_eq!(parse_bytes("1Gi").unwrap(), 1 << 30);
        assert_eq!(parse_bytes("4096").unwrap(), 4096);
        assert!(parse_bytes("0").is_err() && parse_bytes("x").is_err() && parse_bytes("-1m").is_err());
    }
}
