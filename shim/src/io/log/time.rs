//! RFC 3339 in UTC with nine decimals, as the log has it; formatted once a second, but for the decimals.

/// Bytes of a formatted time, e.g. `2026-11-21T02:41:49.000000001Z`.
pub(super) const TIME_LEN: usize = 30;

const NANOS: i64 = 1_000_000_000; // in a second
const DAY: i64 = 86_400; // seconds

/// Formats times and remembers the last one's second.
#[derive(Debug)]
pub(super) struct Clock {
    second: i64,
    text: [u8; TIME_LEN],
}

impl Clock {
    pub(super) fn new() -> Clock {
        let mut clock = Clock { second: 0, text: *b"0000-00-00T00:00:00.000000000Z" };
        clock.set_second(0);
        clock
    }

    /// `at` is in nanoseconds since the epoch, from year 0 to 9999.
    pub(super) fn format(&mut self, at: i64) -> &[u8; TIME_LEN] {
        let second = at.div_euclid(NANOS);
        if second != self.second {
            self.set_second(second);
        }
        digits(&mut self.text[20..29], at.rem_euclid(NANOS));
        &self.text
    }

    fn set_second(&mut self, second: i64) {
        let (year, month, day) = civil(second.div_euclid(DAY));
        let of_day = second.rem_euclid(DAY);
        digits(&mut self.text[0..4], year);
        digits(&mut self.text[5..7], month);
        digits(&mut self.text[8..10], day);
        digits(&mut self.text[11..13], of_day / 3600);
        digits(&mut self.text[14..16], of_day / 60 % 60);
        digits(&mut self.text[17..19], of_day % 60);
        self.second = second;
    }
}

fn digits(into: &mut [u8], mut value: i64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that a leap day is the last day of its year; four hundred of them have 146 097 days.
fn civil(day: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097; // days of 400 years
    const EPOCH: i64 = 719_468; // days from 0000-03-01 to 1970-01-01
    let since = day + EPOCH;
    let era = since.div_euclid(ERA);
    let mut rest = since.rem_euclid(ERA);
    let century = (rest / 36_524).min(3);
    rest -= century * 36_524;
    let four = rest / 1_461;
    rest -= four * 1_461;
    let one = (rest / 365).min(3);
    rest -= one * 365;
    // From March, months have 31 30 31 30 31 days, twice, and then 31 and the rest: 153 days in five.
    let month = (5 * rest + 2) / 153;
    let day = rest - (153 * month + 2) / 5 + 1;
    let year = era * 400 + century * 100 + four * 4 + one;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_as_rfc_3339() {
        for (at, expected) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (1, "1970-01-01T00:00:00.000000001Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
            (951_782_400 * NANOS, "2000-02-29T00:00:00.000000000Z"),
            (951_868_799 * NANOS + 999_999_999, "2000-02-29T23:59:59.999999999Z"),
            (951_868_800 * NANOS, "2000-03-01T00:00:00.000000000Z"),
            (1_709_164_800 * NANOS, "2024-02-29T00:00:00.000000000Z"),
            (1_795_228_909 * NANOS + 120_000_000, "2026-11-21T02:41:49.120000000Z"),
            (4_107_542_400 * NANOS, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(std::str::from_utf8(Clock::new().format(at)), Ok(expected));
        }
    }

    #[test]
    fn the_remembered_second_changes_with_the_time() {
        let mut clock = Clock::new();
        assert_eq!(clock.format(59 * NANOS + 5), b"1970-01-01T00:00:59.000000005Z");
        assert_eq!(clock.format(59 * NANOS + 7), b"1970-01-01T00:00:59.000000007Z");
        assert_eq!(clock.format(60 * NANOS), b"1970-01-01T00:01:00.000000000Z");
    }

    #[test]
    fn each_day_of_four_centuries_follows_the_one_before() {
        let length = |year: i64, month: i64| match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let mut expected = (1900, 1, 1);
        for day in -25_567..120_530 {
            assert_eq!(civil(day), expected);
            let (year, month, dom) = expected;
            expected = if dom < length(year, month) {
                (year, month, dom + 1)
            } else if month < 12 {
                (year, month + 1, 1)
            } else {
                (year + 1, 1, 1)
            };
        }
    }
}
