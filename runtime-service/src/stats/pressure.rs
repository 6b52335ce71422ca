//! The kernel's pressure stall information, `*.pressure` of the version 2 tree.
//! Source: Documentation/accounting/psi.rst.

/// Time in which processes waited for one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pressure {
    /// At least one of them waited.
    pub(crate) some: Stall,
    /// All of them waited at once.
    pub(crate) full: Stall,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Stall {
    /// In microseconds, so far.
    pub(crate) total_us: u64,
    /// Share of the last 10, 60 and 300 seconds, in percent.
    pub(crate) avg10: f64,
    pub(crate) avg60: f64,
    pub(crate) avg300: f64,
}

impl Pressure {
    /// `None` for a text that is no pressure file: a kernel that was booted with `psi=0` has files that cannot be read.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut found = Self::default();
        let mut lines = 0;
        for line in text.lines() {
            let (kind, fields) = line.split_once(' ')?;
            let stall = Stall::parse(fields)?;
            match kind {
                "some" => found.some = stall,
                "full" => found.full = stall,
                _ => return None,
            }
            lines += 1;
        }
        // Before Linux 5.13 `cpu.pressure` had no second line.
        (lines > 0).then_some(found)
    }
}

impl Stall {
    fn parse(fields: &str) -> Option<Self> {
        let mut stall = Self::default();
        for field in fields.split_whitespace() {
            let (name, value) = field.split_once('=')?;
            match name {
                "avg10" => stall.avg10 = value.parse().ok()?,
                "avg60" => stall.avg60 = value.parse().ok()?,
                "avg300" => stall.avg300 = value.parse().ok()?,
                "total" => stall.total_us = value.parse().ok()?,
                _ => {}
            }
        }
        Some(stall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_read() {
        let text =
            "some avg10=0.50 avg60=1.25 avg300=0.16 total=8484506428\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let some = Stall { total_us: 8_484_506_428, avg10: 0.5, avg60: 1.25, avg300: 0.16 };
        let full = Stall { total_us: 7, ..Stall::default() };
        assert_eq!(Pressure::parse(text), Some(Pressure { some, full }));
    }

    #[test]
    fn what_is_no_pressure_is_none() {
        for text in ["", "some", "what avg10=0.0 total=1\n", "some avg10=x total=1\n"] {
            assert_eq!(Pressure::parse(text), None, "{text:?}");
        }
        assert!(Pressure::parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").is_some());
    }
}
