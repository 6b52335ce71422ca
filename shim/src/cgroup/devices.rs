//! Which devices a container may open: the spec's rules, written to the v1 controller or compiled to an eBPF program.
//! Later rules win, for each kind of access by itself.

use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{Mode, OFlags};

use super::files;
use crate::runtime::Error;
use crate::sys::{self, EbpfInstruction};

const MKNOD: u8 = 1; // BPF_DEVCG_ACC_MKNOD
const READ: u8 = 2; // BPF_DEVCG_ACC_READ
const WRITE: u8 = 4; // BPF_DEVCG_ACC_WRITE
const ALL: u8 = MKNOD | READ | WRITE;

/// Numbers are BPF_DEVCG_DEV_….
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceKind {
    Block = 1,
    Char = 2,
}

/// One rule. `None` matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    kind: Option<DeviceKind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Rule {
    const fn all(allow: bool) -> Rule {
        Rule { allow, kind: None, major: None, minor: None, access: ALL }
    }

    const fn char(major: u32, minor: Option<u32>) -> Rule {
        Rule { allow: true, kind: Some(DeviceKind::Char), major: Some(major), minor, access: ALL }
    }

    fn is_all(&self) -> bool {
        Rule { allow: true, ..*self } == Rule::all(true)
    }
}

/// What every container may open, whatever the spec says: its default devices, its terminals; and making any node.
/// Source: runtime-spec, config-linux.md, "Default Devices" (a container without them does not run).
const DEFAULTS: [Rule; 10] = [
    Rule { allow: true, kind: Some(DeviceKind::Char), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(DeviceKind::Block), major: None, minor: None, access: MKNOD },
    Rule::char(1, Some(3)), // null
    Rule::char(1, Some(5)), // zero
    Rule::char(1, Some(7)), // full
    Rule::char(1, Some(8)), // random
    Rule::char(1, Some(9)), // urandom
    Rule::char(5, Some(0)), // tty
    Rule::char(5, Some(2)), // ptmx
    Rule::char(136, None),  // pts
];

/// The spec's rules after an implicit "nothing", then the defaults.
///
/// # Errors
/// A rule that makes no sense, by its index.
pub(super) fn rules(spec: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, Error> {
    let mut rules = vec![Rule::all(false)];
    for (index, rule) in spec.iter().enumerate() {
        let rule = parse(index, rule)?;
        if rule.is_all() {
            // Nothing before it counts.
            rules.clear();
        }
        rules.push(rule);
    }
    if rules != [Rule::all(true)] {
        rules.extend(DEFAULTS);
    }
    Ok(rules)
}

fn parse(index: usize, rule: &LinuxDeviceCgroup) -> Result<Rule, Error> {
    let field = format!("linux.resources.devices[{index}]");
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => {
                return Err(Error::refused(field + ".access", format!("{other:?} is none of r, w and m")));
            }
        };
    }
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Error::refused(field.clone(), format!("{value} is no device number"))),
        },
    };
    let (major, minor) = (number(rule.major())?, number(rule.minor())?);
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(DeviceKind::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DeviceKind::Char),
        Some(LinuxDeviceType::P) => {
            return Err(Error::refused(field + ".type", "\"p\" is no device"));
        }
    };
    // As the v1 controller has it: "a" means all of them, with every access.
    Ok(match kind {
        None => Rule::all(rule.allow()),
        kind => Rule { allow: rule.allow(), kind, major, minor, access },
    })
}

/// A rule as the v1 files take it: `c 1:3 rwm`.
pub(super) fn v1_value(rule: &Rule) -> String {
    let number = |value: Option<u32>| value.map_or("*".into(), |value| value.to_string());
    let kind = match rule.kind {
        None => return "a".into(),
        Some(DeviceKind::Block) => 'b',
        Some(DeviceKind::Char) => 'c',
    };
    let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    let access: String = letters.iter().filter(|(bit, _)| rule.access & bit != 0).map(|(_, letter)| *letter).collect();
    format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor))
}

/// Writes the rules in order to a new cgroup, which begins with what its parent allows.
///
/// # Errors
/// The rule the kernel refused; a rule that takes away a part of an earlier one, which v1 cannot say.
pub(super) fn write_v1(directory: &Path, rules: &[Rule]) -> Result<(), Error> {
    let (allow, deny) =
        (files::Writer::open(directory, "devices.allow")?, files::Writer::open(directory, "devices.deny")?);
    let mut allowed: Vec<&Rule> = Vec::new();
    let mut all_but = true;
    for rule in rules {
        if rule.is_all() {
            all_but = rule.allow;
            allowed.clear();
        } else if rule.allow {
            allowed.push(rule);
        } else if !all_but && overlaps(&allowed, rule) {
            let reason = format!("cgroup v1 cannot deny {:?} out of what is allowed before it", v1_value(rule));
            return Err(Error::refused("linux.resources.devices", reason));
        }
        if *rule == Rule::all(true) {
            // So it is in a new cgroup, and writing it would fail where the parent has exceptions.
            continue;
        }
        let file = if rule.allow { &allow } else { &deny };
        file.write(&v1_value(rule))?;
    }
    Ok(())
}

fn overlaps(allowed: &[&Rule], denied: &Rule) -> bool {
    let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
    allowed.iter().any(|rule| {
        rule.kind == denied.kind
            && meet(rule.major, denied.major)
            && meet(rule.minor, denied.minor)
            && rule.access & denied.access != 0
            // The kernel takes away what is exactly the same.
            && (rule.major, rule.minor, rule.access) != (denied.major, denied.minor, denied.access)
    })
}

/// Attaches the rules as a program to a cgroup of the v2 tree, which keeps it. Nothing if everything is allowed.
///
/// # Errors
/// What the kernel answers.
pub(super) fn attach_v2(directory: &Path, rules: &[Rule]) -> Result<(), Error> {
    if *rules == [Rule::all(true)] {
        return Ok(());
    }
    let fail = |error: std::io::Error| Error::step(format!("attach the device rules to {directory:?}"), error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(directory, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
    let program = sys::load_device_program(&compile(rules)).map_err(fail)?;
    sys::attach_device_program(cgroup.as_fd(), program.as_fd()).map_err(fail)
}

// Registers. The context is in r1: access and type in one word, major, minor.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 3;
const PENDING: u8 = 4;
const MAJOR: u8 = 5;
const MINOR: u8 = 6;

/// The rules from the last to the first: each takes away from what is still undecided of the access. Nothing left
/// means allowed; a denial of something left means denied; something left at the end is denied.
pub(super) fn compile(rules: &[Rule]) -> Vec<EbpfInstruction> {
    let mut program = vec![
        load(KIND, CONTEXT, 0),
        mov32(PENDING, KIND),
        and32(KIND, 0xffff),
        right_shift32(PENDING, 16),
        load(MAJOR, CONTEXT, 4),
        load(MINOR, CONTEXT, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(compile_rule(rule));
        if rule.is_all() {
            // Whatever stood before it is never reached; the verifier insists that it is not there.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn compile_rule(rule: &Rule) -> Vec<EbpfInstruction> {
    let tests: Vec<(u8, u32)> = [
        rule.kind.map(|kind| (KIND, kind as u32)),
        rule.major.map(|major| (MAJOR, major)),
        rule.minor.map(|minor| (MINOR, minor)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let body = if rule.access == ALL {
        answer(rule.allow).to_vec()
    } else if rule.allow {
        let [yes, exit] = answer(true);
        let left = u32::from(ALL & !rule.access);
        vec![and32(PENDING, left), jump_not_equal(PENDING, 0, 2), yes, exit]
    } else {
        let [no, exit] = answer(false);
        vec![mov32(RESULT, PENDING), and32(RESULT, u32::from(rule.access)), jump_equal(RESULT, 0, 2), no, exit]
    };
    let count = tests.len();
    let jumps = tests.into_iter().enumerate().map(|(index, (register, value))| {
        // To behind the body: over the tests after this one and the body itself.
        jump_not_equal(register, value, (count - index - 1 + body.len()) as i16)
    });
    let mut code: Vec<EbpfInstruction> = jumps.collect();
    code.extend(body);
    code
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> EbpfInstruction {
    EbpfInstruction { code, registers: source << 4 | destination, offset, immediate: immediate as i32 }
}

/// `*(u32 *)(source + offset)`
fn load(destination: u8, source: u8, offset: i16) -> EbpfInstruction {
    instruction(0x61, destination, source, offset, 0)
}

fn mov32(destination: u8, source: u8) -> EbpfInstruction {
    instruction(0xbc, destination, source, 0, 0)
}

fn and32(destination: u8, value: u32) -> EbpfInstruction {
    instruction(0x54, destination, 0, 0, value)
}

fn right_shift32(destination: u8, bits: u32) -> EbpfInstruction {
    instruction(0x74, destination, 0, 0, bits)
}

/// 32-bit comparison: device numbers use all bits.
fn jump_not_equal(register: u8, value: u32, offset: i16) -> EbpfInstruction {
    instruction(0x56, register, 0, offset, value)
}

fn jump_equal(register: u8, value: u32, offset: i16) -> EbpfInstruction {
    instruction(0x16, register, 0, offset, value)
}

fn answer(allow: bool) -> [EbpfInstruction; 2] {
    [instruction(0xb7, RESULT, 0, 0, allow.into()), instruction(0x95, 0, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the instructions that `compile` makes.
    fn interpret(program: &[EbpfInstruction], context: [u32; 3]) -> bool {
        let mut registers = [0_u32; 11];
        let mut at = 0;
        loop {
            let EbpfInstruction { code, registers: pair, offset, immediate } = program[at];
            let (destination, source) = (usize::from(pair & 15), usize::from(pair >> 4));
            at += 1;
            match code {
                0x61 => registers[destination] = context[offset as usize / 4],
                0xbc => registers[destination] = registers[source],
                0x54 => registers[destination] &= immediate as u32,
                0x74 => registers[destination] >>= immediate,
                0x56 if registers[destination] != immediate as u32 => at += offset as usize,
                0x16 if registers[destination] == immediate as u32 => at += offset as usize,
                0x56 | 0x16 => {}
                0xb7 => registers[destination] = immediate as u32,
                0x95 => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// What the rules mean, read from the front: each access bit by itself, the last match decides.
    fn meaning(rules: &[Rule], kind: DeviceKind, major: u32, minor: u32, access: u8) -> bool {
        let matches = |rule: &Rule, bit: u8| {
            rule.kind.is_none_or(|k| k == kind)
                && rule.major.is_none_or(|m| m == major)
                && rule.minor.is_none_or(|m| m == minor)
                && rule.access & bit != 0
        };
        [MKNOD, READ, WRITE]
            .into_iter()
            .filter(|bit| access & bit != 0)
            .all(|bit| rules.iter().rev().find(|rule| matches(rule, bit)).is_some_and(|rule| rule.allow))
    }

    fn rule(allow: bool, kind: char, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow);
        rule.set_typ(Some(match kind {
            'a' => LinuxDeviceType::A,
            'b' => LinuxDeviceType::B,
            _ => LinuxDeviceType::C,
        }));
        rule.set_major(Some(major));
        rule.set_minor(Some(minor));
        rule.set_access(Some(access.into()));
        rule
    }

    #[test]
    fn the_program_decides_as_the_rules_read() {
        let lists = [
            rules(&[]).expect("rules"),
            rules(&[rule(false, 'a', -1, -1, "rwm"), rule(true, 'c', 10, 200, "rw")]).expect("rules"),
            rules(&[rule(true, 'a', -1, -1, "rwm")]).expect("rules"),
            rules(&[rule(true, 'a', -1, -1, "rwm"), rule(false, 'b', 8, -1, "w")]).expect("rules"),
            rules(&[rule(true, 'c', 10, -1, "rw"), rule(false, 'c', 10, 1, "w"), rule(true, 'c', 10, 2, "m")])
                .expect("rules"),
            vec![Rule { major: Some(u32::MAX), ..Rule::char(0, Some(u32::MAX)) }],
        ];
        for list in lists {
            let program = compile(&list);
            for kind in [DeviceKind::Block, DeviceKind::Char] {
                for (major, minor) in
                    [(1, 3), (1, 4), (5, 2), (8, 0), (10, 1), (10, 2), (10, 200), (136, 9), (u32::MAX, u32::MAX)]
                {
                    for access in 1..=ALL {
                        let context = [u32::from(access) << 16 | kind as u32, major, minor];
                        assert_eq!(
                            interpret(&program, context),
                            meaning(&list, kind, major, minor, access),
                            "{kind:?} {major}:{minor} {access} under {list:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn without_rules_only_the_default_devices_are_open() {
        let list = rules(&[]).expect("rules");
        assert!(meaning(&list, DeviceKind::Char, 1, 3, ALL));
        assert!(meaning(&list, DeviceKind::Block, 8, 0, MKNOD));
        assert!(!meaning(&list, DeviceKind::Block, 8, 0, READ));
        assert!(!meaning(&list, DeviceKind::Char, 1, 1, READ));
    }

    #[test]
    fn a_rule_is_a_line_for_v1() {
        assert_eq!(v1_value(&Rule::all(false)), "a");
        assert_eq!(v1_value(&Rule::char(136, None)), "c 136:* rwm");
        assert_eq!(v1_value(&DEFAULTS[1]), "b *:* m");
    }

    #[test]
    fn v1_refuses_what_it_cannot_say() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for file in ["devices.allow", "devices.deny"] {
            std::fs::write(directory.path().join(file), "").expect("write");
        }
        let list = rules(&[rule(true, 'c', 10, -1, "rwm"), rule(false, 'c', 10, 1, "w")]).expect("rules");
        write_v1(directory.path(), &list).expect_err("a hole in an allowance");
        let list = rules(&[rule(true, 'c', 10, 1, "rwm"), rule(false, 'c', 10, 1, "rwm")]).expect("rules");
        write_v1(directory.path(), &list).expect("the same taken back");
    }

    #[test]
    fn bad_rules_are_named() {
        let error = rules(&[rule(true, 'c', 1, 1, "x")]).expect_err("bad access");
        assert!(error.to_string().starts_with("linux.resources.devices[0].access"), "{error}");
        rules(&[rule(true, 'c', -5, 1, "r")]).expect_err("bad number");
    }
}
