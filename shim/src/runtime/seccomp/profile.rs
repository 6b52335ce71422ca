//! A profile's meaning: for each architecture, what each number of a call is answered. No IO.

use std::collections::BTreeMap;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::syscalls;
use crate::runtime::Error;

/// What is answered: `SECCOMP_RET_…` with its data.
pub(super) type Answer = u32;

/// Calls by a number that no table has.
pub(super) const KILL_PROCESS: Answer = 0x8000_0000; // SECCOMP_RET_KILL_PROCESS
const NOT_THERE: Answer = 0x0005_0000 | libc::ENOSYS as u32; // SECCOMP_RET_ERRNO

/// One architecture of the filter.
#[derive(Debug)]
pub(super) struct Section {
    /// `AUDIT_ARCH_…`.
    pub(super) arch: u32,
    /// Arguments are 32 bits wide.
    pub(super) narrow: bool,
    /// From this number on until the next one; the first is 0.
    pub(super) ranges: Vec<(u32, Verdict)>,
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Always(Answer),
    /// The first whose conditions all hold, else the last.
    ByArguments(Vec<(Vec<Condition>, Answer)>, Answer),
}

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) test: Test,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    Masked { mask: u64, value: u64 },
}

/// One table of numbers: name, number, and the bit that is set in each number.
struct Table {
    arch: u32,
    narrow: bool,
    find: fn(&str) -> Option<u32>,
}

fn look_up(table: &[(&str, u32)], name: &str) -> Option<u32> {
    table.binary_search_by(|(known, _)| (*known).cmp(name)).ok().map(|index| table[index].1)
}

#[cfg(target_arch = "x86_64")]
mod tables {
    use super::{Arch, Table, look_up, syscalls};

    const X86_64: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
    const I386: u32 = 0x4000_0003; // AUDIT_ARCH_I386
    const X32_BIT: u32 = 0x4000_0000; // __X32_SYSCALL_BIT

    fn x32(name: &str) -> Option<u32> {
        look_up(syscalls::X32, name).or_else(|| look_up(syscalls::NATIVE, name)).map(|number| number | X32_BIT)
    }

    pub(super) const NATIVE: Table =
        Table { arch: X86_64, narrow: false, find: |name| look_up(syscalls::NATIVE, name) };
    /// x32 calls come with the architecture of x86_64 and a bit in the number.
    pub(super) const X32: Table = Table { arch: X86_64, narrow: false, find: x32 };
    const X86: Table = Table { arch: I386, narrow: true, find: |name| look_up(syscalls::I386, name) };

    /// Tables of the other architectures that this machine can run.
    pub(super) fn foreign(arch: Arch) -> Option<Table> {
        (arch == Arch::ScmpArchX86).then_some(X86)
    }

    pub(super) fn in_native(arch: Arch) -> Option<Table> {
        (arch == Arch::ScmpArchX32).then_some(X32)
    }

    /// Numbers from here on are of another interface.
    pub(super) const NATIVE_END: Option<u32> = Some(X32_BIT);
}

#[cfg(target_arch = "aarch64")]
mod tables {
    use super::{Arch, Table, look_up, syscalls};

    const AARCH64: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

    pub(super) const NATIVE: Table =
        Table { arch: AARCH64, narrow: false, find: |name| look_up(syscalls::NATIVE, name) };

    /// 32-bit ARM programs are killed at their first call: there is no table for them yet.
    pub(super) fn foreign(_: Arch) -> Option<Table> {
        None
    }

    pub(super) fn in_native(_: Arch) -> Option<Table> {
        None
    }

    pub(super) const NATIVE_END: Option<u32> = None;
}

/// The filter's sections, the native one first. `None` if everything is allowed.
///
/// # Errors
/// An action that needs somebody to answer for the kernel; an argument that a call does not have.
pub(super) fn sections(profile: &LinuxSeccomp) -> Result<Option<Vec<Section>>, Error> {
    let default = answer("linux.seccomp.defaultAction", profile.default_action(), profile.default_errno_ret())?;
    let rules = Rules::parse(profile, default)?;
    if rules.0.is_empty() && profile.default_action() == LinuxSeccompAction::ScmpActAllow {
        return Ok(None);
    }
    let listed = || profile.architectures().iter().flatten().copied();
    let unknown = newer_than_profile(profile.default_action(), default);
    let mut native = ranges(&tables::NATIVE, &rules, default, unknown);
    if let Some(end) = tables::NATIVE_END {
        native.retain(|(start, _)| *start < end);
        match listed().find_map(tables::in_native) {
            Some(table) => {
                // What lies below the interface's first number is native.
                let inner = ranges(&table, &rules, default, unknown);
                let first = inner.iter().rev().find(|(start, _)| *start <= end).map(|(_, verdict)| verdict.clone());
                native.extend(first.map(|verdict| (end, verdict)));
                native.extend(inner.into_iter().filter(|(start, _)| *start > end));
            }
            None => native.push((end, Verdict::Always(KILL_PROCESS))),
        }
    }
    let section = |table: &Table, ranges| Section { arch: table.arch, narrow: table.narrow, ranges };
    let mut sections = vec![section(&tables::NATIVE, native)];
    for table in listed().filter_map(tables::foreign) {
        if !sections.iter().any(|known| known.arch == table.arch) {
            sections.push(section(&table, ranges(&table, &rules, default, unknown)));
        }
    }
    Ok(Some(sections))
}

/// A profile says nothing about calls that are younger than itself. Programs expect `ENOSYS` of a call that a kernel
/// does not have and then use an older one; the profile's own errno would be taken for a real answer.
fn newer_than_profile(action: LinuxSeccompAction, default: Answer) -> Answer {
    match action {
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace => default,
        _ => NOT_THERE,
    }
}

/// By name: the unconditional answer, or those by arguments in the profile's order.
struct Rules<'a>(BTreeMap<&'a str, Verdict>, Vec<&'a str>);

impl<'a> Rules<'a> {
    fn parse(profile: &'a LinuxSeccomp, default: Answer) -> Result<Rules<'a>, Error> {
        let mut rules = Rules(BTreeMap::new(), Vec::new());
        for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
            let field = format!("linux.seccomp.syscalls[{index}]");
            rules.1.extend(rule.names().iter().map(String::as_str));
            let answer = answer(&field, rule.action(), rule.errno_ret())?;
            // As the reference does: such a rule adds nothing, and must not hide another one.
            if answer == default {
                continue;
            }
            let alternatives = alternatives(&field, rule)?;
            for name in rule.names() {
                rules.add(name, &alternatives, answer, default);
            }
        }
        Ok(rules)
    }

    fn add(&mut self, name: &'a str, alternatives: &[Vec<Condition>], answer: Answer, default: Answer) {
        if alternatives.is_empty() {
            // An answer for every argument outdoes those for some.
            let entry = self.0.entry(name).or_insert(Verdict::Always(answer));
            if matches!(entry, Verdict::ByArguments(..)) {
                *entry = Verdict::Always(answer);
            }
            return;
        }
        let entry = self.0.entry(name).or_insert_with(|| Verdict::ByArguments(Vec::new(), default));
        if let Verdict::ByArguments(list, _) = entry {
            list.extend(alternatives.iter().map(|conditions| (conditions.clone(), answer)));
        }
    }
}

/// The sets of conditions of a rule, any of which is enough. Several conditions on one argument are alternatives, on
/// different arguments they hold together: so existing profiles are written (runc's `matchCall`).
fn alternatives(field: &str, rule: &LinuxSyscall) -> Result<Vec<Vec<Condition>>, Error> {
    let args = rule.args().as_deref().unwrap_or_default();
    let conditions = args.iter().map(|arg| condition(field, arg)).collect::<Result<Vec<_>, _>>()?;
    let repeated = conditions.iter().any(|a| conditions.iter().filter(|b| b.index == a.index).count() > 1);
    Ok(match (conditions.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (false, true) => conditions.into_iter().map(|one| vec![one]).collect(),
        (false, false) => vec![conditions],
    })
}

fn condition(field: &str, arg: &LinuxSeccompArg) -> Result<Condition, Error> {
    let index = match u32::try_from(arg.index()) {
        Ok(index @ 0..=5) => index,
        _ => {
            return Err(Error::refused(format!("{field}.args"), format!("there is no argument {}", arg.index())));
        }
    };
    let value = arg.value();
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpEq => Test::Equal(value),
        LinuxSeccompOperator::ScmpCmpNe => Test::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::LessOrEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Greater(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::GreaterOrEqual(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Test::Masked { mask: value, value: arg.value_two().unwrap_or(0) },
    };
    Ok(Condition { index, test })
}

fn answer(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<Answer, Error> {
    const ERRNO_MAX: u32 = 4095; // MAX_ERRNO: the kernel would cut a larger one down to it
    if errno.is_some_and(|errno| errno > ERRNO_MAX) {
        return Err(Error::refused(field, "errnoRet is above 4095"));
    }
    match action {
        LinuxSeccompAction::ScmpActNotify => Err(Error::refused(field, "SCMP_ACT_NOTIFY is not supported")),
        other => Ok(other.as_u32(errno)),
    }
}

/// The numbers of a table cut where the answer changes. A name that the architecture does not have is no rule there.
fn ranges(table: &Table, rules: &Rules<'_>, default: Answer, unknown: Answer) -> Vec<(u32, Verdict)> {
    let numbered: BTreeMap<u32, &Verdict> =
        rules.0.iter().filter_map(|(name, verdict)| Some(((table.find)(name)?, verdict))).collect();
    // The youngest call that the profile knows by name, whatever it says about it.
    let last = rules.1.iter().filter_map(|name| (table.find)(name)).max();
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |start: u32, verdict: &Verdict| match ranges.last() {
        Some((_, same)) if same == verdict => {}
        _ => ranges.push((start, verdict.clone())),
    };
    let default = Verdict::Always(default);
    let mut next = 0;
    for (number, verdict) in numbered {
        if number > next {
            push(next, &default);
        }
        push(number, verdict);
        next = number + 1;
    }
    match last {
        Some(last) => {
            if last >= next {
                push(next, &default);
            }
            push(last.max(next.saturating_sub(1)) + 1, &Verdict::Always(unknown));
        }
        None => push(next, &default),
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_right_where_libc_knows() {
        let sorted = |table: &[(&str, u32)]| table.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(sorted(syscalls::NATIVE));
        for (name, number) in [
            ("read", libc::SYS_read),
            ("openat", libc::SYS_openat),
            ("execve", libc::SYS_execve),
            ("clone3", libc::SYS_clone3),
            ("newfstatat", libc::SYS_newfstatat),
            ("mmap", libc::SYS_mmap),
            ("fcntl", libc::SYS_fcntl),
            ("openat2", libc::SYS_openat2),
            ("mseal", libc::SYS_mseal),
            ("seccomp", libc::SYS_seccomp),
            ("process_mrelease", libc::SYS_process_mrelease),
        ] {
            assert_eq!(look_up(syscalls::NATIVE, name).map(i64::from), Some(number), "{name}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_other_interfaces_of_x86_have_their_own_numbers() {
        // Source: arch/x86/entry/syscalls/syscall_32.tbl and syscall_64.tbl.
        assert_eq!(look_up(syscalls::I386, "socketcall"), Some(102));
        assert_eq!(look_up(syscalls::I386, "clock_gettime64"), Some(403));
        assert_eq!((tables::X32.find)("read"), Some(0x4000_0000));
        assert_eq!((tables::X32.find)("execve"), Some(0x4000_0000 | 520));
    }
}
