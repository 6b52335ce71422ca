//! Classic BPF for the sections of a profile. No IO.

use super::profile::{Answer, Condition, KILL_PROCESS, Section, Test, Verdict};
use crate::sys::BpfInstruction;

// Source: include/uapi/linux/bpf_common.h; offsets of struct seccomp_data in include/uapi/linux/seccomp.h.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// Longest distance of a conditional jump.
const SHORT: usize = u8::MAX as usize;

/// The whole filter: an architecture that is not there is killed.
pub(super) fn assemble(sections: &[Section]) -> Vec<BpfInstruction> {
    let mut program = vec![plain(LOAD, ARCH_AT)];
    for section in sections {
        let mut body = vec![plain(LOAD, NUMBER_AT)];
        body.extend(halve(&section.ranges, section.narrow));
        // To the body if it is this architecture, else over it.
        program.push(jump(JUMP_EQUAL, section.arch, 1, 0));
        program.push(plain(JUMP, body.len() as u32));
        program.extend(body);
    }
    program.push(plain(RETURN, KILL_PROCESS));
    program
}

fn plain(code: u16, k: u32) -> BpfInstruction {
    BpfInstruction { code, jump_true: 0, jump_false: 0, k }
}

fn jump(code: u16, k: u32, jump_true: u8, jump_false: u8) -> BpfInstruction {
    BpfInstruction { code, jump_true, jump_false, k }
}

/// A tree over sorted ranges: one comparison halves what is left.
fn halve(ranges: &[(u32, Verdict)], narrow: bool) -> Vec<BpfInstruction> {
    if ranges.len() <= 1 {
        return match ranges.first() {
            Some((_, verdict)) => leaf(verdict, narrow),
            None => vec![plain(RETURN, KILL_PROCESS)],
        };
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let below = halve(low, narrow);
    let mut code = match u8::try_from(below.len()) {
        Ok(distance) => vec![jump(JUMP_GREATER_OR_EQUAL, high[0].0, distance, 0)],
        Err(_) => {
            vec![jump(JUMP_GREATER_OR_EQUAL, high[0].0, 0, 1), plain(JUMP, below.len() as u32)]
        }
    };
    code.extend(below);
    code.extend(halve(high, narrow));
    code
}

fn leaf(verdict: &Verdict, narrow: bool) -> Vec<BpfInstruction> {
    match verdict {
        Verdict::Always(answer) => vec![plain(RETURN, *answer)],
        Verdict::ByArguments(rules, otherwise) => {
            let mut code: Vec<_> =
                rules.iter().flat_map(|(conditions, answer)| rule(conditions, *answer, narrow)).collect();
            code.push(plain(RETURN, *otherwise));
            code
        }
    }
}

/// Where a test goes when it fails is known only at the end of its rule.
#[derive(Clone, Copy)]
enum Go {
    On(u8),
    Fail,
}

/// Conditions and their answer; if one fails, on to what follows.
fn rule(conditions: &[Condition], answer: Answer, narrow: bool) -> Vec<BpfInstruction> {
    let mut steps: Vec<(u16, u32, Go, Go)> = Vec::new();
    for condition in conditions {
        push_condition(&mut steps, condition, narrow);
    }
    let end = steps.len() + 1;
    debug_assert!(end <= SHORT, "six conditions are at most 42 instructions");
    let resolve = |go: Go, at: usize| match go {
        Go::On(distance) => distance,
        Go::Fail => (end - at - 1) as u8,
    };
    let mut code: Vec<BpfInstruction> = steps
        .iter()
        .enumerate()
        .map(|(at, (code, k, yes, no))| jump(*code, *k, resolve(*yes, at), resolve(*no, at)))
        .collect();
    code.push(plain(RETURN, answer));
    code
}

/// An argument is compared in two words. Of a 32-bit call only the low one exists.
fn push_condition(steps: &mut Vec<(u16, u32, Go, Go)>, condition: &Condition, narrow: bool) {
    use Go::{Fail, On};
    let low_at = ARGUMENTS_AT + 8 * condition.index; // little-endian, as every architecture here
    let high_at = low_at + 4;
    let high = |value: u64| (value >> 32) as u32;
    let low = |value: u64| value as u32;
    let load = |at: u32, steps: &mut Vec<_>| steps.push((LOAD, at, On(0), On(0)));
    match condition.test {
        Test::Equal(value) => {
            if !narrow {
                load(high_at, steps);
                steps.push((JUMP_EQUAL, high(value), On(0), Fail));
            }
            load(low_at, steps);
            steps.push((JUMP_EQUAL, low(value), On(0), Fail));
        }
        Test::NotEqual(value) => {
            if !narrow {
                load(high_at, steps);
                steps.push((JUMP_EQUAL, high(value), On(0), On(2)));
            }
            load(low_at, steps);
            steps.push((JUMP_EQUAL, low(value), Fail, On(0)));
        }
        Test::Greater(value) | Test::GreaterOrEqual(value) => {
            let last = match condition.test {
                Test::Greater(_) => JUMP_GREATER,
                _ => JUMP_GREATER_OR_EQUAL,
            };
            if !narrow {
                load(high_at, steps);
                steps.push((JUMP_GREATER, high(value), On(3), On(0)));
                steps.push((JUMP_EQUAL, high(value), On(0), Fail));
            }
            load(low_at, steps);
            steps.push((last, low(value), On(0), Fail));
        }
        Test::Less(value) | Test::LessOrEqual(value) => {
            let last = match condition.test {
                Test::Less(_) => JUMP_GREATER_OR_EQUAL,
                _ => JUMP_GREATER,
            };
            if !narrow {
                load(high_at, steps);
                steps.push((JUMP_GREATER, high(value), Fail, On(0)));
                steps.push((JUMP_EQUAL, high(value), On(0), On(2)));
            }
            load(low_at, steps);
            steps.push((last, low(value), Fail, On(0)));
        }
        Test::Masked { mask, value } => {
            if !narrow {
                load(high_at, steps);
                steps.push((AND, high(mask), On(0), On(0)));
                steps.push((JUMP_EQUAL, high(value), On(0), Fail));
            }
            load(low_at, steps);
            steps.push((AND, low(mask), On(0), On(0)));
            steps.push((JUMP_EQUAL, low(value), On(0), Fail));
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxSeccomp;

    use super::super::compile;
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    const NATIVE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

    /// Runs a filter on one call, as the kernel would.
    fn interpret(program: &[BpfInstruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend([0; 8]);
        arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
        let (mut a, mut at) = (0_u32, 0_usize);
        loop {
            let BpfInstruction { code, jump_true, jump_false, k } = program[at];
            at += 1;
            let mut branch = |yes: bool| at += usize::from(if yes { jump_true } else { jump_false });
            match code {
                LOAD => {
                    let k = k as usize;
                    a = u32::from_le_bytes(data[k..k + 4].try_into().expect("four bytes"));
                }
                AND => a &= k,
                JUMP => at += k as usize,
                JUMP_EQUAL => branch(a == k),
                JUMP_GREATER => branch(a > k),
                JUMP_GREATER_OR_EQUAL => branch(a >= k),
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn filter(json: &str) -> Vec<BpfInstruction> {
        let profile: LinuxSeccomp = serde_json::from_str(json).expect("profile");
        compile(&profile).expect("compile").expect("a filter").program.to_vec()
    }

    fn native(program: &[BpfInstruction], number: i64, arguments: [u64; 6]) -> u32 {
        interpret(program, NATIVE, number as u32, arguments)
    }

    #[test]
    fn named_calls_are_allowed_and_others_get_the_default() {
        let program = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":13,"syscalls":[
                {"names":["read","write","exit_group","mseal","no_such_call"],"action":"SCMP_ACT_ALLOW"}]}"#,
        );
        for number in [libc::SYS_read, libc::SYS_write, libc::SYS_exit_group, libc::SYS_mseal] {
            assert_eq!(native(&program, number, [0; 6]), ALLOW, "{number}");
        }
        assert_eq!(native(&program, libc::SYS_openat, [0; 6]), ERRNO | 13);
        // Younger than the profile.
        assert_eq!(native(&program, 100_000, [0; 6]), ERRNO | libc::ENOSYS as u32);
    }

    #[test]
    fn a_foreign_architecture_is_killed() {
        let program =
            filter(r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}"#);
        assert_eq!(interpret(&program, 0x1234, 0, [0; 6]), KILL_PROCESS);
        assert_eq!(native(&program, libc::SYS_mount, [0; 6]), ERRNO | 1);
        assert_eq!(native(&program, libc::SYS_read, [0; 6]), ALLOW);
        assert_eq!(native(&program, 100_000, [0; 6]), ALLOW);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_interfaces_of_x86_are_told_apart() {
        const I386: u32 = 0x4000_0003;
        const X32: u32 = 0x4000_0000;
        let rules = r#""syscalls":[{"names":["execve","socketcall"],"action":"SCMP_ACT_ALLOW"}]"#;
        let all = filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],{rules}}}"#
        ));
        assert_eq!(native(&all, libc::SYS_execve, [0; 6]), ALLOW);
        assert_eq!(interpret(&all, NATIVE, X32 | 520, [0; 6]), ALLOW);
        assert_eq!(interpret(&all, NATIVE, X32 | 59, [0; 6]), ERRNO | 1);
        assert_eq!(interpret(&all, NATIVE, X32, [0; 6]), ERRNO | 1);
        assert_eq!(interpret(&all, I386, 11, [0; 6]), ALLOW);
        assert_eq!(interpret(&all, I386, 102, [0; 6]), ALLOW);
        assert_eq!(interpret(&all, I386, 59, [0; 6]), ERRNO | 1);
        let native_only = filter(&format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{rules}}}"#));
        assert_eq!(interpret(&native_only, NATIVE, X32 | 520, [0; 6]), KILL_PROCESS);
        assert_eq!(interpret(&native_only, I386, 11, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn each_comparison_sees_all_64_bits() {
        let edge = 0x1_0000_0002_u64;
        let values = [0, 1, 2, 3, 0xffff_ffff, edge - 1, edge, edge + 1, 0x2_0000_0002, u64::MAX];
        type Meaning = fn(u64, u64) -> bool;
        let operators: [(&str, Meaning); 6] = [
            ("EQ", |a, b| a == b),
            ("NE", |a, b| a != b),
            ("LT", |a, b| a < b),
            ("LE", |a, b| a <= b),
            ("GT", |a, b| a > b),
            ("GE", |a, b| a >= b),
        ];
        for (operator, meaning) in operators {
            for bound in [0, 2, edge, u64::MAX] {
                let program = filter(&format!(
                    r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["personality"],
                        "action":"SCMP_ACT_ALLOW","args":[{{"index":3,"value":{bound},"op":"SCMP_CMP_{operator}"}}]}}]}}"#
                ));
                for value in values {
                    let allowed = native(&program, libc::SYS_personality, [0, 0, 0, value, 0, 0]) == ALLOW;
                    assert_eq!(allowed, meaning(value, bound), "{value:#x} {operator} {bound:#x}");
                }
            }
        }
    }

    #[test]
    fn masks_compare_only_their_bits() {
        // As profiles keep clone() from making user namespaces.
        let program = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":0,"value":268435456,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        );
        assert_eq!(native(&program, libc::SYS_clone, [0x11, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(native(&program, libc::SYS_clone, [0x1000_0011, 0, 0, 0, 0, 0]), ERRNO | 1);
        assert_eq!(native(&program, libc::SYS_clone, [0x1_0000_0000, 0, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn conditions_on_different_arguments_hold_together_on_one_they_are_alternatives() {
        let check = |args: &str, call: [u64; 6]| {
            let program = filter(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                    {{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{args}]}}]}}"#
            ));
            native(&program, libc::SYS_socket, call) == ALLOW
        };
        let is = |index: u32, value: u32| format!(r#"{{"index":{index},"value":{value},"op":"SCMP_CMP_EQ"}}"#);
        let both = format!("{},{}", is(0, 1), is(1, 2));
        assert!(check(&both, [1, 2, 0, 0, 0, 0]));
        assert!(!check(&both, [1, 3, 0, 0, 0, 0]));
        let either = format!("{},{}", is(0, 1), is(0, 2));
        assert!(check(&either, [1, 0, 0, 0, 0, 0]) && check(&either, [2, 0, 0, 0, 0, 0]));
        assert!(!check(&either, [3, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn an_answer_for_every_argument_outdoes_those_for_some() {
        let program = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["socket"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":0,"value":38,"op":"SCMP_CMP_EQ"}]},
                {"names":["socket"],"action":"SCMP_ACT_ALLOW"}]}"#,
        );
        assert_eq!(native(&program, libc::SYS_socket, [38, 0, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn a_large_profile_jumps_far() {
        // Every second call of the table by an argument: the halves are longer than a conditional jump reaches.
        let names: Vec<String> = super::super::syscalls::NATIVE
            .iter()
            .filter(|(_, number)| number % 2 == 0)
            .map(|(name, _)| format!("{name:?}"))
            .collect();
        let program = filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":[{}],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":0,"value":7,"op":"SCMP_CMP_EQ"}}]}}]}}"#,
            names.join(",")
        ));
        for (name, number) in super::super::syscalls::NATIVE {
            let expected = if number % 2 == 0 { ALLOW } else { ERRNO | 1 };
            let last = 468; // file_getattr: what is younger gets ENOSYS
            let expected = if *number > last { ERRNO | libc::ENOSYS as u32 } else { expected };
            assert_eq!(native(&program, i64::from(*number), [7, 0, 0, 0, 0, 0]), expected, "{name}");
            assert_ne!(native(&program, i64::from(*number), [8, 0, 0, 0, 0, 0]), ALLOW, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for json in [
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO",
                "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#,
        ] {
            let profile: LinuxSeccomp = serde_json::from_str(json).expect("profile");
            compile(&profile).expect_err(json);
        }
        let open: LinuxSeccomp = serde_json::from_str(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).expect("profile");
        assert!(compile(&open).expect("compile").is_none());
    }
}
